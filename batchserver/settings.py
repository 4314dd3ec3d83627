"""Every knob, with its unit in its name. The only reader of the environment and of `.env`.

A value that cannot be used raises ImproperlyConfigured naming the variable, the value and what is allowed.
"""

import base64
import hashlib
import logging
import os
import re
import secrets
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo

import dj_database_url
import django_stubs_ext
import tzlocal
from django.core.exceptions import ImproperlyConfigured
from dotenv import load_dotenv

from batches.quiet_hours import QuietHours
from batchserver.version import read_version

django_stubs_ext.monkeypatch()  # lets admin.ModelAdmin[Batch] and the like stand in the code, for mypy

BASE_DIR = Path(__file__).resolve().parent.parent

# The real environment wins over the file.
load_dotenv(os.environ.get("ENV_FILE") or BASE_DIR / ".env", override=False)


def _text(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def _whole(name: str, default: int, *, least: int = 0, most: int = 2**63 - 1) -> int:
    value = _text(name)
    if not value:
        return default
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise ImproperlyConfigured(f"{name}={value!r}: expected a whole number from {least} to {most}.")
    return number


def _seconds(name: str, *, may_be_0: bool = False) -> float | None:
    value = _text(name)
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 10**7 or (number == 0 and not may_be_0):
        allowed = "of seconds, 0 or above" if may_be_0 else "of seconds above 0"
        raise ImproperlyConfigured(f"{name}={value!r}: expected a number {allowed}.")
    return number


def _switch(name: str, default: bool) -> bool:
    value = _text(name)
    if not value:
        return default
    if value not in ("True", "False"):
        raise ImproperlyConfigured(f"{name}={value!r}: expected True or False.")
    return value == "True"


def _url(name: str, default: str) -> str:
    value = _text(name, default).rstrip("/")
    _check_address(f"{name}={value!r}", value, "http://localhost:11434")
    if "@" in urlsplit(value).netloc:
        # The address is shown by /health and /metrics.
        raise ImproperlyConfigured(
            f"{name} holds a user or a password: put what the server asks for into BACKEND_API_KEY."
        )
    return value


def _check_address(what: str, value: str, example: str) -> None:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ImproperlyConfigured(f"{what}: expected an address like {example}.")


def _check_webhook_secret(value: str) -> None:
    """Its error does not hold the value. Without `whsec_`, libraries differ on what the key is."""
    how = "make one with: echo whsec_$(openssl rand -base64 32)"
    if not value:
        raise ImproperlyConfigured(f"WEBHOOK_SECRET is not set, and WEBHOOK_URL needs it; {how}")
    prefix, _, encoded = value.partition("_")
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:
        key = b""
    if prefix != "whsec" or len(key) < 24:
        raise ImproperlyConfigured(f"WEBHOOK_SECRET: expected whsec_ and at least 24 bytes in base64; {how}")


def _pairs(name: str) -> dict[str, str]:
    pairs = {}
    for item in filter(None, (part.strip() for part in _text(name).split(","))):
        alias, equals, model = (part.strip() for part in item.partition("="))
        if not (alias and equals and model):
            raise ImproperlyConfigured(f"{name}: {item!r} is not of the form alias=model.")
        pairs[alias] = model
    return pairs


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ValueError, LookupError, OSError):  # a path that leads out, an unknown name, a directory
        return False
    return True


def _zone(name: str) -> str:
    if value := _text(name):
        if not _is_zone(value):
            raise ImproperlyConfigured(f"{name}={value!r}: expected a time zone's IANA name, such as Europe/Berlin.")
        return value
    with suppress(LookupError, ValueError, OSError):  # the machine contradicts itself, or says nothing that is a zone
        if (own := tzlocal.get_localzone_name()) and _is_zone(own):
            return own
    return "UTC"


def _quiet_hours(name: str, zone: str) -> QuietHours:
    value = _text(name)
    try:
        return QuietHours(value, ZoneInfo(zone))
    except ValueError as error:
        raise ImproperlyConfigured(
            f"{name}={value!r}: {error}. Expected hours of the day such as 07:00-22:00, past midnight too, several "
            "separated by commas, and not the whole day."
        ) from error


