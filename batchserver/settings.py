"""Every setting, with its unit in its name. The only reader of the environment and of `.env`, by the parsers in env.

An import makes no directory, writes no file and opens no socket: the first start makes what has to be made.
"""

import hashlib
import logging
import os
from os import environ
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import SimpleLazyObject
from dotenv import load_dotenv

from batchserver import admin_theme, env, installation, kept, supervisor
from batchserver.version import VERSION

BASE_DIR = installation.ROOT

# The real environment wins over the file.
load_dotenv(installation.env_file(env.text(environ, "ENV_FILE"), environ), override=False)

# Where we listen
HOST = env.text(environ, "HOST", "127.0.0.1")
PORT = env.whole(environ, "PORT", 4080, least=1, most=65535)
# Requests that are passed through at once; more are refused.
MAX_PASS_THROUGH = env.whole(environ, "MAX_PASS_THROUGH", 64, least=1, most=1000)
# One process, so that /metrics has one set of counters. So many requests are at work at once; whoever waits for a slow
# client does not count. Those beyond MAX_PASS_THROUGH are for requests that must be answered at once: polling, uploads,
# cancelling.
WEB_THREADS = MAX_PASS_THROUGH + 16

# How long the web server waits for a client that stands still, and what a slower one has to move after that time. Who
# reads an answer only now and then is cut off too.
CLIENT_TIMEOUT_S = env.seconds(environ, "CLIENT_TIMEOUT_S") or 60.0
CLIENT_LEAST_BYTES_PER_S = env.whole(environ, "CLIENT_LEAST_BYTES_PER_S", 1024)
# Longer than clients and proxies keep an idle connection: who closes it first must not be the server, which would cut
# off a request that is on its way.
KEEP_ALIVE_S = env.seconds(environ, "KEEP_ALIVE_S") or 75.0
MAX_CONNECTIONS = env.whole(environ, "MAX_CONNECTIONS", 2000, least=16, most=100_000)
MAX_CONNECTIONS_PER_ADDRESS = env.whole(environ, "MAX_CONNECTIONS_PER_ADDRESS", 512)  # 0: no bound
# Networks whose connections bring many clients, and whose X-Forwarded-For is believed.
TRUSTED_PROXIES = env.networks(environ, "TRUSTED_PROXIES")

# State
DATA_DIR = installation.data_dir(env.text(environ, "DATA_DIR"), environ)
FILES_DIR = DATA_DIR / "files"
UPLOAD_DIR = FILES_DIR / ".incoming"  # same file system as FILES_DIR: a finished upload is renamed, never copied
# Read or made when first needed, not before: `manage.py setup` and `serve` make it at the first start.
SECRET_KEY = env.text(environ, "SECRET_KEY") or cast(
    str, SimpleLazyObject(lambda: kept.text(DATA_DIR, kept.SECRET_KEY))
)
# What /health calls this server: the command line of the same checkout finds it in DATA_DIR too.
INSTANCE_ID = cast(str, SimpleLazyObject(lambda: kept.text(DATA_DIR, kept.INSTANCE_ID)))
DEBUG = False

_named_hosts = env.texts(environ, "ALLOWED_HOSTS")
OWN_NAMES = ["localhost", "127.0.0.1", "[::1]"]  # by which this machine calls itself, as a Host header has them
# This host's own names and addresses are allowed too if other machines can reach us. To find them takes sockets, so the
# web process adds them when it starts (batchserver/wsgi.py).
ALLOW_OWN_NAMES = not _named_hosts and HOST in ("0.0.0.0", "::")
if HOST in ("0.0.0.0", "::", "localhost", "127.0.0.1", "::1"):
    ALLOWED_HOSTS = _named_hosts or OWN_NAMES
else:
    ALLOWED_HOSTS = _named_hosts or [*OWN_NAMES, f"[{HOST}]" if ":" in HOST else HOST]
CSRF_TRUSTED_ORIGINS = env.texts(environ, "CSRF_TRUSTED_ORIGINS")
# Behind a TLS proxy: cookies by HTTPS alone, plain HTTP redirected, HSTS. Without a proxy there is no TLS.
BEHIND_TLS = env.switch(environ, "BEHIND_TLS", False)
if BEHIND_TLS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    SECURE_REDIRECT_EXEMPT = [r"^health$"]
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    SECURE_HSTS_SECONDS = 31_536_000
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
else:
    # They ask for what only TLS can give. batchserver/checks.py says instead whether there should be TLS.
    SILENCED_SYSTEM_CHECKS = [f"security.{number}" for number in ("W004", "W008", "W012", "W016")]
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_AGE = 3600 * env.whole(environ, "SESSION_HOURS", 336, least=1, most=8760)
# While there is no API key, /v1 and /api answer this machine alone (common/anonymous.py), unless ALLOW_ANONYMOUS.
ALLOW_ANONYMOUS = env.switch(environ, "ALLOW_ANONYMOUS", False)
# In a container: the host's address at which its port is published. Whoever starts the container says it.
PUBLISHED_ON_LOOPBACK = env.is_loopback(environ, "PUBLISHED_AT")
IS_OPEN_TO_OTHERS = not PUBLISHED_ON_LOOPBACK and not env.is_loopback(environ, "HOST", HOST)

