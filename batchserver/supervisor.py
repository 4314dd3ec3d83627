"""Keeps the processes of one server alive: started in order, restarted with backoff, stopped in order.

A process that is there and does nothing is killed and started again, like one that died (`Vitals`).

Nothing here knows Django, or what the processes do. On Linux those of our own code are forks of this process, which has
imported what they need: so all of them together have it in memory once, and one that dies is there again in a moment.
"""

import ctypes
import fcntl
import json
import logging
import multiprocessing
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S, MOST_BACKOFF_S = 0.5, 30.0
STEADY_AFTER_S = 20.0  # after this time alive, the backoff of a child begins anew
FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # killed from outside: it need not die again
# For children that hang, and logs that grow. The end of a child wakes us.
LOOK_EVERY_S = 2.0
# The silence of a child counts while we look: of the time between two looks so much at most. A machine that slept, or
# that had no time for us, had none for the child either.
MOST_BETWEEN_LOOKS_S = 2.0
FULL = 0.9  # of the size of a pipe: each of its pages may have room left, too short for the next sign
STARTUP_S = 60.0  # before its first sign of life a child has so much more time
MOST_LOG_BYTES = 5 * 2**20
# How all processes write their logs (LOG_FORMAT), with the time zone in each stamp.
LINE: dict[str, Any] = {"fmt": "%(asctime)s %(levelname)s %(name)s: %(message)s", "datefmt": "%Y-%m-%d %H:%M:%S%z"}
STOPS = (signal.SIGTERM, signal.SIGINT)
IS_LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG = 1


class JsonFormatter(logging.Formatter):
    """A record as a JSON object on one line, with these members alone.

    What libraries add to their records holds the arguments of tasks, or a request with its query, which may hold a key.
    """

    def __init__(self) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%S%z")

    def format(self, record: logging.LogRecord) -> str:
        told = {"time": self.formatTime(record, self.datefmt), "level": record.levelname, "logger": record.name}
        told["message"] = record.getMessage()
        if request_id := getattr(record, "request_id", ""):
            told["request_id"] = request_id
        if record.exc_info:
            told["exc_info"] = self.formatException(record.exc_info)
        return json.dumps(told)


def formatter(log_format: str) -> logging.Formatter:
    """The formatter for LOG_FORMAT, `line` or `json`."""
    return JsonFormatter() if log_format == "json" else logging.Formatter(**LINE)


class Fork:
    """A fork of this process that runs `main` and then ends: what is used of a Popen."""

    def __init__(self, main: Callable[[], None]) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=main)
        # Until it has handlers of its own it would lose the order to stop.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int | None:
        self._process.join()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Vitals:
    """Tells whether a child hangs: from outside, and without a clock that can jump.

    `signs` is the pipe through which it, and what it forks, give signs of life (common/signs_of_life.py). Any child
    hangs that somebody has stopped.
    """

    def __init__(self, pid: int, hung_after_s: float, signs: int | None) -> None:
        self._pid = pid
        self._hung_after_s = hung_after_s
        self._signs = signs
        self._rest = b""
        self._silent_s = {pid: -STARTUP_S} if signs is not None else {}
        self._stopped_s = 0.0

    def look(self, step_s: float) -> str:
        """What the child has not done for too long; empty if it lives. Call often; `step_s` counts as silence."""
        if self._listen():
            # The pipe was full: that a forked process is done may be lost. It is watched again from its next sign on.
            self._silent_s = {pid: 0.0 for pid in self._silent_s if pid == self._pid}
        for pid in list(self._silent_s):
            self._silent_s[pid] += step_s
            if self._silent_s[pid] > self._hung_after_s:
                if self._is_ours(pid):
                    return self._hung(f"process {pid} gave no sign of life")
                del self._silent_s[pid]  # it has died, and its parent sees to that
        self._stopped_s = self._stopped_s + step_s if _is_stopped(self._pid) else 0.0
        if self._stopped_s > self._hung_after_s:
            return self._hung("it was stopped")
        return ""

    def _hung(self, what: str) -> str:
        # Whoever kills it for that, and does not succeed at once, is told again after the same time.
        self._silent_s = dict.fromkeys(self._silent_s, 0.0)
        self._stopped_s = 0.0
        return f"{what} for {self._hung_after_s:.0f} s"

    def _listen(self) -> bool:
        """Whether the pipe was full, so that signs may be lost: nobody has looked for many minutes."""
        if self._signs is None:
            return False
        heard = 0
        with suppress(BlockingIOError):
            while given := os.read(self._signs, 65536):
                heard += len(given)
                *lines, self._rest = (self._rest + given).split(b"\n")
                for line in lines:
                    pid, _, what = line.partition(b" ")
                    if what == b"done":
                        self._silent_s.pop(int(pid), None)
                    else:
                        self._silent_s[int(pid)] = 0.0
        return heard >= FULL * _size(self._signs)

    def _is_ours(self, pid: int) -> bool:
        """The process is there and of the child's group; its id was not given to another."""
        try:
            return os.getpgid(pid) == self._pid
        except ProcessLookupError:
            return False


