"""`manage.py benchmark [SCENARIO …]`: figures that anybody can measure again, each compared inside one run.

A scenario starts a server of its own (web, workers, broker, as `manage.py serve` does) with a data directory of its own
inside DATA_DIR, so on the disk that counts, and a model server that answers after a fixed time. Nothing of it is left
at the end, however the end comes. A figure that misses its target is printed like any other.
"""

import json
import os
import platform
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from inspect import cleandoc
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import requests
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from batches.management.commands import _fixed_latency_backend as fixed_latency
from batches.management.commands.run_batch import FINAL, Client
from batchserver.supervisor import Child

REPORT = "docs/benchmarks.md"
INTRODUCTION = """# Benchmarks

Written by `python manage.py benchmark --write`. Only figures of one table can be compared with each other: they come
from one run on one machine.
"""
ENDPOINT = "/v1/chat/completions"
POLL_EVERY_S = 0.5
START_S = 60.0
STOP_S = 60.0

# latency of the model server in ms -> lines of a round: enough for a steady figure, and about ten seconds
LINES_AT_MS = {1: 600, 10: 300, 100: 60}
MOST_OVERHEAD_MS = 5.0
INTAKE_LINES, INTAKE_LINE_BYTES = 50_000, 4_000
MOST_MEMORY_MB = 200.0


@dataclass(frozen=True)
class Table:
    columns: list[str]
    rows: list[list[str]]
    remark: str = ""

    def __str__(self) -> str:
        rows = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(lines + ["", self.remark] * bool(self.remark))


@dataclass(frozen=True)
class Effort:
    """How much is measured: `scale` times the usual lines, at these latencies, so many times each."""

    scale: float
    rounds: int
    latencies_ms: list[int]
    tell: Callable[[str], None]

    def lines(self, usual: int) -> int:
        return max(4, round(usual * self.scale))


class Command(BaseCommand):
    help = "Measure this server on this machine and print the figures. Needs no model server."

    def add_arguments(self, parser: CommandParser) -> None:
        names = ", ".join(SCENARIOS)
        parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {names} (default: all)")
        parser.add_argument("--write", action="store_true", help=f"put the figures into {REPORT} too")
        parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of lines (default: 1)")
        parser.add_argument("--rounds", type=int, default=3, help="how often each figure is taken (default: 3)")
        parser.add_argument(
            "--latency-ms",
            type=int,
            nargs="+",
            choices=list(LINES_AT_MS),
            default=list(LINES_AT_MS),
            help="latencies of the model server (default: all)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        names = options["scenarios"] or list(SCENARIOS)
        if unknown := [name for name in names if name not in SCENARIOS]:
            raise CommandError(f"There is no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}.")
        if options["scale"] <= 0 or options["rounds"] < 1:
            raise CommandError("--scale has to be above 0, and --rounds 1 or more.")
        effort = Effort(options["scale"], options["rounds"], options["latency_ms"], self._tell)
        try:
            with _ended_by_signals():
                for name in names:
                    measured_at = f"Measured {timezone.now():%Y-%m-%d %H:%M} UTC with `{_command(name, options)}`."
                    tables = SCENARIOS[name](effort)
                    figures = "\n\n".join(map(str, tables))
                    self.stdout.write(f"\n{name}\n\n{figures}\n")
                    if options["write"]:
                        _write(
                            name, f"{cleandoc(SCENARIOS[name].__doc__ or '')}\n\n```\n{figures}\n```\n\n{measured_at}"
                        )
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted. Everything that was started is stopped and removed.", returncode=130
            ) from None
        self.stdout.write(f"{_machine()}\n{_versions()}")

    def _tell(self, progress: str) -> None:
        """Beside the figures, so that they can be sent to a file, and not in the red of an error."""
        self.stderr.write(progress, str)


def _command(name: str, options: dict[str, Any]) -> str:
    words = ["python manage.py benchmark", name]
    if options["scale"] != 1.0:
        words.append(f"--scale {options['scale']:g}")
    if options["rounds"] != 3:
        words.append(f"--rounds {options['rounds']}")
    if options["latency_ms"] != list(LINES_AT_MS):
        words += ["--latency-ms", *map(str, options["latency_ms"])]
    return " ".join(words)


# Scenarios