# The model server
EMBEDDED_BACKEND_PORT = env.whole(environ, "EMBEDDED_BACKEND_PORT", min(PORT + 1, 65535), least=1, most=65535)
EMBEDDED_BACKEND_MODEL = "smollm2:135m"
EMBEDDED_BACKEND = env.text(environ, "BACKEND_URL") == "embedded"
if EMBEDDED_BACKEND:
    BACKEND_URL = f"http://127.0.0.1:{EMBEDDED_BACKEND_PORT}"
else:
    # Several addresses with commas between them are servers that share one card.
    BACKEND_URL = env.urls(environ, "BACKEND_URL", env.url(environ, "OLLAMA_BASE_URL", "http://localhost:11434"))
BACKEND_IS_LOCAL = any(map(env.is_of_this_machine, BACKEND_URL.split(",")))
BACKEND_SLEEP_LEVEL = env.whole(environ, "BACKEND_SLEEP_LEVEL", 1, least=1, most=2)
# By the configuration alone; the health probe asks the server itself.
BACKEND_IS_OLLAMA = not env.text(environ, "BACKEND_URL")
# The backend's row is shared by every worker that drives the same server; "localhost" on two machines is two servers.
BACKEND_NAME = f"{BACKEND_URL} on {os.uname().nodename}" if BACKEND_IS_LOCAL else BACKEND_URL
# Whether nobody misses the model server while that of another worker answers.
BACKEND_OPTIONAL = env.switch(environ, "BACKEND_OPTIONAL", False)
BACKEND_API_KEY = env.text(environ, "BACKEND_API_KEY")
# None: as many as the server says
BACKEND_PARALLEL = env.whole(environ, "BACKEND_PARALLEL", 0, least=1, most=1024) or None
MODEL_NAME = env.text(environ, "MODEL_NAME", EMBEDDED_BACKEND_MODEL if EMBEDDED_BACKEND else "gemma3:12b")
MODEL_NAME_IS_SET = EMBEDDED_BACKEND or bool(env.text(environ, "MODEL_NAME"))
# "*" stands for every name that has no alias of its own.
MODEL_ALIASES = {"*": EMBEDDED_BACKEND_MODEL} if EMBEDDED_BACKEND else env.pairs(environ, "MODEL_ALIASES")

# Execution
MAX_CONCURRENT_BATCHES = env.whole(environ, "MAX_CONCURRENT_BATCHES", 1, least=1, most=64)
LINE_TIMEOUT_S = env.seconds(environ, "LINE_TIMEOUT_S")  # None: by the measured speed (batches/dispatch/deadlines.py)
MODEL_LOAD_TIMEOUT_S = env.seconds(environ, "MODEL_LOAD_TIMEOUT_S") or 900.0
MODEL_PATIENCE_S = env.seconds(environ, "MODEL_PATIENCE_S") or 600.0
_model_missing_patience_s = env.seconds(environ, "MODEL_MISSING_PATIENCE_S", may_be_0=True)
MODEL_MISSING_PATIENCE_S = 3600.0 if _model_missing_patience_s is None else _model_missing_patience_s
LINE_MAX_ATTEMPTS = env.whole(environ, "LINE_MAX_ATTEMPTS", 3, least=1, most=100)
# False: a line is sent with what the model server ignores, which the batch's warnings name.
STRICT_PARAMETERS = env.switch(environ, "STRICT_PARAMETERS", True)
# Whether a part whose lines need more gets a larger context by a derived model.
FIT_CONTEXT = env.switch(environ, "FIT_CONTEXT", True)
# Whether a batch that runs names its result files already; OpenAI names them at the end.
EARLY_RESULT_FILES = env.switch(environ, "EARLY_RESULT_FILES", False)
# Days that batches are kept after their end, and files after their upload; 0: for ever.
RETENTION_DAYS = env.whole(environ, "RETENTION_DAYS", 0, most=36500)
ANSWER_ONCE_ACROSS_BATCHES = env.switch(environ, "ANSWER_ONCE_ACROSS_BATCHES", False)
SHUTDOWN_GRACE_S = env.seconds(environ, "SHUTDOWN_GRACE_S") or 5.0
_interactive_hold_s = env.seconds(environ, "INTERACTIVE_HOLD_S", may_be_0=True)
INTERACTIVE_HOLD_S = 10.0 if _interactive_hold_s is None else _interactive_hold_s
# Of any ten minutes, the part that lines have while persons keep them back.
BATCH_SHARE = env.share(environ, "BATCH_SHARE", 0.25)
# Whoever uses the model server without us is a person too.
NOTICE_OTHERS = env.switch(environ, "NOTICE_OTHERS", True)

