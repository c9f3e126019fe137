# syntax=docker/dockerfile:1
# A web service in Python: its packages come from PyPI into a virtual environment.
ARG BASE=debian:bookworm

FROM ${BASE} AS python
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 ca-certificates

FROM python AS packages
RUN apt-get install -y --no-install-recommends python3-pip python3-venv
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
RUN python3 -m venv /venv
COPY requirements.txt .
RUN --mount=type=cache,target=/root/.cache/pip \
    /venv/bin/pip install --no-compile --disable-pip-version-check -r requirements.txt

FROM python
COPY --from=packages /venv /venv
WORKDIR /app
COPY --chown=1000:1000 app.py ./
USER 1000:1000
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PORT=8080
EXPOSE 8080
CMD ["python", "app.py"]
