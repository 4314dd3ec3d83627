"""Loaded before Django: tests have a state directory of their own and see nothing of the developer's environment."""

import atexit
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

# Every setting, and what else decides how clients and servers behave.
ROOT = Path(__file__).resolve().parent.parent
SETTINGS = re.findall(r"^# ([A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
PROXIES = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"]
OTHERS = ["FAILPOINTS", "OLLAMA_BATCH_SERVER", "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_WEBHOOK_SECRET", *PROXIES]

for name in SETTINGS + OTHERS:
    os.environ.pop(name, None)

# The workers of pytest-xdist have theirs in that of the process that starts them, which alone ends in order.
STATE = Path(tempfile.mkdtemp(prefix="batch-tests-", dir=os.environ.get("TEST_STATE")))
atexit.register(shutil.rmtree, STATE, ignore_errors=True)
SHARED_STATE = Path(os.environ.setdefault("TEST_STATE", str(STATE)))  # of all workers of one run


def start_postgres(directory: Path) -> str:
    """A real Postgres that stops with this process; its URL."""
    with warnings.catch_warnings(action="ignore"):
        import pgserver

    server = pgserver.get_server(directory, cleanup_mode="stop")
    # The machine does not fail under a test; without this, emptying the tables takes half of the time of each test.
    for name in "fsync", "full_page_writes":
        server.psql(f"ALTER SYSTEM SET {name} = off")
    server.psql("SELECT pg_reload_conf()")
    url: str = server.get_uri()
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
os.environ["XDG_STATE_HOME"] = str(STATE / "state")  # what the command line remembers of earlier runs
# In-process tests look at rows; messages go to a broker inside the process that nobody reads. The tests of whole
# servers (tests/stack.py) have the real one.
os.environ["CELERY_BROKER_URL"] = "memory://"
# Port 9 is `discard`: no test finds a model server there by accident.
os.environ["OLLAMA_BASE_URL"] = "http://127.0.0.1:9"