# The clock for people: Django sets that of the process by TIME_ZONE. The API and the database have no local times.
TIME_ZONE = env.zone(environ, "TIME_ZONE")
QUIET_HOURS = env.quiet_hours(environ, "QUIET_HOURS", TIME_ZONE)

# The address that is told when a batch ends. The path stays as it was typed: a slash at its end can mean something.
WEBHOOK_URL = env.secret_url(environ, "WEBHOOK_URL")
WEBHOOK_SECRET = env.text(environ, "WEBHOOK_SECRET")
if WEBHOOK_URL:
    WEBHOOK_SECRET = env.signing_secret(environ, "WEBHOOK_SECRET", needed_by="WEBHOOK_URL")

# Whether the address that an owner has may be one of the machine's own network.
OWNER_WEBHOOKS_TO_PRIVATE_ADDRESSES = env.switch(environ, "OWNER_WEBHOOKS_TO_PRIVATE_ADDRESSES", False)

# Whether a warning of a forecast is an event too, batch.warning, which OpenAI does not have.
WEBHOOK_WARNINGS = env.switch(environ, "WEBHOOK_WARNINGS", False)

# The pipe for signs of life, set by the supervisor for the workers that it starts; 0: nobody watches.
SIGNS_OF_LIFE_FD = env.whole(environ, "SIGNS_OF_LIFE_FD", 0)

# For tests (docs/reliability.md); never set it on a server.
FAILPOINTS = env.failpoints(environ, "FAILPOINTS")

# Limits
MAX_FILE_BYTES = env.whole(environ, "MAX_FILE_BYTES", 8 * 2**30, least=1)
MAX_BATCH_LINES = env.whole(environ, "MAX_BATCH_LINES", 1_000_000, least=1)
MAX_LINE_BYTES = env.whole(environ, "MAX_LINE_BYTES", 16 * 2**20, least=1024)
MAX_REPLY_BYTES = env.whole(environ, "MAX_REPLY_BYTES", 64 * 2**20, least=1024)
MIN_FREE_BYTES = env.whole(environ, "MIN_FREE_BYTES", 512 * 2**20)

# Limits of each owner whose own are empty (the admin's page of the owner); 0: none.
OWNER_MAX_STORED_BYTES = env.whole(environ, "OWNER_MAX_STORED_BYTES", 0)
OWNER_MAX_ACTIVE_BATCHES = env.whole(environ, "OWNER_MAX_ACTIVE_BATCHES", 0)
OWNER_MAX_OPEN_LINES = env.whole(environ, "OWNER_MAX_OPEN_LINES", 0)
OWNER_MAX_REQUESTS_PER_MINUTE = env.whole(environ, "OWNER_MAX_REQUESTS_PER_MINUTE", 0, most=1_000_000)
OWNER_MAX_STREAMS = env.whole(environ, "OWNER_MAX_STREAMS", 0)

INSTALLED_APPS = [
    "common",
    "batchserver",
    "files_api",
    "batches",
    "unfold",  # before the admin, whose templates it replaces, and behind ours, which extend them
    "django.contrib.admin.apps.SimpleAdminConfig",  # its pages are looked for by urls, and so by no worker
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "rest_framework",
    "drf_spectacular",
    # For `manage.py benchmark`. Nothing else needs it, and the image does not have it.
    *(["benchmarks"] if (BASE_DIR / "benchmarks").is_dir() else []),
]
MIDDLEWARE = [
    "common.middleware.OpenAIHeaders",
    "batchserver.browsers.HeadersForBrowsers",
    "common.middleware.KnownCharset",
    "batchserver.monitors.PagesForMonitors",  # before the figures of requests, in which no monitor counts
    "common.metrics.BeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "common.middleware.NoNul",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "common.metrics.AfterMiddleware",
]
ROOT_URLCONF = "batchserver.urls"
WSGI_APPLICATION = "batchserver.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

