"""Importing settings only reads; what the first start needs is made by the first start."""

import os
import stat
import subprocess
import sys

import pytest

from batchserver import kept
from tests.conftest import at_once
from tests.stack import ROOT

# What settings do when they are imported shows in a process of its own.
pytestmark = pytest.mark.usefixtures("processes")

# What touches the machine, as Python tells an audit hook. `open` is told of reads too: its flags say which it is.
WATCHED = """
import os, sys
seen = []
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def watch(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & CHANGES:
        seen.append((event, arguments[0]))
    elif event.startswith(("socket.", "subprocess.", "shutil.", "tempfile.")):
        seen.append((event, arguments))
    elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.system"):
        seen.append((event, arguments))

sys.addaudithook(watch)
"""
PROGRAM = WATCHED + "{}\nfor event in seen: print(*event)\n"


def touched(program, **environment):
    """What the program does to the machine, a line each."""
    # -B: compiled modules are Python's own affair.
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM.format(program)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HOST": "0.0.0.0"},
        {"DATA_DIR": "/nowhere/" + "deep" * 30},
        {"BACKEND_URL": "embedded", "HOST": "192.0.2.7"},
    ],
    ids=["defaults", "open to the network", "a broker's socket elsewhere", "embedded"],
)
def test_importing_settings_touches_nothing(tmp_path, environment):
    data = tmp_path / "data"
    given = {"DATA_DIR": str(data), "CELERY_BROKER_URL": "", "OLLAMA_BASE_URL": ""} | environment
    assert touched("import batchserver.settings", **given) == []
    assert not data.exists()


@pytest.mark.parametrize(
    "program",
    [
        *("import os; os.mkdir(os.environ['DATA_DIR'])", "open(os.environ['DATA_DIR'], 'w')"),
        *("import socket; socket.gethostname()", "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"),
        "import tempfile; tempfile.gettempdir()",
    ],
)
def test_the_watch_sees_what_settings_must_not_do(tmp_path, program):
    assert touched(program, DATA_DIR=str(tmp_path / "data"))


def manage(data, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"DATA_DIR": str(data)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_checks_need_no_first_start_and_make_nothing(tmp_path):
    data = tmp_path / "data"
    for command in (["check"], ["makemigrations", "--check", "--dry-run"], ["help"]):
        done = manage(data, *command)
        assert done.returncode == 0, done.stderr
    assert not data.exists()


def test_what_needs_the_tables_says_how_they_are_made(tmp_path):
    done = manage(tmp_path / "data", "create_api_key", "me")
    assert done.returncode == 1
    assert done.stderr.startswith("CommandError: The database cannot be used: ")
    assert done.stderr.endswith("If it was never set up: python manage.py setup\n")
    assert not (tmp_path / "data").exists()


def test_tables_can_be_made_where_nothing_was_started_yet(tmp_path):
    data = tmp_path / "data"
    assert manage(data, "migrate").returncode == 0
    assert manage(data, "create_api_key", "me").stdout.startswith("sk-")


def test_the_first_start_makes_all_for_us_alone_and_the_next_one_nothing(tmp_path):
    data = tmp_path / "above" / "data"
    before = os.umask(0)
    try:
        first = manage(data, "setup")
    finally:
        os.umask(before)
    assert "password" in first.stdout, first.stderr
    modes = {str(path.relative_to(data)): oct(stat.S_IMODE(path.stat().st_mode)) for path in [data, *data.rglob("*")]}
    directories = {".": "0o700", "files": "0o700", "files/.incoming": "0o700"}
    ours = ["secret_key", "instance_id", "db.sqlite3", "files/storage_id"]
    assert modes == directories | dict.fromkeys(ours, "0o600")
    key = (data / "secret_key").read_text()

    second = manage(data, "setup")
    assert second.stdout == "The database is up to date.\n"
    assert (data / "secret_key").read_text() == key
    assert manage(data, "create_api_key", "me").stdout.startswith("sk-")


def test_whoever_needs_the_key_first_makes_the_one_that_lasts(tmp_path):
    """Never a throwaway one: what it signs must still hold after the first start."""
    data = tmp_path / "data"
    keys = set()
    say = "from django.conf import settings; print(settings.SECRET_KEY)"
    for _ in range(2):
        done = manage(data, "shell", "--no-imports", "--command", say)
        assert done.returncode == 0, done.stderr
        keys.add(done.stdout.strip())
    manage(data, "setup")
    assert keys == {(data / "secret_key").read_text()}
    assert len(keys.pop()) > 50


def test_a_key_of_the_environment_is_used_and_none_is_kept(tmp_path):
    data = tmp_path / "data"
    assert manage(data, "setup", SECRET_KEY="from the environment" * 3).returncode == 0
    assert not (data / "secret_key").exists()


def test_two_first_starts_get_the_same_key(tmp_path):
    data = tmp_path / "data"
    assert len(set(at_once(8, lambda: kept.text(data, kept.SECRET_KEY)))) == 1
    assert [path.name for path in data.iterdir()] == ["secret_key"]


def test_beyond_loopback_the_web_answers_to_this_hosts_own_names_too(tmp_path):
    """They take sockets to be found, so it is the web process that looks for them."""
    program = (
        "import socket, batchserver.wsgi; from django.conf import settings;"
        "assert socket.gethostname() in settings.ALLOWED_HOSTS"
    )

    def ask(**environment):
        command = [sys.executable, "-c", program]
        given = os.environ | {"DATA_DIR": str(tmp_path / "data")} | environment
        return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False).returncode

    assert ask(HOST="0.0.0.0") == 0
    assert ask(HOST="127.0.0.1") == 1
    assert ask(HOST="0.0.0.0", ALLOWED_HOSTS="batch.example.org") == 1


def test_on_postgres_no_cursor_outlives_a_transaction():
    """Between transactions a PgBouncer may lend the connection to others."""
    program = "from batchserver import settings; print(settings.DATABASES['default']['DISABLE_SERVER_SIDE_CURSORS'])"
    environment = os.environ | {"DATABASE_URL": "postgres://user@host/name"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
