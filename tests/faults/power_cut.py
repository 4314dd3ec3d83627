"""How many answers a power cut takes back on SQLite: those that the API had told, and what had been fsynced by then.

    python -m tests.faults.power_cut [lines] [seconds of an answer]

No cut is made. At each fsync of the database and its log a copy of the file is kept, which is what the disk has for
sure. Twice a second the API is asked how many lines are finished, and the copies then are opened as after a cut.
Needs a C compiler. The status is 1 if a cut would have taken an answer.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "batchserver.settings")
django.setup()

from tests.conftest import line  # noqa: E402
from tests.fake_backend import FakeBackend  # noqa: E402
from tests.stack import Stack  # noqa: E402
from tests.whole_server import client_of, submit  # noqa: E402

LIBRARY = Path(__file__).with_suffix(".c")
# Of the one batch that there is: on its own row, and on those of drives.
FINISHED = "SELECT completed + (SELECT COALESCE(SUM(completed), 0) FROM batches_counts) FROM batches_batch"


def main(lines: int, answer_s: float) -> int:
    """Print what was told and what was kept; the most that a cut would have taken."""
    worst = 0
    with tempfile.TemporaryDirectory() as directory, FakeBackend() as fake:
        data, kept = Path(directory, "data"), Path(directory, "kept")
        data.mkdir(), kept.mkdir()
        library = Path(directory, "power_cut.so")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, LIBRARY, "-ldl"], check=True)
        environment = {"LD_PRELOAD": str(library), "POWER_CUT_OF": str(data), "POWER_CUT_TO": str(kept)}
        fake.delay_s = answer_s
        server = Stack(data, {"OLLAMA_BASE_URL": fake.url, "ENV_FILE": os.devnull} | environment)
        server.start()
        try:
            client = client_of(server)
            batch = submit(client, [line(f"l{number}") for number in range(lines)])
            begun, status = time.monotonic(), ""
            while status != "completed":
                time.sleep(0.5)
                told = client.batches.retrieve(batch.id)
                status = told.status
                assert told.request_counts is not None
                lost = told.request_counts.completed - _finished_in(kept, Path(directory, "after"))
                worst = max(worst, lost)
                sys.stdout.write(f"{told.request_counts.completed} told, {lost} of them lost by a cut\n")
            took_s = time.monotonic() - begun
        finally:
            server.stop()
    sys.stdout.write(f"At most {worst} of {lines} answers lost; {took_s:.1f} s\n")
    return worst


def _finished_in(kept: Path, after: Path) -> int:
    """How many finished lines a server would find after a cut now."""
    shutil.rmtree(after, ignore_errors=True)
    shutil.copytree(kept, after, ignore=shutil.ignore_patterns("*.sqlite3*.*"))
    database = sqlite3.connect(after / "db.sqlite3")
    try:
        [(finished,)] = database.execute(FINISHED).fetchall() or [(0,)]
    finally:
        database.close()
    return int(finished)


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(int(given[0]) if given else 400, float(given[1]) if given[1:] else 0.1) > 0)