def _failpoints() -> dict[str, tuple[str, int]]:
    """Name -> what is done there and at which time; see batchserver/failpoints.py."""
    failpoints = {}
    for item in filter(None, (part.strip() for part in _text("FAILPOINTS").split(","))):
        fits = re.fullmatch(r"(\w+):(kill9|kill9_parent|stop|raise|sleep=\d+(?:\.\d+)?)(?:@([1-9]\d*))?", item)
        if fits is None:
            raise ImproperlyConfigured(f"FAILPOINTS: {item!r} is not of the form name:action or name:action@nth.")
        failpoints[fits[1]] = (fits[2], int(fits[3] or 1))
    return failpoints


# Where we listen
HOST = _text("HOST", "127.0.0.1")
PORT = _whole("PORT", 4080, least=1, most=65535)
# One process, so that /metrics has one set of counters; threads, so that a slow upload holds up nobody.
WEB_THREADS = 16

# State
DATA_DIR = (BASE_DIR / Path(_text("DATA_DIR", "data")).expanduser()).resolve()
FILES_DIR = DATA_DIR / "files"
UPLOAD_DIR = FILES_DIR / ".incoming"  # same file system as FILES_DIR: a finished upload is renamed, never copied
try:
    for _directory in (DATA_DIR, FILES_DIR, UPLOAD_DIR):
        _directory.mkdir(mode=0o700, parents=True, exist_ok=True)
except OSError as error:
    raise ImproperlyConfigured(f"DATA_DIR={str(DATA_DIR)!r} cannot be used: {error.strerror}.") from error


def _secret_key() -> str:
    """SECRET_KEY from the environment, else from DATA_DIR, made there at the first start and readable by us alone."""
    if key := _text("SECRET_KEY"):
        return key
    path = DATA_DIR / "secret_key"
    if not path.exists():
        # Written whole and then linked: of two first starts one wins, and neither reads half a key.
        descriptor, temporary = tempfile.mkstemp(dir=DATA_DIR, prefix=".secret_key.")
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(50))
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
    return path.read_text().strip()


SECRET_KEY = _secret_key()
DEBUG = False


def _own_names() -> list[str]:
    """This host's name and addresses: how others on the network call a server that listens beyond loopback."""
    name = socket.gethostname()
    names = [name, f"{name}.local"]
    with suppress(OSError):
        names += socket.gethostbyname_ex(name)[2]
    # The address from which a packet would leave for elsewhere; connecting a datagram socket sends none.
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        names.append(probe.getsockname()[0])
    return names


def _allowed_hosts() -> list[str]:
    if named := [host.strip() for host in _text("ALLOWED_HOSTS").split(",") if host.strip()]:
        return named
    hosts = ["localhost", "127.0.0.1", "[::1]"]
    if HOST in ("0.0.0.0", "::"):
        return hosts + _own_names()
    return hosts if HOST in ("localhost", "127.0.0.1", "::1") else [*hosts, f"[{HOST}]" if ":" in HOST else HOST]


ALLOWED_HOSTS = _allowed_hosts()
CSRF_TRUSTED_ORIGINS = [origin.strip() for origin in _text("CSRF_TRUSTED_ORIGINS").split(",") if origin.strip()]
# Behind a TLS proxy: cookies by HTTPS alone, plain HTTP redirected, HSTS. On loopback there is no TLS to insist on.
BEHIND_TLS = _switch("BEHIND_TLS", False)
if BEHIND_TLS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    SECURE_REDIRECT_EXEMPT = [r"^health$"]
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    SECURE_HSTS_SECONDS = 31_536_000
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
X_FRAME_OPTIONS = "DENY"

# The model server
EMBEDDED_BACKEND_PORT = _whole("EMBEDDED_BACKEND_PORT", min(PORT + 1, 65535), least=1, most=65535)
EMBEDDED_BACKEND_MODEL = "smollm2:135m"
EMBEDDED_BACKEND = _text("BACKEND_URL") == "embedded"
if EMBEDDED_BACKEND:
    BACKEND_URL = f"http://127.0.0.1:{EMBEDDED_BACKEND_PORT}"
else:
    BACKEND_URL = _url("BACKEND_URL", _url("OLLAMA_BASE_URL", "http://localhost:11434"))
