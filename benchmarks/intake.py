"""The scenario `intake`."""

import time

from benchmarks import request_files
from benchmarks.effort import Effort
from benchmarks.request_files import ENDPOINT
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import fixed_latency, workbench
from client.api import FINAL

LINES, LINE_BYTES = 50_000, 4_000
MOST_MEMORY_MB = 200.0
LEAST_LINES_PER_S = 20_000


def intake(effort: Effort) -> list[Table]:
    """How long the largest file of OpenAI's own limits takes until its batch runs, and the memory that it needs.

    50,000 lines of 4,000 bytes, 200 MB, are uploaded over HTTP in one streamed request and validated. Peak memory is
    VmHWM of each process, from its start to the end of validation; what processes share counts in each of them.
    """
    lines = effort.lines(LINES)
    with fixed_latency() as model_server, workbench(model_server) as bench:
        path = request_files.plain(bench.input_file, lines, LINE_BYTES, model_server.models)
        megabytes = path.stat().st_size / 1e6
        # The batch only has to be validated: its first call lasts until the end.
        model_server.want(latency_ms=3_600_000)
        effort.tell(f"intake: uploading {lines} lines, {megabytes:.0f} MB")
        started = time.monotonic()
        batch = bench.client.create(path, ENDPOINT, "24h")
        upload_s = time.monotonic() - started
        effort.tell("intake: validating")
        bench.wait_for(batch["id"], ("in_progress", *FINAL))
        validation_s = bench.seconds_between(batch["id"], "created_at", "in_progress_at")
        peaks = bench.peak_memory_mb()
    times = [
        [step, figure(seconds, 1), figure(lines / seconds, 0), figure(megabytes / seconds, 0)]
        for step, seconds in (("upload", upload_s), ("validation", validation_s))
    ]
    speed = lines / validation_s
    target = f"validation of at least {LEAST_LINES_PER_S:,} lines/s"
    remark = verdict(target, speed >= LEAST_LINES_PER_S, f"{speed:,.0f} lines/s")
    tables = [Table(["step", "seconds", "lines/s", "MB/s"], times, remark)]
    if peaks:
        worst = max(map(max, peaks.values()))
        remark = verdict(
            f"under {MOST_MEMORY_MB:g} MB in each process", worst < MOST_MEMORY_MB, f"{worst:.0f} MB at most"
        )
        rows = [
            [f"{part}, {f'child {number}' if number else 'main process'}", figure(peak, 0)]
            for part, each in peaks.items()
            for number, peak in enumerate(each)
        ]
        tables.append(Table(["process", "peak MB"], rows, remark))
    return tables
