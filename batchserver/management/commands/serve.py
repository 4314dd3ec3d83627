"""`manage.py serve`: the whole server on one machine, or the parts of one that `--only` names."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection

from batches import backends
from batchserver import embedded_backend, first_start, joining, locks, parts, serve_options
from batchserver.serve_options import CONTROL, INFERENCE, WEB
from batchserver.supervisor import NotReady, Supervisor

PORT_WAIT_S = 10.0


class Command(BaseCommand):
    help = serve_options.DESCRIPTION

    # Django's own; whoever mistypes an option is shown those that a server has.
    suppressed_base_arguments = {  # noqa: RUF012
        *("--verbosity", "--settings", "--pythonpath", "--traceback", "--no-color", "--force-color")
    }

    def add_arguments(self, parser: CommandParser) -> None:
        serve_options.add_arguments(parser)  # what they say is in the settings by now

    def handle(self, *args: Any, **options: Any) -> None:
        supervisor = Supervisor(own_log=_own_log())
        supervisor.listen()
        if options["parent"] and not supervisor.stop_with(options["parent"]):
            raise CommandError("The process that started this server has ended.")
        first_start.make_directories()
        chosen = serve_options.chosen_parts(options["only"])
        lock = self._lock(chosen)
        if WEB in chosen:
            self._wait_for_port()
        if INFERENCE in chosen:
            self._install_embedded_backend()
        if CONTROL in chosen:
            self._prepare(with_admin=not options["no_admin"])
        else:
            joining.check(chosen, beside_server=locks.is_taken(settings.DATA_DIR / locks.SERVER))
            connection.close()
        parts.load(chosen)
        supervisor.children = parts.children(chosen)
        try:
            supervisor.start()
            if not supervisor.is_stopping:
                self._greet(chosen)
                supervisor.be_woken()
                supervisor.watch()
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

    def _lock(self, chosen: Sequence[str]) -> IO[str]:
        """One server for each DATA_DIR, and beside it each set of other parts once for each model server."""
        lock = locks.take(settings.DATA_DIR / _lock_name(chosen))
        if lock is None:
            what = "A server is" if CONTROL in chosen else f"{' and '.join(chosen)} of a server {_is_or_are(chosen)}"
            where = f" for {settings.BACKEND_URL}" if INFERENCE in chosen and CONTROL not in chosen else ""
            raise CommandError(f"{what} running already with DATA_DIR={settings.DATA_DIR}{where}.")
        return lock

    def _wait_for_port(self) -> None:
        """The children of a killed server may keep the port for a moment."""
        ends_at = time.monotonic() + PORT_WAIT_S
        told = False
        while not parts.is_free(settings.HOST, settings.PORT):
            if time.monotonic() > ends_at:
                raise CommandError(
                    f"Port {settings.PORT} on {settings.HOST} is in use by another program. Set PORT to a free one."
                )
            if not told:
                self.stdout.write(f"Waiting for port {settings.PORT} to become free…")
                told = True
            time.sleep(0.2)

    def _greet(self, chosen: Sequence[str]) -> None:
        is_whole = chosen == serve_options.PARTS
        what = "Ollama Batch Server" if is_whole else f"Ollama Batch Server ({', '.join(chosen)})"
        lines = [f"{what} is up. Ctrl-C stops it."]
        if WEB in chosen:
            host = "127.0.0.1" if settings.HOST in ("0.0.0.0", "::") else settings.HOST
            address = f"http://{f'[{host}]' if ':' in host else host}:{settings.PORT}"
            lines += [f"  API      {address}/v1", f"  Admin    {address}/admin/"]
        if INFERENCE in chosen:
            lines.append(f"  Backend  {_backend_line()}")
            if WEB not in chosen and (told := joining.unreachable_backend()):
                lines.append(f"  Takes    {told}")
        if not is_whole:
            lines += [f"  {name:8} {place}" for name, place in joining.described()]
        lines.append(f"  Data     {settings.DATA_DIR}")
        if WEB in chosen and (told := first_start.who_may_call()):
            lines.append(f"  Callers  {told}")
        self.stdout.write("\n".join(lines))
        connection.close()
        self.stdout.flush()


def _lock_name(chosen: Sequence[str]) -> str:
    if CONTROL in chosen:
        return locks.SERVER
    names = list(chosen)
    if INFERENCE in chosen:
        names.append(hashlib.sha256(settings.BACKEND_NAME.encode()).hexdigest()[:12])
    return f"serve-{'-'.join(names)}.lock"


def _is_or_are(chosen: Sequence[str]) -> str:
    return "is" if len(chosen) == 1 else "are"


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
