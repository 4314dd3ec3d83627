"""The scenario `intake`."""

import time

from benchmarks import request_files
from benchmarks.effort import Effort
from benchmarks.request_files import ENDPOINT
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import fixed_latency, workbench
from client.api import FINAL

LINES, LINE_BYTES = 50_000, 4_000
MOST_LINES, SHORT_BYTES = 1_000_000, 300
VALIDATES = "control worker"
MOST_MEMORY_MB = 200.0
LEAST_LINES_PER_S = 20_000


def intake(effort: Effort) -> list[Table]:
    """How long large files take until their batches run, and the memory that this needs.

    50,000 lines of 4,000 bytes, 200 MB, which are OpenAI's own limits, are uploaded over HTTP in one streamed request
    and validated. Then, by a server of its own, 1,000,000 lines of 300 bytes, with random UUIDs as custom_ids and
    temperature 0: what the indexes hold of a line lies far from that of the line before, which is the most that a line
    can cost. CPU is that of the control worker while it validated. Peak memory is VmHWM of each process, from its start
    to the end of validation; what processes share counts in each of them.
    """
    rows, remarks = [], []
    peaks: dict[str, list[float]] = {}
    for what, make, usual, line_bytes in (
        ("large lines", request_files.plain, LINES, LINE_BYTES),
        ("random ids", request_files.with_random_ids, MOST_LINES, SHORT_BYTES),
    ):
        lines = effort.lines(usual)
        with fixed_latency() as model_server, workbench(model_server) as bench:
            path = make(bench.input_file, lines, line_bytes, model_server.models)
            megabytes = path.stat().st_size / 1e6
            # The batch only has to be validated: its first call lasts until the end.
            model_server.want(latency_ms=3_600_000)
            effort.tell(f"intake: uploading {lines:,} lines, {megabytes:.0f} MB")
            started, cpu_s = time.monotonic(), bench.cpu_s(VALIDATES)
            batch = bench.client.create(path, ENDPOINT, "24h")
            upload_s = time.monotonic() - started
            effort.tell("intake: validating")
            bench.wait_for(batch["id"], ("in_progress", *FINAL))
            cpu_s = bench.cpu_s(VALIDATES) - cpu_s
            validation_s = bench.seconds_between(batch["id"], "created_at", "in_progress_at")
            peaks |= {f"{what}, {part}": peak for part, peak in bench.peak_memory_mb().items()}
        speed = lines / validation_s
        took = [figure(upload_s, 1), figure(megabytes / upload_s, 0), figure(validation_s, 1)]
        rows.append([what, f"{lines:,}", *took, figure(speed, 0), figure(cpu_s / lines * 1e6, 0)])
        target = f"{what}: validation of at least {LEAST_LINES_PER_S:,} lines/s"
        remarks.append(verdict(target, speed >= LEAST_LINES_PER_S, f"{speed:,.0f} lines/s"))
    columns = ["file", "lines", "upload s", "MB/s", "validation s", "lines/s", "CPU µs/line"]
    tables = [Table(columns, rows, "\n".join(remarks))]
    if peaks:
        worst = max(map(max, peaks.values()))
        remark = verdict(
            f"under {MOST_MEMORY_MB:g} MB in each process", worst < MOST_MEMORY_MB, f"{worst:.0f} MB at most"
        )
        memory = [
            [f"{part}, {f'child {number}' if number else 'main process'}", figure(peak, 0)]
            for part, each in peaks.items()
            for number, peak in enumerate(each)
        ]
        tables.append(Table(["process", "peak MB"], memory, remark))
    return tables
