"""The scenario `load`."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from benchmarks import request_files
from benchmarks.effort import Effort
from benchmarks.engines import MODEL
from benchmarks.request_files import ENDPOINT
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import POLL_EVERY_S, Workbench, fixed_latency, workbench
from client.api import FINAL

LINES, LINE_BYTES = 20_000, 600
DOWNLOAD_BYTES = 1_000_000
LATENCY_MS, SLOTS = 20, 8
MOST_P99_S = 1.0
READS = ("poll", "health", "list", "download")

Results = dict[str, Any]


def load(effort: Effort) -> list[Table]:
    """200 clients that poll, list, upload, create and download while a batch of 20,000 lines runs.

    Each client keeps one connection and pauses for 0.5 to 2.5 s after each request. Of a hundred things that it does,
    70 are polls (of the large batch and of /health), 15 lists, 5 uploads of 1 to 5 MB, which are deleted again, 5
    batches with a file of their own, which are cancelled again, and 5 downloads of 1 MB. Nothing is tried again: a
    connection that breaks counts as broken. The batch is run alone first; the model server takes 20 ms for a line, 8
    at a time. `share` is the speed of the batch beside the clients as a part of that alone. The clients share the
    cores with the server. A change is the deletion of a file or the end of a batch. `--load-s` says for how long they
    ask. With `--database-url` all is measured with that Postgres too, which has to be empty.
    """
    databases = {"SQLite": ""} | ({"Postgres": effort.database_url} if effort.database_url else {})
    return [table for database, url in databases.items() for table in _measured(effort, database, url)]


def _measured(effort: Effort, database: str, url: str) -> list[Table]:
    environment = {"DATABASE_URL": url, "BACKEND_PARALLEL": str(SLOTS)}
    lines, clients = effort.lines(LINES), effort.load_clients
    with fixed_latency() as model_server, workbench(model_server, **environment) as bench:
        model_server.want(latency_ms=LATENCY_MS, slots=SLOTS, words=20)
        downloaded = request_files.plain(bench.directory / "download.jsonl", 10, DOWNLOAD_BYTES // 10, [MODEL])
        file_id = bench.client.upload(downloaded)["id"]
        path = request_files.plain(bench.input_file, lines, LINE_BYTES, model_server.models)
        effort.tell(f"load: {lines} lines alone on {database}")
        alone = _run(bench, path, lambda batch_id: None)
        effort.tell(f"load: {lines} lines beside {clients} clients, {effort.load_s:g} s")
        asking: list[subprocess.Popen[str]] = []

        def ask(batch_id: str) -> subprocess.Popen[str]:
            words = [bench.client.base, batch_id, file_id, str(clients), str(effort.load_s)]
            command = [sys.executable, "-m", "benchmarks.load_clients", *words]
            asking.append(subprocess.Popen(command, cwd=settings.BASE_DIR, stdout=subprocess.PIPE, text=True))
            return asking[0]

        try:
            beside = _run(bench, path, ask)
            results = json.loads(asking[0].communicate()[0])
        finally:
            for each in asking:
                each.kill()
                each.wait()
    figures = [figure(alone, 0), figure(beside, 0), figure(beside / alone)]
    return [
        _answers(database, results),
        Table([database, "lines/s alone", "lines/s beside the clients", "share"], [["batch", *figures]]),
    ]


def _answers(database: str, results: Results) -> Table:
    rows, worst_s = [], 0.0
    faults: Counter[str] = Counter(results["broken"])
    for action, answered in results["answered"].items():
        times = sorted(took_s for took_s, _ in answered)
        failed = Counter(f"{status} ({action})" for _, status in answered if status >= 500)
        if not times:
            continue
        p50, p99 = (times[len(times) * percent // 100] for percent in (50, 99))
        if action in READS:
            worst_s = max(worst_s, p99)
        rows.append([action, figure(len(times), 0), *map(figure, (p50, p99, times[-1])), str(failed.total())])
        faults += failed
    columns = [database, "requests", "p50 s", "p99 s", "max s", "5xx"]
    target = f"no 5xx, no broken connection, and a p99 under {MOST_P99_S:g} s of what only reads"
    found = ", ".join(f"{count} times {what}" for what, count in faults.items()) or "no fault"
    return Table(
        columns, rows, verdict(target, not faults and worst_s < MOST_P99_S, f"{found}, p99 {worst_s:.2f} s at most")
    )


def _run(bench: Workbench, path: Path, begin: Callable[[str], "subprocess.Popen[str] | None"]) -> float:
    """Lines a second of a batch, from its first line to its last one or to the end of the process that `begin` starts.
    Raises CommandError unless each custom_id is answered once."""
    batch = bench.client.create(path, ENDPOINT, "24h")
    bench.wait_for(batch["id"], ("in_progress", *FINAL))
    clients, started = begin(batch["id"]), time.monotonic()
    answered = 0
    while True:
        counts = bench.client.batch(batch["id"])["request_counts"]
        answered, took_s = counts["completed"], time.monotonic() - started
        if answered + counts["failed"] >= counts["total"] or (clients is not None and clients.poll() is not None):
            break
        time.sleep(POLL_EVERY_S)
    done = bench.wait_for(batch["id"], FINAL)
    wanted = [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]
    found = [json.loads(line)["custom_id"] for line in bench.output(done).read_text().splitlines()]
    if found != wanted:
        raise CommandError(f"{len(wanted)} lines got {len(found)} answers, to {len(set(found))} of them.")
    return float(answered / took_s)
