"""The scenario `throughput`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import bare_clients, request_files
from benchmarks.effort import IN_FLIGHT, Effort
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import Workbench, fixed_latency, real_model, workbench

LATENCIES_MS = (2, 20)
LINE_BYTES = 1_000
MOST_LINES = 1_000  # of a run; otherwise as many as take a second
LEAST_LINES = 20  # for each call in flight
TARGET_IN_FLIGHT, TARGET_LATENCY_MS, LEAST_RATIO = 16, 20, 0.9
CLIENTS = ("requests", "aiohttp", "httpx", "sockets", "batch")
# `sockets` understands the answers of our own model server alone.
REAL_CLIENTS = ("requests", "aiohttp", "httpx", "batch")
WARM_UP_LINES, LEAST_REAL_LINES, REAL_LINES = 4, 100, 40  # of a run; the last for each call in flight
MAX_TOKENS = 16


def throughput(effort: Effort) -> list[Table]:
    """Lines a second with several calls in flight, compared with the clients that a user would use instead.

    The model server has as many slots as calls are in flight and takes a fixed time for each call. `requests` is a
    thread with a session for each call in flight, `aiohttp` and `httpx` one session with as many connections; all of
    them append the answers to a file. The batch goes the whole way, with `BACKEND_PARALLEL` set to that number. The
    figure is all lines by the span from the beginning of the first call to the end of the last, as the model server saw
    it; the median of the rounds, in which the clients take turns. `sockets` sends ready bytes and only counts the
    answers: what this model server can do at most beside a client. All share the machine's cores with the model server,
    so with many calls in flight the figures tell how little CPU a client needs. CPU is what the process of the
    threads used, and the inference worker's processes from upload to result file. A client that is not installed has no
    figure.

    With --backend-url the same clients send short chats with answers of up to 16 tokens to that server. Seconds are
    then the client's own, and of the batch from `in_progress_at` to `completed_at`; `BACKEND_PARALLEL` is unset or what
    --parallel says; `best` is the fastest of the bare clients. With --run-batch the same file is also given to a
    command that needs no server, `vllm run-batch` above all, once for each row; the start of its engine counts.
    """
    if effort.backend_url:
        return _on_a_real_model(effort)
    rows: dict[int, list[_Row]] = {latency_ms: [] for latency_ms in LATENCIES_MS}
    for in_flight in effort.in_flight or IN_FLIGHT:
        with fixed_latency() as model_server, workbench(model_server, BACKEND_PARALLEL=str(in_flight)) as bench:
            for latency_ms in LATENCIES_MS:
                rows[latency_ms].append(_measure(bench, effort, in_flight, latency_ms))
    return [_table(latency_ms, found) for latency_ms, found in rows.items()]


@dataclass(frozen=True)
class _Row:
    in_flight: int
    lines: int
    speeds: dict[str, float]  # lines a second, by client
    bare_cpu_ms: float
    batch_cpu_ms: float

    @property
    def ratio(self) -> float:
        return self.speeds["batch"] / self.speeds["requests"]


def _measure(bench: Workbench, effort: Effort, in_flight: int, latency_ms: int) -> _Row:
    usual = max(min(round(in_flight / latency_ms * 1000), MOST_LINES), LEAST_LINES * in_flight)
    lines = effort.lines(usual)
    path = request_files.plain(bench.input_file, lines, LINE_BYTES, bench.model_server.models)
    speeds: dict[str, list[float]] = {}
    bare_cpu_s, batch_cpu_s = [], []
    for number in range(effort.rounds):
        effort.tell(f"throughput: {in_flight} in flight, {latency_ms} ms, round {number + 1} of {effort.rounds}")
        for name, run in _clients(bench, in_flight).items():
            bench.model_server.want(latency_ms=latency_ms, slots=in_flight)
            before = time.process_time(), bench.cpu_s("inference worker")
            run(path)
            if name == "requests":
                bare_cpu_s.append(time.process_time() - before[0])
            elif name == "batch":
                batch_cpu_s.append(bench.cpu_s("inference worker") - before[1])
            speeds.setdefault(name, []).append(bench.model_server.seen(lines).lines_per_s)
    cpu_ms = [median(each) / lines * 1000 for each in (bare_cpu_s, batch_cpu_s)]
    return _Row(in_flight, lines, {name: median(found) for name, found in speeds.items()}, *cpu_ms)


def _clients(bench: Workbench, in_flight: int) -> dict[str, Callable[[Path], object]]:
    """The clients that are installed, the batch last."""
    url = bench.model_server.url
    clients = {"requests": bare_clients.threads, "sockets": bare_clients.sockets}
    if bare_clients.AIOHTTP:
        clients["aiohttp"] = bare_clients.with_aiohttp
    if bare_clients.HTTPX:
        clients["httpx"] = bare_clients.with_httpx
    return {name: partial(run, url, in_flight=in_flight) for name, run in clients.items()} | {"batch": bench.batch}


def _table(latency_ms: int, rows: list[_Row]) -> Table:
    lines = []
    remark = ""
    for row in rows:
        speeds = [figure(row.speeds.get(name, float("nan")), 0) for name in CLIENTS]
        lines.append(
            [str(row.in_flight), str(row.lines), *speeds, *map(figure, (row.ratio, row.bare_cpu_ms, row.batch_cpu_ms))]
        )
        if (row.in_flight, latency_ms) == (TARGET_IN_FLIGHT, TARGET_LATENCY_MS):
            target = f"batch/requests at least {LEAST_RATIO:g} with {row.in_flight} in flight at {latency_ms} ms"
            remark = verdict(target, row.ratio >= LEAST_RATIO, figure(row.ratio))
    speeds = [f"{name} lines/s" for name in CLIENTS]
    cpu = ["requests CPU ms/line", "batch CPU ms/line"]
    return Table([f"in flight, {latency_ms} ms", "lines", *speeds, "batch/requests", *cpu], lines, remark)


def _on_a_real_model(effort: Effort) -> list[Table]:
    rows = []
    with real_model(effort) as model_server, workbench(model_server, **effort.told) as bench:
        _measure_real(bench, effort, 1, rounds=1, lines=WARM_UP_LINES)  # imports, and the first connections
        for in_flight in effort.in_flight or IN_FLIGHT:
            lines = effort.lines(max(LEAST_REAL_LINES, REAL_LINES * in_flight))
            rounds = _measure_real(bench, effort, in_flight, rounds=effort.rounds, lines=lines)
            ratios = [each["batch"] / max(each[name] for name in each if name != "batch") for each in rounds]
            speeds = [figure(median(each.get(name, float("nan")) for each in rounds), 1) for name in REAL_CLIENTS]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            rows.append([str(in_flight), str(lines), *speeds, figure(median(ratios)), spread])
            if effort.run_batch:
                effort.tell(f"throughput: {lines} lines by {effort.run_batch}")
                rows[-1].append(figure(lines / bare_clients.run_batch(effort.run_batch, bench.input_file), 1))
    columns = ["in flight", "lines", *(f"{name} lines/s" for name in REAL_CLIENTS), "batch/best", "spread"]
    columns += ["run-batch lines/s"] * bool(effort.run_batch)
    return [Table(columns, rows)]


def _measure_real(
    bench: Workbench, effort: Effort, in_flight: int, *, rounds: int, lines: int
) -> list[dict[str, float]]:
    """Lines a second by client, for each round."""
    path = request_files.chats(bench.input_file, lines, MAX_TOKENS, bench.model_server.models)
    found = []
    for number in range(rounds):
        effort.tell(f"throughput: {in_flight} in flight, {lines} lines, round {number + 1} of {rounds}")
        speeds = {}
        for name, run in _clients(bench, in_flight).items():
            if name in REAL_CLIENTS and name != "batch":
                started = time.monotonic()
                run(path)
                speeds[name] = lines / (time.monotonic() - started)
        batch = bench.batch(path)
        speeds["batch"] = lines / bench.seconds_between(batch["id"], "in_progress_at", "completed_at")
        found.append(speeds)
    return found
