"""What `benchmark` measures with: a server of its own, a model server of fixed latency, and a bare loop beside them."""

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests
from django.conf import settings
from django.core.management.base import CommandError

from batches.management.commands import _fixed_latency_backend as fixed_latency
from batches.management.commands._client import FINAL, Client
from batchserver.supervisor import Child

ENDPOINT = "/v1/chat/completions"
POLL_EVERY_S = 0.5
START_S = 60.0
STOP_S = 60.0


@dataclass
class Workbench:
    """A running server with a fixed-latency model server behind it, and a directory for whatever is needed."""

    directory: Path
    backend_url: str
    client: Client
    server: Child
    session: requests.Session = field(default_factory=requests.Session)

    def set_latency(self, latency_ms: float) -> None:
        """From now on; and the model server forgets the requests that it has seen."""
        self.session.put(f"{self.backend_url}/measure", json={"latency_ms": latency_ms}).raise_for_status()

    def measure(self, run: Callable[[Path], float], *, lines: int, latency_ms: float) -> tuple[float, float]:
        """ms a line between the first and the last request that the model server saw, and as `run` says itself."""
        path = self.make_file(lines, 1_000)
        self.set_latency(latency_ms)
        whole_s = run(path)
        arrivals = self.session.get(f"{self.backend_url}/measure").json()
        if len(arrivals) != lines:
            raise CommandError(f"The model server saw {len(arrivals)} requests instead of {lines}.")
        return (arrivals[-1] - arrivals[0]) / (lines - 1) * 1000, whole_s / lines * 1000

    def bare_loop(self, path: Path) -> float:
        """Seconds that the loop took."""
        started = time.monotonic()
        with path.open() as requests_file, (self.directory / "bare.jsonl").open("w") as results:
            for line in requests_file:
                request = json.loads(line)
                response = self.session.post(self.backend_url + request["url"], json=request["body"])
                response.raise_for_status()
                results.write(json.dumps({"custom_id": request["custom_id"], "body": response.json()}) + "\n")
        return time.monotonic() - started

    def batch(self, path: Path) -> float:
        """Seconds from the end of validation to the finished result file."""
        batch = self.client.create(path, ENDPOINT, "24h")
        self.wait_for(batch["id"], FINAL)
        return self.seconds_between(batch["id"], "in_progress_at", "completed_at")

    def wait_for(self, batch_id: str, statuses: tuple[str, ...]) -> None:
        while (batch := self.client.batch(batch_id))["status"] not in statuses:
            if not self.server.is_alive:
                raise CommandError("The server ended.")
            time.sleep(POLL_EVERY_S)
        if batch["status"] in ("failed", "expired", "cancelled") or batch["request_counts"]["failed"]:
            raise CommandError(f"The batch went wrong: {json.dumps(batch)}")

    def make_file(self, lines: int, line_bytes: int) -> Path:
        """A file of that many chat requests, each of that size."""
        path = self.directory / "requests.jsonl"
        with path.open("w") as file:
            for number in range(lines):
                messages = [{"role": "system", "content": "Answer with one word."}, {"role": "user", "content": ""}]
                body = {"model": fixed_latency.MODEL, "messages": messages}
                request = {"custom_id": f"line-{number}", "method": "POST", "url": ENDPOINT, "body": body}
                missing = line_bytes - len(json.dumps(request)) - 1
                messages[1]["content"] = ("some text " * (missing // 10 + 1))[:missing]
                file.write(json.dumps(request) + "\n")
        return path

    def seconds_between(self, batch_id: str, start: str, end: str) -> float:
        """Between two stamps of a batch, from its row: the API tells whole seconds."""
        address = f"file:{self.directory / 'data' / 'db.sqlite3'}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as database:
            query = f"SELECT (julianday({end}) - julianday({start})) * 86400.0 FROM batches_batch WHERE id = ?"
            return float(database.execute(query, [batch_id]).fetchone()[0])

    def peak_memory_mb(self) -> dict[str, float]:
        """Of the web and control processes; empty where the system does not tell."""
        peaks: dict[str, float] = {}
        assert self.server.process is not None
        for pid in _children_of(self.server.process.pid):
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            name = "web" if "gunicorn" in command else "control worker" if "control" in command else None
            if name is None:
                continue
            for number, member in enumerate([pid, *_children_of(pid)]):
                if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{member}/status").read_text()):
                    peaks[f"{name}, {f'child {number}' if number else 'main process'}"] = int(found[1]) * 1024 / 1e6
        return peaks


@contextmanager
def workbench() -> Iterator[Workbench]:
    """Everything started and answering; stopped and removed at the end. Raises CommandError if it does not start."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.DATA_DIR)))
        backend_port, port = _free_ports(2)
        backend_url = f"http://127.0.0.1:{backend_port}"
        command = [sys.executable, str(Path(fixed_latency.__file__)), str(backend_port)]
        stack.enter_context(_running(Child("model server", command)))
        # What a user may have set in .env or around us would change what is measured, or lead to a real database.
        environment = {
            "ENV_FILE": os.devnull,
            "DATA_DIR": str(directory / "data"),
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "BACKEND_URL": backend_url,
            "MODEL_NAME": fixed_latency.MODEL,
            "SHUTDOWN_GRACE_S": "0.1",
            "BACKEND_PARALLEL": "",
        }
        for name in ("DATABASE_URL", "CELERY_BROKER_URL", "BACKEND_API_KEY", "MODEL_ALIASES", "ALLOWED_HOSTS"):
            environment[name] = ""
        for name in ("BEHIND_TLS", "MAX_CONCURRENT_BATCHES", "MAX_FILE_BYTES", "MAX_BATCH_LINES", "MAX_LINE_BYTES"):
            environment[name] = ""
        log = directory / "server.log"
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "serve"]
        server = Child("server", command, environment=environment, log=log)
        stack.enter_context(_running(server))
        client = Client(f"http://127.0.0.1:{port}")
        ends_at = time.monotonic() + START_S
        while (health := client.health()) is None or health["status"] != "ok" or not health["backends"]:
            if not server.is_alive or time.monotonic() > ends_at:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise CommandError(f"The server did not start:\n{tail}")
            time.sleep(0.1)
        bench = Workbench(directory, backend_url, client, server)
        bench.session.trust_env = False
        yield bench


@contextmanager
def _running(child: Child) -> Iterator[None]:
    try:
        child.start()
        yield
    finally:
        if child.process is not None:
            child.process.terminate()
            try:
                child.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _children_of(parent: int) -> list[int]:
    """Process ids, oldest first; none where there is no /proc."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command in parentheses may hold anything; behind it come the state and the parent's id.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == parent:
            children.append(int(stat.parent.name))
    return sorted(children)
