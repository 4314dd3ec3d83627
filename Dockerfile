FROM python:3.12-slim

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOST=0.0.0.0 \
    DATA_DIR=/data

# A named volume that is mounted at /data for the first time takes over this owner and mode.
RUN useradd --uid 1000 --create-home batchserver \
    && install --directory --owner=batchserver --group=batchserver --mode=0700 /data

WORKDIR /app
COPY requirements.lock ./
RUN pip install --require-hashes --no-deps -r requirements.lock
# What else gets in is listed in .dockerignore.
COPY . ./

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