def overhead(effort: Effort) -> list[Table]:
    """What a line costs beyond the model server's own time, against the loop that anybody would write instead.

    Both send the same bodies, one after the other over one kept connection, to a model server that takes a fixed time
    for each. The bare loop reads a line, posts it with `requests` and appends the answer to a file. The batch goes the
    whole way: upload, validation, broker, worker, database, result file. A line's time is the span between the first
    and the last request that the model server saw, divided by the lines in between, so starting, finalizing and polling
    do not count; `wall` counts them, from `in_progress_at` to `completed_at`. Loop and batch take turns; each figure is
    the median of the rounds, `spread` the least and the most overhead of a round.
    """
    rows = []
    worst = 0.0
    with _workbench() as bench:
        for run in (bench.bare_loop, bench.batch):
            bench.measure(run, lines=20, latency_ms=1)  # imports, and the first connections
        for latency_ms in effort.latencies_ms:
            lines = effort.lines(LINES_AT_MS[latency_ms])
            bare, batch, wall = [], [], []
            for number in range(effort.rounds):
                effort.tell(f"overhead: {latency_ms} ms, round {number + 1} of {effort.rounds}")
                bare.append(bench.measure(bench.bare_loop, lines=lines, latency_ms=latency_ms)[0])
                span, whole = bench.measure(bench.batch, lines=lines, latency_ms=latency_ms)
                batch.append(span)
                wall.append(whole)
            extra = [slow - quick for slow, quick in zip(batch, bare, strict=True)]
            worst = max(worst, median(extra))
            figures = [f"{median(each):.2f}" for each in (bare, batch, extra)]
            spread = f"{min(extra):.2f} to {max(extra):.2f}"
            ratio = f"{median(batch) / median(bare):.3f}"
            rows.append([str(latency_ms), str(lines), *figures, spread, ratio, f"{median(wall):.2f}"])
    columns = ["latency ms", "lines", "bare ms/line", "batch ms/line", "overhead ms/line", "spread"]
    remark = _verdict(f"an overhead under {MOST_OVERHEAD_MS:g} ms a line", worst < MOST_OVERHEAD_MS, f"{worst:.2f} ms")
    return [Table([*columns, "batch/bare", "wall ms/line"], rows, remark)]


def intake(effort: Effort) -> list[Table]:
    """How long the largest file of OpenAI's own limits takes until its batch runs, and the memory that it needs.

    50,000 lines of 4,000 bytes, 200 MB, are uploaded over HTTP in one streamed request and validated. Peak memory is
    VmHWM of each process, from its start to the end of validation; what processes share counts in each of them.
    """
    lines = effort.lines(INTAKE_LINES)
    with _workbench() as bench:
        path = bench.make_file(lines, INTAKE_LINE_BYTES)
        megabytes = path.stat().st_size / 1e6
        # Validated is all it has to be: its first line waits until the end.
        bench.set_latency(3_600_000)
        effort.tell(f"intake: uploading {lines} lines, {megabytes:.0f} MB")
        started = time.monotonic()
        batch = bench.client.create(path, ENDPOINT, "24h")
        upload_s = time.monotonic() - started
        effort.tell("intake: validating")
        bench.wait_for(batch["id"], ("in_progress", *FINAL))
        steps = {"upload": upload_s, "validation": bench.seconds_between(batch["id"], "created_at", "in_progress_at")}
        peaks = bench.peak_memory_mb()
    times = [
        [step, f"{seconds:.1f}", f"{lines / seconds:,.0f}", f"{megabytes / seconds:.0f}"]
        for step, seconds in steps.items()
    ]
    tables = [Table(["step", "seconds", "lines/s", "MB/s"], times)]
    if peaks:
        worst = max(peaks.values())
        remark = _verdict(f"under {MOST_MEMORY_MB:g} MB in each process", worst < MOST_MEMORY_MB, f"{worst:.0f} MB")
        tables.append(Table(["process", "peak MB"], [[name, f"{peak:.0f}"] for name, peak in peaks.items()], remark))
    return tables


def _verdict(target: str, is_met: bool, worst: str) -> str:
    return f"Target: {target}. {'Met' if is_met else 'MISSED'}: {worst} at most."


SCENARIOS: dict[str, Callable[[Effort], list[Table]]] = {"overhead": overhead, "intake": intake}


# What they measure with


@dataclass
class _Workbench:
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
def _workbench() -> Iterator[_Workbench]:
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
        bench = _Workbench(directory, backend_url, client, server)
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


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, and a second signal does not cut the cleaning up short."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


# The report


def _machine() -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        processor = found[1]
    return (
        f"Machine: {processor}, {os.cpu_count()} cores, {memory_gb:.0f} GB; {platform.system()} {platform.release()}."
    )


def _versions() -> str:
    names = ["Django", "celery", "requests", "gunicorn"]
    listed = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Versions: Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {listed}."


def _write(name: str, text: str) -> None:
    """Replace this scenario's part of the report; the others' figures stay as they were measured."""
    path = settings.BASE_DIR / REPORT
    parts = dict(re.findall(r"^## (\S+)\n+(.*?)\n*(?=^## |\Z)", path.read_text() if path.exists() else "", re.M | re.S))
    parts[name] = f"{text}\n{_machine()}\n{_versions()}"
    sections = [f"## {each}\n\n{parts[each]}\n" for each in SCENARIOS if each in parts]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([INTRODUCTION, *sections]))