def _size(pipe: int) -> int:
    """How many bytes a pipe holds; where the system does not tell, the least that one does."""
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) if sys.platform == "linux" else 4096


def _is_stopped(pid: int) -> bool:
    """Somebody has stopped the process, as SIGSTOP does. Linux only; elsewhere never."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] in (b"T", b"t")


@dataclass
class Child:
    """A process to keep alive. `ready` is asked before the next one starts; it may take `grace_s` to stop, once it has
    the `stop_signal`.

    If there is a `main`, it does what the command does, in a fork of this process; it is given the pipe for signs of
    life, 0 if there is none. Elsewhere than on Linux a fork cannot use all of the system, and the command is run.

    A child that `serves_others` is stopped last: the other processes need it while they finish. One that `gives_signs`
    is told by SIGNS_OF_LIFE_FD where to; one that gives none for `hung_after_s` is killed. `log` is kept below
    MOST_LOG_BYTES, with as much again in a second file.
    """

    name: str
    command: list[str]
    main: Callable[[int], None] | None = None
    grace_s: float = 10.0
    stop_signal: int = signal.SIGTERM
    serves_others: bool = False
    ready: Callable[[], bool] = lambda: True
    environment: dict[str, str] = field(default_factory=dict)
    directory: Path | None = None
    log: Path | None = None
    gives_signs: bool = False
    hung_after_s: float = 60.0
    signs: int | None = None
    vitals: Vitals | None = None
    process: subprocess.Popen[bytes] | Fork | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    backoff_s: float = FIRST_BACKOFF_S

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        told = self._open_signs() if self.gives_signs else None
        try:
            self.process = self._fork(told) if self.main and IS_LINUX else self._run(told)
        finally:
            if told is not None:
                os.close(told)
        self.started_at = time.monotonic()
        self.vitals = Vitals(self.process.pid, self.hung_after_s, self.signs)

    def _run(self, told: int | None) -> subprocess.Popen[bytes]:
        output = self.log.open("ab") if self.log else None
        try:
            return subprocess.Popen(
                self.command,
                env=os.environ | self.environment | ({"SIGNS_OF_LIFE_FD": str(told)} if told else {}),
                pass_fds=(told,) if told else (),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A process group of its own: Ctrl-C in the terminal reaches us alone, and we stop children in order.
                start_new_session=True,
                preexec_fn=lambda: _die_with_parent(self.stop_signal),
            )
        finally:
            if output is not None:
                output.close()

    def _fork(self, told: int | None) -> Fork:
        return Fork(partial(self._become, os.getpid(), told))

    def _become(self, parent: int, told: int | None) -> None:
        """In the fork: be as if the command had been run, and do what it does."""
        os.setsid()
        _die_with_parent(self.stop_signal)
        if os.getppid() != parent:
            return
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for each in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(each, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if self.signs is not None:
            os.close(self.signs)
        os.environ.update(self.environment)
        if self.directory:
            os.chdir(self.directory)
        sys.argv = self.command[2:]  # without the interpreter and its -m
        _show_as(" ".join(sys.argv))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        assert self.main is not None
        self.main(told or 0)

    def _open_signs(self) -> int:
        """A new pipe for signs of life; the end for the child."""
        if self.signs is not None:
            os.close(self.signs)
        self.signs, told = os.pipe()
        # Neither of the two ever waits for the other.
        os.set_blocking(self.signs, False)
        os.set_blocking(told, False)
        return told

    def signal(self, number: int) -> None:
        if self.process is not None and self.is_alive:
            self.process.send_signal(number)


def keep_short(log: Path) -> None:
    """Move what a log has to a second file, in the place of what is there, if it has grown beyond MOST_LOG_BYTES.

    Copied and cut, because others go on appending to the file that they have open.
    """
    with suppress(OSError):  # there is none yet
        if log.stat().st_size > MOST_LOG_BYTES:
            with suppress(OSError):  # a full disk
                shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)


class NotReady(Exception):
    """A child did not become ready. The text names it."""


class Supervisor:
    """`own_log` is the file to which this process and its children write, if it is one of the server's own."""

    def __init__(self, *, own_log: Path | None = None) -> None:
        self.children: list[Child] = []
        self.stop_signals = 0
        self.own_log = own_log
        self._woken: int | None = None

    @property
    def is_stopping(self) -> bool:
        return self.stop_signals > 0

    def listen(self) -> None:
        """Handle SIGTERM and SIGINT from now on, even before the children are known. Without a handler, process 1 of a
        container gets neither."""
        for each in STOPS:
            signal.signal(each, self._on_signal)

    def be_woken(self) -> None:
        """Let `watch` see at once, from now on, that a child has ended or that it is to stop. For the main thread."""
        self._woken, told = os.pipe()
        for each in (self._woken, told):
            os.set_blocking(each, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a signal without a handler wakes nobody

    def stop_with(self, parent: int) -> bool:
        """Stop when the process that started this one ends, by SIGKILL too; False if it has ended already. Linux only:
        elsewhere this process stays."""
        _die_with_parent(signal.SIGTERM)
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
        """Restart children that die or hang, until SIGTERM or SIGINT."""
        looked_at = time.monotonic()
        while not self.is_stopping:
            now = time.monotonic()
            passed_s, looked_at = now - looked_at, now
            for child in self.children:
                self._look_after(child, passed_s)
            for log in filter(None, [self.own_log, *(child.log for child in self.children)]):
                keep_short(log)
            self._wait()

    def _wait(self) -> None:
        """For the next look, the next start of a child, or a signal that wakes us."""
        starts_at = min((child.restart_at for child in self.children if child.restart_at), default=float("inf"))
        wait_s = max(0.0, min(LOOK_EVERY_S, starts_at - time.monotonic()))
        if self._woken is None:
            time.sleep(wait_s)
        elif select.select([self._woken], [], [], wait_s)[0]:
            os.read(self._woken, 4096)

    def stop(self) -> None:
        """Stop all children, each with its grace; after a second signal at once. Safe to call at any time."""
        for serves_others in (False, True):
            children = [child for child in self.children if child.serves_others is serves_others]
            for child in children:
                child.signal(child.stop_signal)
            asked_at = time.monotonic()
            for child in children:
                while child.is_alive and time.monotonic() < asked_at + child.grace_s and self.stop_signals < 2:
                    time.sleep(0.02)
                if child.is_alive:
                    logger.warning("%s did not stop in time and is killed", child.name)
                    _kill_group(child)
                if child.process is not None:
                    child.process.wait()

    def _look_after(self, child: Child, passed_s: float) -> None:
        if child.is_alive:
            if child.vitals and (hung := child.vitals.look(min(passed_s, MOST_BETWEEN_LOOKS_S))):
                logger.error("%s hangs (%s); it is killed", child.name, hung)
                _kill_group(child)
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


_libc = ctypes.CDLL(None) if IS_LINUX else None


def _die_with_parent(number: int) -> None:
    """Ask the kernel for a signal once the parent of this process is gone; in a child, before it becomes the command.

    So a supervisor that is killed by SIGKILL leaves nothing running. Linux only; elsewhere the children stay.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, number)


def _show_as(command: str) -> None:
    """Let `ps` show this command for a fork: as much of it as its parent's command line has room for. Linux only."""
    # The 48th and 49th field: where the command line lies in memory; zeros if the kernel does not tell.
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    if begin:
        room = end - begin
        ctypes.memmove(begin, os.fsencode(command)[: room - 1].ljust(room, b"\0"), room)
