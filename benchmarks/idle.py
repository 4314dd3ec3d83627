"""The scenario `idle`."""

import time
from pathlib import Path

from benchmarks import processes, request_files
from benchmarks.effort import Effort
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import Workbench, fixed_latency, workbench

MEASURED_S = 60.0
# What a start and a beginning batch cost is no part of it: connections, first words of queries, the first tick.
SETTLES_S = 12.0
CALL_S = 1.0
MOST_IDLE, MOST_AT_WORK, MOST_MB = 0.5, 1.0, 250.0


def idle(effort: Effort) -> list[Table]:
    """What the server costs while there is nothing to do, and while one call after the other takes a second.

    CPU is what the processes of each part used in a minute, in percent of one core; idle first, then with a batch whose
    calls are answered in 1 s each by a model server with one slot, so that nearly all of it is looking around. Memory
    is the PSS of the idle processes, in which what several of them share counts once. Nobody asks the server anything
    meanwhile.
    """
    measured_s = max(2.0, MEASURED_S * effort.scale)
    settles_s = min(SETTLES_S, measured_s)
    with fixed_latency() as model_server, workbench(model_server, BACKEND_PARALLEL="1") as bench:
        time.sleep(settles_s)
        effort.tell("idle: without work")
        memory = {part: sum(map(processes.pss_mb, pids)) for part, pids in bench.all_parts().items()}
        without = _cpu_percent(bench, measured_s)
        effort.tell("idle: at 1 s a call")
        model_server.want(latency_ms=round(CALL_S * 1000), slots=1)
        bench.client.create(_requests(bench, measured_s + settles_s), request_files.ENDPOINT, "24h")
        time.sleep(settles_s)
        at_work = _cpu_percent(bench, measured_s)
    rows = [[part, figure(without[part]), figure(at_work[part]), figure(memory[part], 0)] for part in without]
    sums = [sum(each.values()) for each in (without, at_work, memory)]
    rows.append(["all", figure(sums[0]), figure(sums[1]), figure(sums[2], 0)])
    worker = at_work.get("inference worker", float("nan"))
    remarks = [
        verdict(f"idle at most {MOST_IDLE:g} % of a core", sums[0] <= MOST_IDLE, f"{figure(sums[0])} %"),
        verdict(
            f"inference worker at 1 s a call at most {MOST_AT_WORK:g} % of a core",
            worker <= MOST_AT_WORK,
            f"{figure(worker)} %",
        ),
        verdict(f"at most {MOST_MB:g} MB", sums[2] <= MOST_MB, f"{figure(sums[2], 0)} MB"),
    ]
    return [Table(["part", "idle CPU %", "CPU % at 1 s a call", "MB"], rows, "\n".join(remarks))]


def _requests(bench: Workbench, for_s: float) -> Path:
    """Lines for longer than that."""
    lines = round(2 * for_s / CALL_S) + 10
    return request_files.plain(bench.input_file, lines, 1000, bench.model_server.models)


def _cpu_percent(bench: Workbench, for_s: float) -> dict[str, float]:
    """Percent of one core that each part used in the next `for_s` seconds."""
    parts = bench.all_parts()
    before = {part: processes.cpu_s(pids) for part, pids in parts.items()}
    began = time.monotonic()
    time.sleep(for_s)
    passed_s = time.monotonic() - began
    return {part: (processes.cpu_s(pids) - before[part]) / passed_s * 100 for part, pids in parts.items()}
