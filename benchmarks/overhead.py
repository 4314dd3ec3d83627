"""The scenario `overhead`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import bare_clients, request_files
from benchmarks.effort import Effort
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import Workbench, fixed_latency, workbench

# latency of the model server in ms -> lines of a round: enough for a steady figure, and about ten seconds
LINES_AT_MS = {1: 600, 10: 300, 100: 60, 1000: 10}
LINE_BYTES = 1_000
RATIO_AT_MS, MOST_RATIO = 100, 1.0
MOST_CPU_MS = 1.0

Run = Callable[[Workbench, Path], tuple[float, float]]  # seconds on the clock and of CPU


def overhead(effort: Effort) -> list[Table]:
    """What a line costs beyond the model server's own time, compared with the loop that a user would write instead.

    Both send the same bodies to a model server that takes a fixed time for each, serves one call at a time and queues
    the others, as Ollama does with one slot. The bare loop reads a line, posts it with `requests` over one kept
    connection and appends the answer to a file. The batch goes the whole way: upload, validation, broker, worker,
    database, result file. A line's time is the span between the beginnings of the first and the last call, divided by
    the lines in between, so starting, finalizing and polling do not count; `wall` counts them, from `in_progress_at` to
    `completed_at`. `gap` is how long the slot was idle between two calls, as the model server saw it. Loop and batch
    take turns; each figure is the median of the rounds, `spread` the least and the most ratio of a round. CPU is what
    the loop's process used, and the inference worker's processes from upload to result file.
    """
    times, cpu = [], []
    remarks = []
    with fixed_latency() as model_server, workbench(model_server, BACKEND_PARALLEL="1") as bench:
        for run in (_loop, _batch):
            _measure(bench, run, lines=20, latency_ms=1)  # imports, and the first connections
        for latency_ms in effort.latency_ms:
            lines = effort.lines(LINES_AT_MS[latency_ms])
            rounds = []
            for number in range(effort.rounds):
                effort.tell(f"overhead: {latency_ms} ms, round {number + 1} of {effort.rounds}")
                rounds.append([_measure(bench, run, lines=lines, latency_ms=latency_ms) for run in (_loop, _batch)])
            loop, batch = (_median([each[side] for each in rounds]) for side in (0, 1))
            ratios = [ours.line_ms / theirs.line_ms for theirs, ours in rounds]
            ratio = median(ratios)
            figures = [loop.line_ms, batch.line_ms, loop.gap_ms, batch.gap_ms, batch.wall_ms]
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            times.append([str(latency_ms), str(lines), *map(figure, figures), f"{ratio:.3f}", spread])
            cpu_ratio = batch.cpu_ms / loop.cpu_ms if loop.cpu_ms else float("nan")
            cpu.append([str(latency_ms), *map(figure, (loop.cpu_ms, batch.cpu_ms, cpu_ratio))])
            if latency_ms == RATIO_AT_MS:
                target = f"batch/bare at most {MOST_RATIO:.2f} at {latency_ms} ms"
                remarks.append(verdict(target, ratio <= MOST_RATIO, f"{ratio:.3f}"))
            if latency_ms == min(effort.latency_ms):
                target = f"at most {MOST_CPU_MS:g} ms of CPU a line at {latency_ms} ms"
                found = verdict(target, batch.cpu_ms <= MOST_CPU_MS, f"{figure(batch.cpu_ms)} ms")
    columns = ["latency ms", "lines", "bare ms/line", "batch ms/line", "bare gap ms", "batch gap ms", "wall ms/line"]
    return [
        Table([*columns, "batch/bare", "spread"], times, "\n".join(remarks)),
        Table(["latency ms", "bare CPU ms/line", "batch CPU ms/line", "batch/bare"], cpu, found),
    ]


@dataclass(frozen=True)
class _Round:
    """Milliseconds a line."""

    line_ms: float
    gap_ms: float
    wall_ms: float
    cpu_ms: float


def _median(rounds: list[_Round]) -> _Round:
    return _Round(*(median(values) for values in zip(*(vars(each).values() for each in rounds), strict=True)))


def _measure(bench: Workbench, run: Run, *, lines: int, latency_ms: int) -> _Round:
    path = request_files.plain(bench.input_file, lines, LINE_BYTES, bench.model_server.models)
    bench.model_server.want(latency_ms=latency_ms, slots=1)
    wall_s, cpu_s = run(bench, path)
    seen = bench.model_server.seen(lines)
    return _Round(seen.ms_per_line, seen.gap_ms, wall_s / lines * 1000, cpu_s / lines * 1000)


def _loop(bench: Workbench, path: Path) -> tuple[float, float]:
    """Seconds on the clock and of CPU."""
    before = time.process_time()
    wall_s = bare_clients.loop(bench.model_server.url, path)
    return wall_s, time.process_time() - before


def _batch(bench: Workbench, path: Path) -> tuple[float, float]:
    before = bench.cpu_s("inference worker")
    batch = bench.batch(path)
    wall_s = bench.seconds_between(batch["id"], "in_progress_at", "completed_at")
    return wall_s, bench.cpu_s("inference worker") - before
