"""The scenario `disk`."""

import time

from benchmarks import request_files
from benchmarks.effort import Effort
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import POLL_EVERY_S, fixed_latency, workbench

BATCHES = 3
LINES = 100_000
LINE_BYTES = 300
WORDS = 100
IN_FLIGHT = 64
MOST_GROWTH = 0.5  # of the largest size: what another batch may add to the database


def disk(effort: Effort) -> list[Table]:
    """What batches take on disk, while they run and after.

    Batches of 100,000 lines of 300 bytes with answers of 100 words, one after the other. Input and results are the
    files of that batch. `database` is the size of the database (SQLite) once the batch is tidied: the answers have
    left it, and the next batch uses their pages again. `in use` is without the pages that wait for that: what the
    rows of all lines so far take, by which the API and the admin show each line, until their batch is deleted.
    """
    lines = effort.lines(LINES)
    rows, sizes = [], []
    with fixed_latency() as model_server, workbench(model_server, BACKEND_PARALLEL=str(IN_FLIGHT)) as bench:
        for number in range(1, BATCHES + 1):
            effort.tell(f"disk: batch {number} of {lines:,} lines")
            model_server.want(words=WORDS)
            path = request_files.plain(bench.input_file, lines, LINE_BYTES, model_server.models)
            batch = bench.batch(path)
            while not bench.is_tidied(batch["id"]):
                time.sleep(POLL_EVERY_S)
            results, (whole, in_use) = bench.output(batch).stat().st_size, bench.database_bytes()
            sizes.append(whole)
            megabytes = [figure(each / 1e6, 1) for each in (path.stat().st_size, results, whole, in_use)]
            rows.append([f"{number}", f"{lines:,}", *megabytes, figure(in_use / lines / number, 0)])
    growth = (sizes[-1] - sizes[0]) / (BATCHES - 1) / sizes[0]
    target = f"another batch adds at most {MOST_GROWTH:g} of what the first took"
    columns = ["batch", "lines", "input MB", "results MB", "database MB", "in use MB", "in use bytes/line"]
    return [Table(columns, rows, verdict(target, growth <= MOST_GROWTH, figure(growth)))]
