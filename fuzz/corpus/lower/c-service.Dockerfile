# syntax=docker/dockerfile:1
# A web service in C: built with gcc in one stage, shipped without it in the other.
ARG BASE=debian:bookworm

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev make
WORKDIR /src
COPY Makefile ./
COPY src/ src/
ARG VERSION=1.0
RUN make VERSION="${VERSION}"

FROM ${BASE}
LABEL org.opencontainers.image.title="c-service"
COPY --from=build --chmod=755 /src/server /usr/local/bin/server
RUN useradd --system --no-create-home service
USER service
ENV PORT=8080
EXPOSE 8080
HEALTHCHECK --interval=30s CMD ["/usr/local/bin/server", "--check"]
ENTRYPOINT ["/usr/local/bin/server"]
