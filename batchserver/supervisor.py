"""Keeps the processes of one server alive: started in order, restarted with backoff, stopped in order.

Nothing here knows Django, or what the commands of the processes do.
"""

import ctypes
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

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S, MOST_BACKOFF_S = 0.5, 30.0
STEADY_AFTER_S = 20.0  # after this time alive, the backoff of a child begins anew
FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # killed from outside: it need not die again
LOOK_EVERY_S = 0.2
PR_SET_PDEATHSIG = 1


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
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

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
    """In the child, before it becomes the command: ask the kernel for SIGTERM when the supervisor is gone.

    So a supervisor that is killed by SIGKILL leaves nothing running. Linux only; elsewhere the children stay.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
