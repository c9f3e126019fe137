# escape=\
# Every instruction, the forms that are easy to get wrong, and a stage that nobody needs.
ARG BASE=debian:12
ARG UNUSED

FROM ${BASE} AS build
ARG VERSION=1 UNSET
ENV A=1 B="two words" C=$A
WORKDIR /src
COPY --chown=1000:1000 --chmod=u=rwX,go= *.c Makefile ./
COPY <<one <<-"two" /docs/
version $VERSION
one
	not $expanded
	two
RUN --mount=type=cache,target=/root/.cache --mount=type=secret,id=token,env=TOKEN \
    # a comment inside
    make \
      install
RUN <<EOF
set -e
echo "a heredoc"
EOF

FROM unreachable:1 AS unused
RUN never

FROM scratch
LABEL a=b "c d"="e f"
COPY --link --from=build /src/out /
ADD https://example.org/file.tar /files/
EXPOSE 443/udp 80
VOLUME ["/data"]
USER 1000
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s CMD ["/check"]
SHELL ["/bin/ash", "-c"]
ENTRYPOINT ["/app"]
CMD serve --port 80
ONBUILD RUN echo child