BACKEND_IS_LOCAL = urlsplit(BACKEND_URL).hostname in ("localhost", "127.0.0.1", "::1")
BACKEND_IS_OLLAMA = not _text("BACKEND_URL")  # as far as the configuration says; the server itself is asked too
# The backend's row is shared by every worker that drives the same server; "localhost" on two machines is two servers.
BACKEND_NAME = f"{BACKEND_URL} on {socket.gethostname()}" if BACKEND_IS_LOCAL else BACKEND_URL
BACKEND_API_KEY = _text("BACKEND_API_KEY")
BACKEND_PARALLEL = _whole("BACKEND_PARALLEL", 0, least=1, most=1024) or None  # None: what the server says of itself
MODEL_NAME = _text("MODEL_NAME", EMBEDDED_BACKEND_MODEL if EMBEDDED_BACKEND else "gemma3:12b")
# "*" stands for every name that has no alias of its own.
MODEL_ALIASES = {"*": EMBEDDED_BACKEND_MODEL} if EMBEDDED_BACKEND else _pairs("MODEL_ALIASES")

# `manage.py run_batch` is a client of the API and names its key as the official clients do.
CLIENT_API_KEY = _text("OPENAI_API_KEY")

# Execution
MAX_CONCURRENT_BATCHES = _whole("MAX_CONCURRENT_BATCHES", 1, least=1, most=64)
LINE_TIMEOUT_S = _seconds("LINE_TIMEOUT_S")  # None: from the measured speed (batches/pace.py)
MODEL_LOAD_TIMEOUT_S = _seconds("MODEL_LOAD_TIMEOUT_S") or 900.0
MODEL_PATIENCE_S = _seconds("MODEL_PATIENCE_S") or 600.0
LINE_MAX_ATTEMPTS = _whole("LINE_MAX_ATTEMPTS", 3, least=1, most=100)
ANSWER_ONCE_ACROSS_BATCHES = _switch("ANSWER_ONCE_ACROSS_BATCHES", False)
SHUTDOWN_GRACE_S = _seconds("SHUTDOWN_GRACE_S") or 5.0
_interactive_hold_s = _seconds("INTERACTIVE_HOLD_S", may_be_0=True)
INTERACTIVE_HOLD_S = 10.0 if _interactive_hold_s is None else _interactive_hold_s

# People's clock: Django sets the process's own by TIME_ZONE. The API and the database have moments, not hours.
TIME_ZONE = _zone("TIME_ZONE")
QUIET_HOURS = _quiet_hours("QUIET_HOURS", TIME_ZONE)

# Where the ends of batches are told. The path stays as it was typed: a slash at its end can mean something there.
WEBHOOK_URL = _text("WEBHOOK_URL")
WEBHOOK_SECRET = _text("WEBHOOK_SECRET")
if WEBHOOK_URL:
    _check_address("WEBHOOK_URL (not shown, it may hold a key)", WEBHOOK_URL, "https://example.org/hook")
    _check_webhook_secret(WEBHOOK_SECRET)

# A testing aid, for docs/reliability.md; nothing to run a server with.
FAILPOINTS = _failpoints()

# Limits
MAX_FILE_BYTES = _whole("MAX_FILE_BYTES", 8 * 2**30, least=1)
MAX_BATCH_LINES = _whole("MAX_BATCH_LINES", 1_000_000, least=1)
MAX_LINE_BYTES = _whole("MAX_LINE_BYTES", 16 * 2**20, least=1024)
MAX_REPLY_BYTES = _whole("MAX_REPLY_BYTES", 64 * 2**20, least=1024)
MIN_FREE_BYTES = _whole("MIN_FREE_BYTES", 512 * 2**20)

