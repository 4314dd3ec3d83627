"""Keeps the processes of one server alive: started in order, restarted with backoff, stopped in order.

Nothing here knows Django, or what the commands of the processes do. Once all is started, the process becomes this file
alone (`Supervisor.become_alone`), which takes a sixth of the memory that `manage.py serve` takes.
"""

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

logger = logging.getLogger("batchserver.supervisor")  # as a program of its own this file is __main__

FIRST_BACKOFF_S, MOST_BACKOFF_S = 0.5, 30.0
STEADY_AFTER_S = 20.0  # after this time alive, the backoff of a child begins anew
FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # killed from outside: it need not die again
LOOK_EVERY_S = 0.2
STOPS = (signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1


class Adopted:
    """A child of this process that was started before the process became this file: what is used of a Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        return self._wait(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


@dataclass
class Child:
    """A process to keep alive. `ready` is asked before the next one starts; it may take `grace_s` to stop.

    A child that `serves_others` is stopped last: the other processes need it while they finish.
    """

    name: str
    command: list[str]
    grace_s: float = 10.0
    serves_others: bool = False
    ready: Callable[[], bool] = lambda: True
    environment: dict[str, str] = field(default_factory=dict)
    directory: Path | None = None
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    backoff_s: float = FIRST_BACKOFF_S

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        output = self.log.open("ab") if self.log else None
        try:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A process group of its own: Ctrl-C in the terminal reaches us alone, and we stop children in order.
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        finally:
            if output is not None:
                output.close()
        self.started_at = time.monotonic()

    def signal(self, number: int) -> None:
        if self.process is not None and self.is_alive:
            self.process.send_signal(number)

    def described(self) -> dict[str, Any]:
        """As JSON, for `adopted`: without `ready`, which is asked at the first start alone."""
        kept = ("name", "command", "grace_s", "serves_others", "environment", "started_at")
        paths = {name: path and str(path) for name, path in (("directory", self.directory), ("log", self.log))}
        pid = self.process.pid if self.process is not None and self.is_alive else None
        return {name: getattr(self, name) for name in kept} | paths | {"pid": pid}

    @classmethod
    def adopted(cls, described: dict[str, Any]) -> "Child":
        """A child that this process has started before, by what `described` told of it."""
        paths: dict[str, Any] = {
            name: path and Path(path) for name in ("directory", "log") for path in [described.pop(name)]
        }
        pid = described.pop("pid")
        process = cast("subprocess.Popen[bytes]", Adopted(pid)) if pid else None
        return cls(**described, **paths, process=process)


class NotReady(Exception):
    """A child did not become ready. The text names it."""


class Supervisor:
    def __init__(self) -> None:
        self.children: list[Child] = []
        self.stop_signals = 0

    @property
    def is_stopping(self) -> bool:
        return self.stop_signals > 0

    def listen(self) -> None:
        """Handle SIGTERM and SIGINT from now on, even before the children are known. Without a handler, process 1 of a
        container gets neither."""
        for each in STOPS:
            signal.signal(each, self._on_signal)

    def stop_with(self, parent: int) -> bool:
        """Stop when the process that started this one ends, by SIGKILL too; False if it has ended already. Linux only:
        elsewhere this process stays."""
        _die_with_parent()
        return os.getppid() == parent

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Start the children in order, each when the one before is ready. Raises NotReady."""
        for child in self.children:
            child.start()
            if not self._await_ready(child, time.monotonic() + timeout_s):
                return

    def _await_ready(self, child: Child, ends_at: float) -> bool:
        """False if the order to stop comes before the child is ready."""
        while not child.ready():
            if self.is_stopping:
                return False
            if not child.is_alive:
                code = child.process.returncode if child.process else None
                where = f"; see {child.log}" if child.log else ""
                raise NotReady(f"{child.name} ended with status {code} before it was ready{where}.")
            if time.monotonic() > ends_at:
                raise NotReady(f"{child.name} was not ready in time.")
            time.sleep(0.05)
        return not self.is_stopping

    def watch(self) -> None:
        """Restart children that die, until SIGTERM or SIGINT."""
        while not self.is_stopping:
            for child in self.children:
                self._look_after(child)
            time.sleep(LOOK_EVERY_S)

    def become_alone(self, *, keep_open: int) -> NoReturn:
        """Go on as this file alone: the same process with the same children, without what it has imported. The file
        descriptor `keep_open` stays open. Does not return; what called it ends without its `finally`."""
        # A signal that comes now waits until the new program listens.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        state = {"children": [child.described() for child in self.children], "stop_signals": self.stop_signals}
        read_end, write_end = os.pipe()
        os.write(write_end, json.dumps(state).encode())  # shorter than a pipe holds
        for each in (read_end, keep_open):
            os.set_inheritable(each, True)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-I", __file__, str(read_end)])

    def stop(self) -> None:
        """Stop all children, each with its grace; after a second signal at once. Safe to call at any time."""
        for serves_others in (False, True):
            children = [child for child in self.children if child.serves_others is serves_others]
            for child in children:
                child.signal(signal.SIGTERM)
            asked_at = time.monotonic()
            for child in children:
                while child.is_alive and time.monotonic() < asked_at + child.grace_s and self.stop_signals < 2:
                    time.sleep(0.02)
                if child.is_alive:
                    logger.warning("%s did not stop in time and is killed", child.name)
                    _kill_group(child)
                if child.process is not None:
                    child.process.wait()

    def _look_after(self, child: Child) -> None:
        if child.is_alive:
            return
        now = time.monotonic()
        if not child.restart_at:
            code = child.process.returncode if child.process else None
            if now - child.started_at > STEADY_AFTER_S or code in FROM_OUTSIDE:
                child.backoff_s = FIRST_BACKOFF_S
            logger.warning("%s ended (%s); starting it again in %.1f s", child.name, _cause(code), child.backoff_s)
            child.restart_at = now + child.backoff_s
            child.backoff_s = min(MOST_BACKOFF_S, child.backoff_s * 2)
        elif now >= child.restart_at:
            child.restart_at = 0.0
            child.start()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop_signals += 1


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"status {code}"


def _kill_group(child: Child) -> None:
    if child.process is not None:
        with suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent of this process is gone. In a child, before it becomes the command.

    So a supervisor that is killed by SIGKILL leaves nothing running. Linux only; elsewhere the children stay.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Go on where `Supervisor.become_alone` stopped."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S", level=logging.INFO
    )
    with os.fdopen(int(sys.argv[1])) as pipe:
        state = json.load(pipe)
    supervisor = Supervisor()
    supervisor.listen()
    supervisor.stop_signals = state["stop_signals"]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    supervisor.children = [Child.adopted(each) for each in state["children"]]
    supervisor.watch()
    sys.stdout.write("Stopping…\n")
    sys.stdout.flush()
    supervisor.stop()


if __name__ == "__main__":
    main()
