"""A whole server under observation: real processes on SQLite or Postgres, a model server that keeps a log and can be
told to misbehave, and watchers who note what the API says and what the rows say, ten times a second."""

import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import psycopg.conninfo
import redis
import requests

from tests.conftest import CHAT, jsonl, line
from tests.fake_backend import Action, FakeBackend, Seen, answer
from tests.s3 import BUCKET, KEY, SECRET, Proxy, S3Server, client
from tests.stack import ROOT, Stack, eventually, free_port

FINAL = ("completed", "failed", "expired", "cancelled")
LOOK_EVERY_S = 0.25
CLOCK = Path(__file__).with_name("clock.c")
FRONT = Path(__file__).with_name("front.py")
# What a read may take; an outage that a scenario announces may last so long at most.
READ_S = 1.0
OUTAGE_S = 30.0
# How long after the end of the fault everything has to be over.
STUCK_AFTER_S = 60.0


class Backend(FakeBackend):
    """Each good answer has a number of its own, so that one can be told from another to the same line.

    `dial` is what is done to every request, whatever its text; None: good answers, after `delay_s`. Others see the
    process in front of it, which can be killed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dial: Action | None = None
        self._front_port = free_port()
        self._front: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._front_port}"

    def start(self) -> None:
        super().start()
        self.revive()

    def stop(self) -> None:
        self.kill()
        super().stop()

    def kill(self) -> None:
        """kill -9; from then on nobody listens there."""
        if self._front is not None:
            self._front.kill()
            self._front.wait()
            self._front = None

    def revive(self) -> None:
        self._front = subprocess.Popen([sys.executable, str(FRONT), str(self._front_port), str(self._port)])

    def take(self, seen: Seen) -> Action:
        action = super().take(seen)
        if self.dial is not None and not self._actions[seen.key] and seen.key not in self._always:
            action = self.dial
        if action.status == 200 and action.body is None:
            body = answer(seen.path, seen.body, self.context)
            body["system_fingerprint"] = f"answer {len(self.seen)}"
            action = Action(**vars(action) | {"body": body})
            seen.headers["answer"] = f"answer {len(self.seen)}"
        return action


# A command in it has process ids of its own, and ends with the process that starts it.
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

# The package starts one server at a time.
_one_start = threading.Lock()


class Postgres:
    """A real Postgres with a database for each world. Use as a context manager."""

    def __init__(self) -> None:
        # Not in pytest's directory, which only its owner can enter, and short: the path of its socket is limited.
        self._directory = tempfile.TemporaryDirectory(prefix="pg")
        with _one_start, warnings.catch_warnings(action="ignore"):
            import pgserver

            self._server = pgserver.get_server(Path(self._directory.name), cleanup_mode="stop")
        self._made = 0

    def __enter__(self) -> "Postgres":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.cleanup()
        self._directory.cleanup()

    @staticmethod
    def is_installed() -> bool:
        """Not every platform has the wheel."""
        return importlib.util.find_spec("pgserver") is not None

    def new_database(self) -> str:
        """Its URL."""
        self._made += 1
        name = f"world{self._made}"
        with closing(psycopg.connect(self._server.get_uri(), autocommit=True)) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        url: str = self._server.get_uri(database=name)
        return url

    def crash(self, away_s: float) -> None:
        """End it as `pg_ctl stop -m immediate` does, without a checkpoint, and start it again after a while."""
        from pgserver._commands import pg_ctl

        directory, user = self._server.pgdata, self._server.system_user
        pg_ctl(["-m", "immediate", "-w", "stop"], pgdata=directory, user=user)
        time.sleep(away_s)
        self._server.ensure_postgres_running()


class Cable:
    """A way to Postgres by TCP that can be cut: from then on nothing comes through, and nobody is told."""

    def __init__(self, url: str) -> None:
        where = psycopg.conninfo.conninfo_to_dict(url)
        self._socket = f"{where['host']}/.s.PGSQL.{where.get('port', 5432)}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = f"postgresql://{where.get('user', 'postgres')}@127.0.0.1:{port}/{where['dbname']}"
        self._is_whole = threading.Event()
        self._is_whole.set()
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._socket)
                self._ends += [client, server]
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(2**16):
                self._is_whole.wait()
                target.sendall(content)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self._is_whole.clear()

    def mend(self) -> None:
        """New connections come through. The old ones are known to be broken now."""
        for end in self._ends:
            with suppress(OSError):
                end.close()
        self._is_whole.set()

    def close(self) -> None:
        self._listener.close()
        self.mend()


class Rows:
    """The server's own database, read beside it."""

    def __init__(self, data_dir: Path, url: str) -> None:
        self._path, self._url = data_dir / "db.sqlite3", url
        self.url = url or f"sqlite:///{self._path}"
        self.is_postgres = bool(url)

    def all(self, query: str) -> list[tuple[Any, ...]]:
        with self._connect() as connection:
            return list(connection.execute(query).fetchall())

    def execute(self, statement: str) -> None:
        with self._connect() as connection:
            connection.execute(statement)

    @contextmanager
    def _connect(self) -> Iterator[Any]:
        if self.is_postgres:
            connection: Any = psycopg.connect(self._url, autocommit=True, connect_timeout=5)
        else:
            connection = sqlite3.connect(self._path, timeout=20, isolation_level=None)
        with closing(connection):
            yield connection

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everybody else from writing."""
        with self._connect() as connection:
            connection.execute("BEGIN" if self.is_postgres else "BEGIN IMMEDIATE")
            if self.is_postgres:
                for table in ("batches_line", "batches_batch", "batches_lease"):
                    connection.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
            yield
            connection.execute("ROLLBACK")


class Bucket:
    """The files of a world, in an S3 server behind a proxy."""

    def __init__(self, directory: Path) -> None:
        self._server = S3Server(directory)
        self.proxy = Proxy(self._server.port)

    @property
    def environment(self) -> dict[str, str]:
        key = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        return key | {"AWS_STORAGE_BUCKET_NAME": BUCKET, "AWS_S3_ENDPOINT_URL": self.proxy.url}

    def start(self) -> None:
        self._server.__enter__()
        self.proxy.__enter__()

    def stop(self) -> None:
        self.proxy.__exit__()
        self._server.__exit__()

    def names(self) -> set[str]:
        return {each["Key"] for each in client(self._server.url).list_objects_v2(Bucket=BUCKET).get("Contents", ())}


@dataclass
class Answered:
    """What the API said to one read of a watcher."""

    took_s: float
    problem: str  # empty if it was a 200
    allowed: bool  # an outage was announced


@dataclass
class Submitted:
    """A batch that the scenario created, and what has to become of it."""

    wanted: list[str]
    status: str = "completed"
    failed: int = 0  # lines that have to be in the error file, at least


@dataclass
class FinishedRow:
    """A line's row as it was first seen finished."""

    value: tuple[Any, ...]
    seen_at: float


