"""Start and stop processes, and read their CPU time and memory."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from batchserver.supervisor import Child

STOP_S = 60.0


@contextmanager
def running(child: Child) -> Iterator[Child]:
    """Start the child, and stop it at the end of the block."""
    with all_running([child]):
        yield child


@contextmanager
def all_running(children: Sequence[Child]) -> Iterator[None]:
    """Start the children in order, and stop them together at the end of the block: a worker takes 2 s for it, and 40 of
    them one after the other would look as if the benchmark hung."""
    started = []
    try:
        for child in children:
            child.start()
            started += [child.process] if isinstance(child.process, subprocess.Popen) else []
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def family(pid: int) -> list[int]:
    """The process and its descendants, oldest first; the process alone if there is no /proc."""
    members = [pid]
    for member in members:
        members += _children_of(member)
    return members


def named_families(server_pid: int) -> dict[str, list[int]]:
    """Web and workers of our server, each with its processes; empty if there is no /proc."""
    families = {}
    for pid in _children_of(server_pid):
        # Where setproctitle is installed, gunicorn and Celery rename their processes: `[celeryd: control@host:…`.
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        for word, name in (("gunicorn", "web"), ("-Q control", "control worker"), ("-Q inference", "inference worker")):
            if word in command:
                families[name] = family(pid)
    return families


def whole(server_pid: int) -> dict[str, list[int]]:
    """All processes of our server: as `named_families`, and its supervisor and its broker."""
    families = named_families(server_pid)
    named = [pid for pids in families.values() for pid in pids]
    others = [pid for pid in family(server_pid) if pid not in [server_pid, *named]]
    return families | {"broker": others, "supervisor": [server_pid]}


def cpu_s(pids: list[int]) -> float:
    """Seconds of CPU that the processes have used, of threads that have ended too; nan if one of them has ended, or if
    this is no Linux.

    By the kernel's clock of each process, to the nanosecond. /proc tells hundredths of a second, and a process that
    mostly waits uses less than that in a second.
    """
    try:
        return sum(time.clock_gettime(_cpu_clock(pid)) for pid in pids) if pids else float("nan")
    except (OSError, AttributeError):
        return float("nan")


def _cpu_clock(pid: int) -> int:
    """MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of Linux, include/linux/posix-timers.h; clock_getcpuclockid(3)."""
    return ~pid << 3 | 2


def all_cpu_s(pid: int) -> float:
    """Of a process, its children, and those of them that have ended: seconds in steps of 10 ms, as /proc tells them."""
    try:
        ticks = sum(map(int, _stat(Path(f"/proc/{pid}/stat"))[11:15]))
        for child in _children_of(pid):
            with suppress(OSError):  # it ended meanwhile
                ticks += sum(map(int, _stat(Path(f"/proc/{child}/stat"))[11:13]))
    except OSError:
        return float("nan")
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_memory_mb(pid: int) -> float:
    """The peak of memory since the process started (VmHWM)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else float("nan")


def pss_mb(pid: int) -> float:
    """Memory, of which what processes share counts in equal parts for each of them; nan if there is no /proc."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 / 1e6 if found else float("nan")


def _children_of(parent: int) -> list[int]:
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(_stat(stat)[1]) == parent:
                children.append(int(stat.parent.name))
        except OSError:
            continue  # it ended meanwhile
    return sorted(children)


def _stat(path: Path) -> list[str]:
    """The fields from the 3rd on: the command in parentheses may hold anything; state and parent follow it."""
    return path.read_text().rpartition(")")[2].split()
