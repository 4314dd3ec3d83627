# The digest is that of the tag's index for all platforms. To build from a newer one, or one of your own:
#   docker build --build-arg PYTHON_IMAGE=python:3.12-slim .
ARG PYTHON_IMAGE=python:3.12.14-slim@sha256:e5c9fa26ffb76e11e0f054f30dc2523a2f9693f0c36c0cf1e39b27e152d899fc

FROM ${PYTHON_IMAGE} AS packages
ENV PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.lock ./
RUN python -m venv --without-pip /opt/packages \
    && pip --python /opt/packages/bin/python install --require-hashes --no-deps -r requirements.lock

FROM ${PYTHON_IMAGE}

# Whoever builds a release says which: --build-arg VERSION=0.2.0 --build-arg REVISION=$(git rev-parse HEAD)
ARG PYTHON_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Ollama Batch Server" \
      org.opencontainers.image.description="The OpenAI Batch API in front of Ollama on your own GPU" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"

ENV PATH=/opt/packages/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    DATA_DIR=/data

# Nothing is installed into a running container. Python's base image comes without bytecode, and nothing can be written
# there later: each process would compile what it imports, and the health check too. A named volume that is mounted at
# /data for the first time takes over this owner and mode.
RUN pip uninstall --quiet --yes --root-user-action=ignore pip \
    && rm -r "$(python -c 'import ensurepip, os; print(os.path.dirname(ensurepip.__file__))')" \
    && python -m compileall -q "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && useradd --uid 1000 --create-home batchserver \
    && install --directory --owner=batchserver --group=batchserver --mode=0700 /data

COPY --from=packages /opt/packages /opt/packages
WORKDIR /app
# What gets in is listed in .dockerignore.
COPY . ./
RUN python -m compileall -q .

USER batchserver
VOLUME /data
EXPOSE 4080

# Past any proxy that the environment names. docker-compose.yml asks the web server in another way.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys\n\
server = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 4080), timeout=5)\n\
server.request('GET', '/readyz')\n\
answer = server.getresponse()\n\
print(answer.read().decode())\n\
sys.exit(answer.status != 200)\n"]

# Web, both workers and the broker in one container, with SQLite in /data. docker-compose.yml runs them one by one.
CMD ["python", "manage.py", "serve"]