INSTALLED_APPS = [
    "batchserver",
    "files_api",
    "batches",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "django_prometheus",
]
MIDDLEWARE = [
    "batchserver.middleware.OpenAIHeaders",
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
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

# Database. The URL's own options (?sslmode=…) are kept.
DATABASE_URL = _text("DATABASE_URL")
try:
    _database: dict[str, Any] = dict(
        dj_database_url.parse(DATABASE_URL or "sqlite://", conn_max_age=60, conn_health_checks=True)
    )
except ValueError as error:
    raise ImproperlyConfigured(
        "DATABASE_URL: expected sqlite:///path or postgres://user:password@host/name."
    ) from error
if not DATABASE_URL:
    _database["NAME"] = str(DATA_DIR / "db.sqlite3")  # not by a URL: a path may hold what means something there
if _database["ENGINE"] == "django.db.backends.sqlite3":
    _database["OPTIONS"] = {
        # The write lock is taken at BEGIN: a deferred transaction that upgrades later fails whatever the timeout.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA journal_size_limit=67108864;",
    }
DATABASES = {"default": _database}

# Broker: messages only wake somebody up, so timeouts are short and a publish is tried twice; the tick repairs a loss.
# A unix socket's path is limited to 108 bytes: a deep DATA_DIR gets a short runtime directory of its own.
BROKER_DIR = DATA_DIR / "broker"
if len(str(BROKER_DIR / "valkey.sock")) > 100:
    _short = hashlib.sha256(str(DATA_DIR).encode()).hexdigest()[:16]
    BROKER_DIR = Path(tempfile.gettempdir()) / f"ollama-batch-server-{os.getuid()}-{_short}"
BROKER_SOCKET = BROKER_DIR / "valkey.sock"
EMBEDDED_BROKER = not _text("CELERY_BROKER_URL")
CELERY_BROKER_URL = _text("CELERY_BROKER_URL", f"redis+socket://{quote(str(BROKER_SOCKET))}")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_timeout": 5, "socket_connect_timeout": 2, "socket_keepalive": True}
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
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_TIMEZONE = "UTC"

# Files
STORAGES = {
    "default": {"BACKEND": "files_api.storage.DurableFileSystemStorage", "OPTIONS": {"location": str(FILES_DIR)}},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
FILE_UPLOAD_HANDLERS = ["files_api.upload_handler.MeasuringUploadHandler"]
FILE_UPLOAD_TEMP_DIR = str(UPLOAD_DIR)
FILE_UPLOAD_PERMISSIONS = 0o600
DATA_UPLOAD_MAX_MEMORY_SIZE = 2**20  # JSON bodies and form fields; file parts have limits of their own
DATA_UPLOAD_MAX_NUMBER_FILES = 1
STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True  # the admin's own files, straight from the packages: no collectstatic step

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["batchserver.api.ApiKeyAuthentication"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "batchserver.api.AlwaysJson",
    "EXCEPTION_HANDLER": "batchserver.api.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "COMPACT_JSON": True,
    "STRICT_JSON": True,
    "UNICODE_JSON": False,  # whatever is echoed can be encoded
    "DEFAULT_METADATA_CLASS": None,  # OPTIONS is not part of the API
    "DEFAULT_SCHEMA_CLASS": "batchserver.openapi.ApiSchema",
}
# The OpenAPI document. Docstrings are for readers of the code and stay out of it.
SPECTACULAR_SETTINGS = {
    "TITLE": "Ollama Batch Server",
    "DESCRIPTION": "The OpenAI Batch API in front of Ollama.",
    "VERSION": read_version(),
    "OAS_VERSION": "3.1.0",
    "SCHEMA_PATH_PREFIX": "/v1",
    "COMPONENT_SPLIT_REQUEST": True,
    "DISABLE_DOCSTRING_DESCRIPTIONS": True,
    "POSTPROCESSING_HOOKS": [],
    "SERVE_INCLUDE_SCHEMA": False,
}

USE_TZ = True
LANGUAGE_CODE = "en-us"
USE_I18N = False


def _is_bug(record: logging.LogRecord) -> bool:
    return getattr(record, "status_code", 500) == 500


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "format": "%(asctime)s %(levelname)s %(name)s: %(message)s%(request_id)s",
            "datefmt": "%Y-%m-%d %H:%M:%S",
        }
    },
    # A 503 or 507 is an answer that we chose; only a 500 is a bug.
    "filters": {
        "bugs": {"()": "django.utils.log.CallbackFilter", "callback": _is_bug},
        "request_id": {"()": "batchserver.middleware.RequestIdFilter"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["request_id"]}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        "batchserver": {"level": "INFO"},
        "batches": {"level": "INFO"},
        "files_api": {"level": "INFO"},
        # Django mails admins and prints every 4xx by default; a 4xx is the client's news, not ours.
        "django": {"handlers": [], "level": "WARNING"},
        "django.request": {"level": "ERROR", "filters": ["bugs"]},
        # A worker that stops hands its unread messages back; the tick would repair their loss anyway.
        "kombu.transport.virtual.base": {"level": "ERROR"},
        "django.security.DisallowedHost": {"handlers": [], "level": "CRITICAL"},
    },
}
