"""The scenario `scale`."""

import time
from dataclasses import dataclass
from itertools import pairwise

from benchmarks import request_files
from benchmarks.effort import Effort
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import POLL_EVERY_S, fixed_latency, workbench

SIZES = [1_000, 10_000, 100_000, 1_000_000]
REFERENCE = 100_000
IN_FLIGHT = 16
LINE_BYTES = 300
PARTS = ("web", "control worker", "inference worker")
LEAST_INTAKE, LEAST_FINALIZE = 20_000, 50_000  # lines a second
MOST_GROWTH = 1.2


def scale(effort: Effort) -> list[Table]:
    """What a line costs in a small batch and in a large one: it should be the same.

    The model server answers at once with one word, to lines of 300 bytes, 16 in flight; each size has a server of its
    own with an empty database (SQLite). Intake is from `created_at` to `in_progress_at`, run to `finalizing_at`,
    finalize to `completed_at`, and tidy until the rows have given up their answers. µs are of the clock, so waiting
    counts too: much in a small batch, little in a large one. CPU is what the processes used from upload to tidied: web
    for the upload, control worker for intake, finalizing and tidying, inference worker for claiming, sending and
    recording. `bytes` is what the database grew by. `cost` is a line's share of all steps, or of all CPU,
    as a multiple of that in the batch of 100,000 (or the largest, if that is smaller). Peak memory is VmHWM of the
    largest process of each part.
    """
    sizes = [size for size in SIZES if size <= effort.most_lines] or SIZES[:1]
    found = {size: _measure(effort, effort.lines(size)) for size in sizes}
    reference, largest = found[min(REFERENCE, max(sizes))], found[max(sizes)]
    times, cpu, memory = [], [], []
    for run in found.values():
        lines = f"{run.lines:,}"
        steps = [run.intake_s, run.run_s, run.finalize_s, run.tidy_s]
        ratio = figure(run.us(run.whole_s) / reference.us(reference.whole_s))
        times.append([lines, *(figure(run.us(each), 1) for each in steps), figure(run.whole_s, 1), ratio])
        used = [run.cpu_s[part] for part in PARTS]
        ratio = figure(run.us(sum(used)) / reference.us(sum(reference.cpu_s.values())))
        size = figure(run.database_bytes / run.lines, 0)
        cpu.append([lines, *(figure(run.us(each), 1) for each in used), ratio, size])
        memory.append([lines, *(figure(run.peak_mb.get(part, float("nan")), 0) for part in PARTS)])
    steps_ = [f"{step} µs/line" for step in ("intake", "run", "finalize", "tidy")]
    return [
        Table(["lines", *steps_, "all s", "cost"], times, _verdicts(largest, reference)),
        Table(["lines", *(f"{part} CPU µs/line" for part in PARTS), "cost", "bytes/line"], cpu),
        Table(["lines", *(f"{part} peak MB" for part in PARTS)], memory),
    ]


@dataclass(frozen=True)
class _Run:
    lines: int
    intake_s: float
    run_s: float
    finalize_s: float
    tidy_s: float
    cpu_s: dict[str, float]
    peak_mb: dict[str, float]
    database_bytes: int

    @property
    def whole_s(self) -> float:
        return self.intake_s + self.run_s + self.finalize_s + self.tidy_s

    def us(self, seconds: float) -> float:
        """The share of a line, in microseconds."""
        return seconds / self.lines * 1e6


def _measure(effort: Effort, lines: int) -> _Run:
    with fixed_latency() as model_server, workbench(model_server, BACKEND_PARALLEL=str(IN_FLIGHT)) as bench:
        model_server.want(words=1)
        path = request_files.plain(bench.input_file, lines, LINE_BYTES, model_server.models)
        effort.tell(f"scale: {lines:,} lines")
        cpu, size = {part: bench.cpu_s(part) for part in PARTS}, bench.database_bytes()[0]
        batch_id = bench.batch(path)["id"]
        while not bench.is_tidied(batch_id):
            time.sleep(POLL_EVERY_S)
        stamps = ["created_at", "in_progress_at", "finalizing_at", "completed_at", "tidied_at"]
        steps = [bench.seconds_between(batch_id, *pair) for pair in pairwise(stamps)]
        used = {part: bench.cpu_s(part) - before for part, before in cpu.items()}
        peaks = {part: max(each) for part, each in bench.peak_memory_mb().items()}
        intake_s, run_s, finalize_s, tidy_s = steps
        return _Run(lines, intake_s, run_s, finalize_s, tidy_s, used, peaks, bench.database_bytes()[0] - size)


def _verdicts(largest: _Run, reference: _Run) -> str:
    intake, finalize = largest.lines / largest.intake_s, largest.lines / largest.finalize_s
    growth = largest.us(largest.whole_s) / reference.us(reference.whole_s)
    remarks = [
        verdict(f"intake of at least {LEAST_INTAKE:,} lines/s", intake >= LEAST_INTAKE, f"{intake:,.0f} lines/s"),
        verdict(
            f"finalizing at least {LEAST_FINALIZE:,} lines/s", finalize >= LEAST_FINALIZE, f"{finalize:,.0f} lines/s"
        ),
    ]
    if largest.lines > reference.lines:
        target = f"a cost of at most {MOST_GROWTH:g} with {largest.lines:,} lines"
        remarks.append(verdict(target, growth <= MOST_GROWTH, figure(growth)))
    return "\n".join(remarks)
