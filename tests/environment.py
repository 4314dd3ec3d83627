"""Loaded before Django: tests have a state directory of their own and see nothing of the developer's environment."""

import atexit
import os
import shutil
import tempfile
import warnings
from pathlib import Path

SCRUBBED = """
    ALLOWED_HOSTS ANSWER_ONCE_ACROSS_BATCHES BACKEND_API_KEY BACKEND_PARALLEL BACKEND_URL BEHIND_TLS CELERY_BROKER_URL
    CSRF_TRUSTED_ORIGINS DATABASE_URL EMBEDDED_BACKEND_PORT FAILPOINTS HOST http_proxy HTTP_PROXY https_proxy
    HTTPS_PROXY INTERACTIVE_HOLD_S LINE_MAX_ATTEMPTS LINE_TIMEOUT_S MODEL_PATIENCE_S
    MAX_BATCH_LINES MAX_CONCURRENT_BATCHES MAX_FILE_BYTES MAX_LINE_BYTES MAX_REPLY_BYTES MODEL_ALIASES
    MODEL_LOAD_TIMEOUT_S MODEL_NAME OLLAMA_BASE_URL OPENAI_API_KEY OPENAI_BASE_URL OPENAI_WEBHOOK_SECRET PORT
    QUIET_HOURS SECRET_KEY SHUTDOWN_GRACE_S TIME_ZONE WEBHOOK_SECRET WEBHOOK_URL
"""

for name in SCRUBBED.split():
    os.environ.pop(name, None)

# The workers of pytest-xdist have theirs in that of the process that starts them, which alone ends in order.
STATE = Path(tempfile.mkdtemp(prefix="batch-tests-", dir=os.environ.get("TEST_STATE")))
atexit.register(shutil.rmtree, STATE, ignore_errors=True)
os.environ.setdefault("TEST_STATE", str(STATE))


def start_postgres(directory: Path) -> str:
    """A real Postgres that stops with this process; its URL."""
    with warnings.catch_warnings(action="ignore"):
        import pgserver

    url: str = pgserver.get_server(directory, cleanup_mode="stop").get_uri()
    return url


CI = bool(os.environ.get("CI"))
DATABASE = os.environ.get("TEST_DATABASE", "sqlite")
if DATABASE == "postgres":
    # Likewise: they share the server, each with a database of its own.
    if "TEST_DATABASE_URL" not in os.environ:
        os.environ["TEST_DATABASE_URL"] = start_postgres(STATE / "postgres")
    os.environ["DATABASE_URL"] = os.environ["TEST_DATABASE_URL"]

os.environ["ENV_FILE"] = os.devnull
os.environ["MIN_FREE_BYTES"] = "0"  # a test machine may have little
os.environ["DATA_DIR"] = str(STATE)
# In-process tests look at rows; messages go to a broker inside the process that nobody reads. The tests of whole
# servers (tests/stack.py) have the real one.
os.environ["CELERY_BROKER_URL"] = "memory://"
# Port 9 is `discard`: no test finds a model server there by accident.
os.environ["OLLAMA_BASE_URL"] = "http://127.0.0.1:9"