# Database
_database = env.database(environ, "DATABASE_URL") or {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": str(DATA_DIR / "db.sqlite3"),
    "CONN_MAX_AGE": 60,
    "CONN_HEALTH_CHECKS": True,
}
if _database["ENGINE"] == "django.db.backends.sqlite3":
    _database["OPTIONS"] = {
        # The write lock is taken at BEGIN: a deferred transaction that upgrades later fails whatever the timeout.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA journal_size_limit=67108864;",
    }
else:
    # They live longer than a transaction, for which a PgBouncer lends a connection (docs/deploy.md).
    _database["DISABLE_SERVER_SIDE_CURSORS"] = True
DATABASES = {"default": _database}

# Broker: messages only wake workers, so timeouts are short and a publish is tried twice; the tick repairs a loss. The
# path of a Unix socket is limited to 108 bytes: a deep DATA_DIR gets a short runtime directory of its own.
BROKER_DIR = DATA_DIR / "broker"
if len(str(BROKER_DIR / "valkey.sock")) > 100:
    _short = hashlib.sha256(str(DATA_DIR).encode()).hexdigest()[:16]
    BROKER_DIR = Path(env.text(environ, "TMPDIR", "/tmp")) / f"ollama-batch-server-{os.getuid()}-{_short}"
BROKER_SOCKET = BROKER_DIR / "valkey.sock"
EMBEDDED_BROKER = not env.text(environ, "CELERY_BROKER_URL")
CELERY_BROKER_URL = env.text(environ, "CELERY_BROKER_URL", f"redis+socket://{quote(str(BROKER_SOCKET))}")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
    # No message has to survive. With it a worker's loop asks Redis for each acknowledgement, and one that failed, since
    # Redis hung at that moment, counts as a message in hand for ever: the worker takes no other one.
    "ack_emulation": False,
}
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = False
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_DEFAULT_QUEUE = "control"
CELERY_TASK_ROUTES = {"batches.tasks.drive": {"queue": "inference"}}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# A prefetched message would wait behind a busy drive while another worker idles.
CELERY_WORKER_DISABLE_PREFETCH = True
CELERY_WORKER_CONSUMER = "batchserver.worker:Consumer"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False
CELERY_WORKER_SEND_TASK_EVENTS = False
# Those that are acknowledged late: there are none. Unset, each loss of the broker would log advice to programmers.
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = True
CELERY_TIMEZONE = "UTC"

# Files: on the disk, or in a bucket by django-storages with its own names. Options that are not set are left to it and
# to boto3, which find a key in the machine's role, for instance.
AWS_STORAGE_BUCKET_NAME = env.text(environ, "AWS_STORAGE_BUCKET_NAME")
AWS_S3_ENDPOINT_URL = env.bare_url(environ, "AWS_S3_ENDPOINT_URL")
AWS_ACCESS_KEY_ID = env.text(environ, "AWS_ACCESS_KEY_ID")
AWS_SECRET_ACCESS_KEY = env.text(environ, "AWS_SECRET_ACCESS_KEY")
AWS_LOCATION = env.text(environ, "AWS_LOCATION")
AWS_QUERYSTRING_EXPIRE = env.whole(environ, "AWS_QUERYSTRING_EXPIRE", 3600, least=1, most=604_800)
_bucket = {
    "bucket_name": AWS_STORAGE_BUCKET_NAME,
    "endpoint_url": AWS_S3_ENDPOINT_URL,
    "region_name": env.text(environ, "AWS_S3_REGION_NAME"),
    "access_key": AWS_ACCESS_KEY_ID,
    "secret_key": AWS_SECRET_ACCESS_KEY,
    "security_token": env.text(environ, "AWS_SESSION_TOKEN"),
    "location": AWS_LOCATION.strip("/"),
    "addressing_style": env.choice(environ, "AWS_S3_ADDRESSING_STYLE", "auto", "path", "virtual"),
    "verify": env.authorities(environ, "AWS_S3_VERIFY"),
    "querystring_expire": AWS_QUERYSTRING_EXPIRE,
}
if AWS_STORAGE_BUCKET_NAME and bool(AWS_ACCESS_KEY_ID) != bool(AWS_SECRET_ACCESS_KEY):
    raise ImproperlyConfigured("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: set both, or neither.")
