"""`manage.py benchmark [SCENARIO …]`: figures that anybody can measure again, each compared inside one run.

A scenario starts a server of its own (web, workers, broker, as `manage.py serve` does) with a data directory of its own
inside DATA_DIR, so on the disk that counts, and a model server that answers after a fixed time. Nothing of it is left
at the end, however the end comes. A figure that misses its target is printed like any other.
"""

import os
import platform
import re
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from inspect import cleandoc
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from batches.management.commands._client import FINAL
from batches.management.commands._workbench import ENDPOINT, workbench

REPORT = "docs/benchmarks.md"
INTRODUCTION = """# Benchmarks

Written by `python manage.py benchmark --write`. Only figures of one table can be compared with each other: they come
from one run on one machine.
"""

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
    with workbench() as bench:
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
    with workbench() as bench:
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


# The report


def _machine() -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    processor = platform.processor() or platform.machine()
    kernel = ".".join(platform.release().split(".")[:2])
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        processor = found[1]
    return f"Machine: {processor}, {os.cpu_count()} cores, {memory_gb:.0f} GB; {platform.system()} {kernel}."


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
