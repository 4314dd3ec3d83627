"""A whole server in real processes, as `manage.py serve` starts it, with a state directory and ports of its own."""

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from tests import environment

# Tests that run beside each other have the same seed, and are to get different ports.
SYSTEM_RANDOM = random.SystemRandom()
ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port that nobody listens on, of those that no system gives to a client's end of a connection: it is still free
    when a server takes it."""
    while True:
        port = SYSTEM_RANDOM.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def eventually(check: Callable[[], Any], *, within_s: float = 60.0, what: str = "it") -> Any:
    """The first true answer of `check`, asked again and again."""
    ends_at = time.monotonic() + within_s
    while True:
        if found := check():
            return found
        assert time.monotonic() < ends_at, f"{what} did not happen within {within_s} s"
        time.sleep(0.05)


def _database_after_setup() -> Path:
    """An SQLite database as `manage.py setup` makes it: all tables, and an administrator. Made once for all tests: the
    migrations and the administrator's password take as long as the rest of a start."""
    directory = environment.SHARED_STATE / "after-setup"
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        database, made = directory / "db.sqlite3", directory / "made"
        if not made.exists():
            settings = {"DATA_DIR": str(directory), "DATABASE_URL": ""}
            command = [sys.executable, "manage.py", "setup"]
            subprocess.run(command, cwd=ROOT, env=os.environ | settings, check=True, stdout=subprocess.DEVNULL)
            made.touch()
    return database


class Stack:
    """`is_first_start`: the server makes its database, and prints the password of its administrator. Otherwise a data
    directory that is not there gets a database that is as new, and made already."""

    def __init__(
        self, data_dir: Path, environment: dict[str, str], *, root: Path = ROOT, is_first_start: bool = False
    ) -> None:
        self.data_dir = data_dir
        self.is_first_start = is_first_start or root != ROOT or bool(environment.get("DATABASE_URL"))
        self.root = root
        self.port = free_port()
        self.environment = {
            "DATA_DIR": str(data_dir),
            "PORT": str(self.port),
            "EMBEDDED_BACKEND_PORT": str(free_port()),
            "CELERY_BROKER_URL": "",  # the embedded one
        } | environment
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def broker_socket(self) -> Path:
        return self.data_dir / "broker" / "valkey.sock"

    @property
    def log(self) -> Path:
        return self.data_dir / "serve.log"

    def start(self, *, ready: bool = True, command: list[str] | None = None) -> None:
        self.data_dir.mkdir(exist_ok=True)
        if not self.is_first_start and not any(self.data_dir.iterdir()):
            shutil.copyfile(_database_after_setup(), self.data_dir / "db.sqlite3")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command or [sys.executable, "manage.py", "serve"],
                cwd=self.root,
                env=os.environ | self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if ready:
            eventually(self._is_ready, what=f"a ready server ({self.log.read_text()[-2000:]})")

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"serve ended: {self.log.read_text()}"
        health = self.health()
        return health is not None and health["status"] != "failing" and bool(health["backends"])

    def health(self) -> dict[str, Any] | None:
        try:
            body: dict[str, Any] = requests.get(f"{self.base}/health", timeout=10).json()
        except (requests.RequestException, ValueError):
            return None
        return body

    def stop(self) -> int:
        """SIGTERM and wait; the exit status. Nothing of it runs afterwards."""
        if self.process is None:
            return 0
        known = self.pids()
        self.process.terminate()
        try:
            status = self.process.wait(60)
        finally:
            for pid in known:
                kill(pid)
            self.process = None
        return status

    def pids(self) -> list[int]:
        """The pids of all its processes: those started below `serve`, and orphans by the DATA_DIR in their environment
        (some overwrite theirs)."""
        wanted = f"DATA_DIR={self.data_dir}".encode()
        parents: dict[int, int] = {}
        found: set[int] = set()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
            except OSError:
                continue  # it ended meanwhile, or is not ours
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def find(self, part: str) -> list[int]:
        """The pids of the processes whose command line holds `part`, parents before children."""
        return [pid for pid in self.pids() if part in command_line(pid)]

    def kill(self, part: str) -> list[int]:
        """kill -9 the processes whose command line holds `part`; their pids."""
        pids = self.find(part)
        for pid in pids:
            kill(pid)
        return pids


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