# A download is a redirect to the bucket, by an address that is good for AWS_QUERYSTRING_EXPIRE seconds.
DOWNLOADS_BY_REDIRECT = env.switch(environ, "DOWNLOADS_BY_REDIRECT", False)
STORAGES: dict[str, dict[str, Any]] = {
    "default": {
        "BACKEND": "files_api.s3.storage.S3FileStorage",
        "OPTIONS": {name: value for name, value in _bucket.items() if value},
    }
    if AWS_STORAGE_BUCKET_NAME
    else {"BACKEND": "files_api.storage.DurableFileSystemStorage", "OPTIONS": {"location": str(FILES_DIR)}},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
FILE_UPLOAD_HANDLERS = ["files_api.upload_handler.MeasuringUploadHandler"]
FILE_UPLOAD_PERMISSIONS = 0o600
DATA_UPLOAD_MAX_MEMORY_SIZE = 2**20  # JSON bodies and form fields; file parts have limits of their own
DATA_UPLOAD_MAX_NUMBER_FILES = 1
STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True  # the admin's own files, straight from the packages: no collectstatic step

UNFOLD = admin_theme.OPTIONS
LOGIN_REDIRECT_URL = "admin:index"

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["common.authentication.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["common.authentication.HasScope"],
    "DEFAULT_THROTTLE_CLASSES": ["common.throttling.RequestsPerMinute"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["common.negotiation.JsonParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "common.negotiation.AlwaysJson",
    "EXCEPTION_HANDLER": "common.exception_handler.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "COMPACT_JSON": True,
    "STRICT_JSON": True,
    "UNICODE_JSON": False,  # half a surrogate pair that is echoed can be encoded
    "DEFAULT_METADATA_CLASS": None,  # OPTIONS is not part of the API
    "DEFAULT_SCHEMA_CLASS": "common.openapi.ApiSchema",
}
# The OpenAPI document. Docstrings are for readers of the code and stay out of it.
SPECTACULAR_SETTINGS = {
    "TITLE": "Ollama Batch Server",
    "DESCRIPTION": "The OpenAI Batch API in front of Ollama.",
    "VERSION": VERSION,
    "OAS_VERSION": "3.1.0",
    "SCHEMA_PATH_PREFIX": "/v1",
    "COMPONENT_SPLIT_REQUEST": True,
    "DISABLE_DOCSTRING_DESCRIPTIONS": True,
    "POSTPROCESSING_HOOKS": [],
    "SERVE_INCLUDE_SCHEMA": False,
}

DEFAULT_EXCEPTION_REPORTER_FILTER = "batchserver.masking.SecretsMasked"

USE_TZ = True
LANGUAGE_CODE = "en-us"
USE_I18N = False
FORMAT_MODULE_PATH = "batchserver.formats"


def _is_bug(record: logging.LogRecord) -> bool:
    """A 500 without an exception is a model server's, handed on as it came."""
    return not hasattr(record, "status_code") or (record.status_code == 500 and record.exc_info is not None)


def _without_a_childs_traceback(record: logging.LogRecord) -> bool:
    """A child that was killed leaves no traceback; the one that Celery prints is of the main process, which saw it."""
    error = record.exc_info[1] if record.exc_info else None
    # As it comes from a child's pool, it is wrapped together with its traceback.
    if type(getattr(error, "exc", error)).__name__ == "WorkerLostError":
        record.exc_info = None
    return True


# Few: each is a line of /metrics.
PROMETHEUS_LATENCY_BUCKETS = (0.05, 0.25, 1.0, 5.0, 30.0, float("inf"))

# Lines for people, or one JSON object a line.
LOG_FORMAT = env.choice(environ, "LOG_FORMAT", "line", "json")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"()": "common.middleware.LineFormatter", **supervisor.LINE},
        "json": {"()": "batchserver.supervisor.JsonFormatter"},
    },
    # A 503 or 507 is an answer on purpose; only a 500 may be a bug.
    "filters": {
        "bugs": {"()": "django.utils.log.CallbackFilter", "callback": _is_bug},
        "lost_child": {"()": "django.utils.log.CallbackFilter", "callback": _without_a_childs_traceback},
        "request_id": {"()": "common.middleware.RequestIdFilter"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT, "filters": ["request_id"]}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        "batchserver": {"level": "INFO"},
        "batches": {"level": "INFO"},
        "files_api": {"level": "INFO"},
        "common": {"level": "INFO"},
        # Django mails admins and prints every 4xx by default; a 4xx concerns the client.
        "django": {"handlers": [], "level": "WARNING"},
        "django.request": {"level": "ERROR", "filters": ["bugs"]},
        "celery.worker.request": {"filters": ["lost_child"]},
        # A worker that stops hands its unread messages back; the tick would repair their loss anyway.
        "kombu.transport.virtual.base": {"level": "ERROR"},
        "django.security.DisallowedHost": {"handlers": [], "level": "CRITICAL"},
    },
}
