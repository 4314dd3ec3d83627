"""The scenario `latency`."""

import http.client
import time
from contextlib import closing
from urllib.parse import urlsplit

from django.core.management.base import CommandError

from benchmarks import request_files
from benchmarks.effort import Effort
from benchmarks.request_files import ENDPOINT
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import Workbench, fixed_latency, workbench
from client.api import FINAL

REQUESTS = 500  # to each address
PAUSE_S = 0.005
LINES, LEAST_LINES, LINE_BYTES = 100_000, 5_000, 1_000
IN_FLIGHT = 16
LATENCY_MS = 2
PERCENTILES = (50, 99)
MOST_P99_MS = 50.0


def latency(effort: Effort) -> list[Table]:
    """How long the API takes to answer while a batch runs as fast as it can, against the idle server.

    The model server takes 2 ms for an answer, 16 at once. One client asks for the batch, the list of batches and the
    server's health in turns over one kept connection, with a pause of 5 ms after each answer. All processes share the
    machine's cores.
    """
    count = effort.lines(REQUESTS, least=20)
    with fixed_latency() as model_server, workbench(model_server, BACKEND_PARALLEL=str(IN_FLIGHT)) as bench:
        model_server.want(latency_ms=LATENCY_MS, slots=IN_FLIGHT)
        small = request_files.plain(bench.directory / "small.jsonl", 20, LINE_BYTES, model_server.models)
        batch = bench.batch(small)
        effort.tell(f"latency: {count} requests to each address of the idle server")
        idle = _ask(bench, batch["id"], count)
        lines = effort.lines(LINES, least=LEAST_LINES)
        path = request_files.plain(bench.input_file, lines, LINE_BYTES, model_server.models)
        effort.tell(f"latency: validating {lines} lines")
        batch = bench.client.create(path, ENDPOINT, "24h")
        bench.wait_for(batch["id"], ("in_progress", *FINAL))
        effort.tell(f"latency: {count} requests to each address while they run")
        before = time.monotonic(), bench.client.batch(batch["id"])["request_counts"]["completed"]
        busy = _ask(bench, batch["id"], count)
        batch = bench.client.batch(batch["id"])
        speed = (batch["request_counts"]["completed"] - before[1]) / (time.monotonic() - before[0])
    rows = [[name, *_figures(idle[name]), *_figures(busy[name]), *_ratios(idle[name], busy[name])] for name in busy]
    worst = max(_percentile(times, 99) for times in busy.values())
    remark = verdict(f"p99 under {MOST_P99_MS:g} ms while a batch runs", worst < MOST_P99_MS, f"{worst:.1f} ms at most")
    remark = f"The batch did {figure(speed, 0)} lines/s meanwhile.\n{remark}"
    if batch["status"] != "in_progress":
        remark += " But the batch was over before the last request: take a larger --scale."
    columns = ["GET", "idle p50 ms", "idle p99 ms", "busy p50 ms", "busy p99 ms", "busy/idle p50", "busy/idle p99"]
    return [Table(columns, rows, remark)]


def _ask(bench: Workbench, batch_id: str, count: int) -> dict[str, list[float]]:
    """Milliseconds that each of `count` requests took, by what was asked for."""
    paths = {"batch": f"/v1/batches/{batch_id}", "batches": "/v1/batches", "health": "/health"}
    times: dict[str, list[float]] = {name: [] for name in paths}
    with closing(http.client.HTTPConnection(urlsplit(bench.client.base).netloc, timeout=60)) as connection:
        for _ in range(count):
            for name, path in paths.items():
                started = time.monotonic()
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                times[name].append((time.monotonic() - started) * 1000)
                if response.status != 200:
                    raise CommandError(f"GET {path} answered {response.status}.")
                time.sleep(PAUSE_S)
    return times


def _figures(times: list[float]) -> list[str]:
    return [figure(_percentile(times, percent), 1) for percent in PERCENTILES]


def _ratios(idle: list[float], busy: list[float]) -> list[str]:
    return [figure(_percentile(busy, percent) / _percentile(idle, percent), 1) for percent in PERCENTILES]


def _percentile(times: list[float], percent: int) -> float:
    return sorted(times)[min(len(times) - 1, len(times) * percent // 100)]