@dataclass
class Notes:
    """What the watchers saw."""

    reads: list[Answered] = field(default_factory=list)
    statuses: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    finished: dict[str, FinishedRow] = field(default_factory=dict)
    rewritten: list[str] = field(default_factory=list)


class World:
    """Use as a context manager: the server is up inside, and nothing of it runs afterwards."""

    def __init__(
        self,
        directory: Path,
        *,
        postgres: Postgres | None = None,
        failpoints: str = "",
        root: Path = ROOT,
        disk_mb: int = 0,
        own_clock: bool = False,
        in_s3: bool = False,
        reads_within_s: float = READ_S,
        **environment: str,
    ) -> None:
        self.directory = directory
        self.postgres = postgres
        self.backend = Backend()
        self.backend.delay_s = 0.15
        self.failpoints = failpoints
        self.reads_within_s = reads_within_s
        self.disk_mb = disk_mb  # DATA_DIR is a file system of its own, of that size; needs root
        database_url = postgres.new_database() if postgres else ""
        self.database_url = database_url
        self.rows = Rows(directory / "data", database_url)
        self.backend.start()
        self._clock = directory / "clock"
        self._clock.write_text("0")
        clock = {}
        if own_clock:
            library = directory / "clock.so"
            subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, CLOCK, "-ldl"], check=True)
            clock = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self._clock)}
        configured = {"OLLAMA_BASE_URL": self.backend.url, "DATABASE_URL": database_url, "FAILPOINTS": failpoints}
        self.server = Stack(directory / "data", configured | clock | environment, root=root)
        self.s3 = Bucket(directory / "s3") if in_s3 else None
        self.notes = Notes()
        self.batches: dict[str, Submitted] = {}
        self.refused: list[str] = []  # metadata of creates that were answered by a 5xx
        self.kills = 0
        self.stops = 0
        self.lines_per_kill = 2  # the window of calls in flight
        self.fault_ended_at = 0.0
        self._outage_until = 0.0
        self._extra: list[subprocess.Popen[bytes]] = []
        self.cable: Cable | None = None
        self._is_over = threading.Event()
        self._watchers = [threading.Thread(target=self._watch, args=(look,)) for look in (self._read_api, self._read)]
        self._session = requests.Session()
        self._made = 0

    def __enter__(self) -> "World":
        try:
            if self.disk_mb:
                self._mount()
            if self.s3 is not None:
                self.s3.start()
                self.server.environment |= self.s3.environment
            self.server.start()
        except BaseException:
            self.__exit__()
            raise
        for watcher in self._watchers:
            watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for watcher in self._watchers:
            if watcher.ident is not None:
                watcher.join()
        for pid in self.server.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for worker in self._extra:
            worker.kill()
            worker.wait()
        if self.cable is not None:
            self.cable.close()
        self.server.stop()
        self.backend.stop()
        if self.s3 is not None:
            self.s3.stop()
        self._session.close()
        if os.path.ismount(self.server.data_dir):
            subprocess.run(["umount", self.server.data_dir], check=True)

    def _mount(self) -> None:
        self.server.data_dir.mkdir()
        options = f"size={self.disk_mb}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.server.data_dir], check=True)

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Inside, the file system of DATA_DIR has no byte left."""
        # Never the machine's own disk.
        size = shutil.disk_usage(self.server.data_dir).total
        assert os.path.ismount(self.server.data_dir)
        assert size <= self.disk_mb * 2**20
        ballast = self.server.data_dir / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(2**16)):
                pass
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(b"x"):
                pass
        yield
        ballast.unlink()

    # What clients do

    def upload(self, content: bytes, *, key: str = "") -> requests.Response:
        form = {"file": ("in.jsonl", io.BytesIO(content))}
        headers = {"Idempotency-Key": key} if key else {}
        return self._ask("POST", "/v1/files", data={"purpose": "batch"}, files=form, headers=headers)

    def create(self, file_id: str, label: str, *, key: str = "", window: str = "24h") -> requests.Response:
        request = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": window}
        request["metadata"] = {"label": label}  # type: ignore[assignment]
        headers = {"Idempotency-Key": key} if key else {}
        return self._ask("POST", "/v1/batches", json=request, headers=headers)

    def submit(self, lines: int, *, window: str = "24h", id_length: int = 0, **outcome: Any) -> str:
        """A batch of so many good lines; each step is tried until it is answered well, as a careful client would.
        Its id. `outcome` is what has to become of it, where that is not a completed batch."""
        self._made += 1
        wanted = [f"b{self._made}-{number}".ljust(id_length, "x") for number in range(lines)]
        label = f"b{self._made}"
        content = jsonl([line(custom_id) for custom_id in wanted])
        file_id = eventually(lambda: self._id(self.upload(content, key=label)), what="an upload")

        def create() -> str:
            answered = self.create(file_id, label, key=label, window=window)
            if answered.status_code >= 500:
                self.refused.append(label)
            return self._id(answered)

        batch_id: str = eventually(create, what="a batch")
        # The same key: an answer that was lost, and one by a 5xx, belong to the same request.
        self.refused = [each for each in self.refused if each != label]
        self.batches[batch_id] = Submitted(wanted, **outcome)
        return batch_id

    def batch(self, batch_id: str) -> dict[str, Any]:
        """The batch object; empty if there was no answer."""
        answered = self._ask("GET", f"/v1/batches/{batch_id}")
        body: dict[str, Any] = answered.json() if answered.status_code == 200 else {}
        return body

    def cancel(self, batch_id: str) -> None:
        eventually(lambda: self._ask("POST", f"/v1/batches/{batch_id}/cancel").status_code == 200, what="a cancel")
        self.batches[batch_id].status = "cancelled"

    def content(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        answered = self._ask("GET", f"/v1/files/{file_id}/content")
        assert answered.status_code == 200, f"{file_id}: HTTP {answered.status_code}"
        return [json.loads(each) for each in answered.content.splitlines()]

    def await_lines(self, count: int, batch_id: str, within_s: float = 60.0) -> None:
        """Until so many of the batch's lines are finished."""

        def finished() -> int:
            counts = self.batch(batch_id).get("request_counts", {})
            return int(counts.get("completed", 0) + counts.get("failed", 0))

        eventually(lambda: finished() >= count, within_s=within_s, what=f"{count} finished lines")

    def await_status(self, status: str, batch_id: str, within_s: float = 60.0) -> None:
        eventually(lambda: self.batch(batch_id).get("status") == status, within_s=within_s, what=status)

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """The answer; a 599 of our own if the connection broke."""
        try:
            return self._session.request(method, f"{self.server.base}{path}", timeout=30, **options)
        except requests.RequestException:
            broken = requests.Response()
            broken.status_code = 599
            return broken

    def _id(self, answered: requests.Response) -> str:
        assert answered.status_code == 200 or answered.status_code >= 500, answered.text
        return str(answered.json()["id"]) if answered.status_code == 200 else ""

    # What goes wrong

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The API need not answer inside, nor afterwards until it did once, within OUTAGE_S."""
        self._outage_until = time.monotonic() + 3600
        try:
            yield
        finally:
            ends_at = time.monotonic() + OUTAGE_S
            while time.monotonic() < ends_at and not self._answers():
                time.sleep(0.05)
            self._outage_until = time.monotonic()

    def _answers(self) -> bool:
        return self._ask("GET", "/v1/batches?limit=1").status_code == 200

    def kill(self, part: str) -> None:
        """kill -9 to what holds `part` in its command line."""
        pids = eventually(lambda: self.server.kill(part), what=f"a process {part}")
        self.kills += bool(pids)

    def kill_web(self) -> None:
        with self.outage():
            self.kill("gunicorn")

    def kill_broker(self) -> None:
        self.kill("valkey")

    def kill_backend(self) -> None:
        """For a second nobody listens there."""
        self.kills += 1
        self.backend.kill()
        time.sleep(1.0)
        self.backend.revive()

    def flush_broker(self) -> None:
        with closing(redis.Redis(unix_socket_path=str(self.server.broker_socket))) as broker:
            broker.flushall()

    def pids_of(self, part: str) -> list[int]:
        pids: list[int] = eventually(lambda: self.server.find(part), what=f"a process {part}")
        return pids

    def clock_of_its_own(self, offset_s: int) -> dict[str, str]:
        """The environment of a process of a host whose clock is off by so many seconds, where the world has clocks."""
        file = self.directory / f"clock{offset_s}"
        file.write_text(str(offset_s))
        return {"CLOCK_OFFSET_FILE": str(file)}

    def step_clock(self, offset_s: int) -> None:
        """Set every process's wall clock off by so many seconds. The monotonic clock goes on, as a real one does.

        Where the database's clock steps along, leases seem to be over: who held one drops what it has in hand.
        """
        self.stops += 1
        new = self._clock.with_suffix(".new")
        new.write_text(str(offset_s))
        new.rename(self._clock)

    def kill_all(self) -> None:
        """kill -9 to every process at once, and a new start."""
        with self.outage():
            assert self.server.process is not None
            self.server.process.kill()
            for pid in self.server.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.server.process.wait()
            self.kills += 1
            self.server.start()

    def start_worker(
        self, queue: str, *, root: Path | None = None, within: Sequence[str] = (), **environment: str
    ) -> subprocess.Popen[bytes]:
        """One more worker beside those that the server has, of another source tree or with another environment, as on
        another host; `within` is what comes before its command, such as CONTAINER."""
        celery = [sys.executable, "-m", "celery", "--quiet", "--app", "batchserver", "worker"]
        celery += ["--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
        with self.server.log.open("ab") as log:
            worker = subprocess.Popen(
                [*within, *celery, "-Q", queue, "-c", "1", "-n", f"{queue}{len(self._extra)}@%h"],
                cwd=root or self.server.root,
                env=os.environ | self.server.environment | environment,
                stdout=log,
                stderr=log,
            )
        self._extra.append(worker)
        return worker

    def await_failpoint(self, name: str, within_s: float = 60.0) -> int:
        """The pid of the process that came to the failpoint, once it did."""
        marker = self._marker(name)
        return int(eventually(lambda: marker.exists() and marker.read_text(), within_s=within_s, what=f"{name}"))

    def await_kills(self, within_s: float = 90.0) -> None:
        """Until every failpoint was reached; each is counted as a kill."""
        for item in self.failpoints.split(","):
            self.await_failpoint(item.partition(":")[0], within_s)
            self.kills += 1

    def wake(self, pid: int) -> None:
        """Let a process that stopped at a failpoint go on."""
        self.stops += 1
        os.kill(pid, signal.SIGCONT)

    def _marker(self, failpoint: str) -> Path:
        return self.server.data_dir / "failpoints" / failpoint

    def hold_back(self, failpoint: str) -> None:
        """Let every process pass it until `arm`."""
        self._marker(failpoint).parent.mkdir(parents=True, exist_ok=True)
        self._marker(failpoint).touch()

    def arm(self, failpoint: str) -> None:
        self._marker(failpoint).unlink()

    def let_leases_expire(self) -> None:
        """As if their time had passed for whoever cannot renew them: a stopped process."""
        past = "now() - interval '1 second'" if self.rows.is_postgres else "datetime('now', '-1 second')"
        self.rows.execute(f"UPDATE batches_lease SET expires_at = {past}")

    # The watchers

    def _watch(self, look: Callable[[], None]) -> None:
        while not self._is_over.wait(LOOK_EVERY_S):
            look()

    def _read_api(self) -> None:
        started = time.monotonic()
        problem = ""
        body: dict[str, Any] = {"data": []}
        try:
            answered = requests.get(f"{self.server.base}/v1/batches?limit=100", timeout=10)
            if answered.status_code == 200:
                body = answered.json()
            else:
                problem = f"HTTP {answered.status_code}"
        except requests.RequestException as error:
            problem = type(error).__name__
        took_s = time.monotonic() - started
        self.notes.reads.append(Answered(took_s, problem, started < self._outage_until))
        for batch in body["data"]:
            statuses = self.notes.statuses.setdefault(batch["id"], [])
            if statuses[-1:] != [batch["status"]]:
                statuses.append(batch["status"])
            counts = self.notes.counts.setdefault(batch["id"], [])
            now = (*batch["request_counts"].values(),)
            if counts[-1:] != [now]:
                counts.append(now)

    def _read(self) -> None:
        """Which lines are finished, and whether a finished one was written again."""
        query = "SELECT custom_id, state, finished_at, output_tokens, duration_ms FROM batches_line WHERE state > 1"
        try:
            rows = self.rows.all(query)
        except (sqlite3.Error, psycopg.Error):
            return
        now = time.monotonic()
        for custom_id, *value in rows:
            known = self.notes.finished.setdefault(custom_id, FinishedRow(tuple(value), now))
            if known.value != tuple(value):
                self.notes.rewritten.append(custom_id)
                known.value = tuple(value)
