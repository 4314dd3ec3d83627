"""The scenario `drives`."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from django.conf import settings
from django.core.management.base import CommandError

from batchserver import first_start
from benchmarks.effort import Effort
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import settings_names

# Drives, and the lines that each stores in a transaction.
CASES = ((8, 1), (32, 1))
SECONDS = 5.0
LEAST_RATIO = 0.9


def drives(effort: Effort) -> list[Table]:
    """How many lines a second many drives store: of one batch together, and of a batch each.

    Each drive is a process that claims lines and stores answers, one in a transaction, as answers that come slowly are
    stored; no model server is asked. `one batch` are the lines a second of all drives on one batch, `own batches` if
    each has a batch of its own. The two take turns, and each figure is the median of the rounds; `ratio` is that of one
    batch. All share the machine's cores with the database, so the figures tell what drives wait for each
    other, and not what more machines would do. With `--database-url` all is measured with that Postgres too, which has
    to be empty.
    """
    databases = {"SQLite": ""} | ({"Postgres": effort.database_url} if effort.database_url else {})
    return [_table(effort, database, url) for database, url in databases.items()]


def _table(effort: Effort, database: str, url: str) -> Table:
    effort.tell(f"drives: {', '.join(str(count) for count, _ in CASES)} on {database}")
    rows, worst = [], float("inf")
    for count, group, speeds in _measure(effort, url):
        one, own = (statistics.median(speeds[name]) for name in ("one", "own"))
        worst = min(worst, one / own)
        rows.append([str(count), str(group), figure(one, 0), figure(own, 0), figure(one / own)])
    columns = [f"{database} drives", "lines/transaction", "one batch lines/s", "own batches lines/s", "ratio"]
    target = f"drives on one batch store at least {LEAST_RATIO:g} of what they store on a batch each"
    return Table(columns, rows, verdict(target, worst >= LEAST_RATIO, f"{worst:.2f} at least"))


def _measure(effort: Effort, url: str) -> list[tuple[int, int, dict[str, list[float]]]]:
    """In a process of its own, whose settings name the database."""
    first_start.make_directories()
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.DATA_DIR) as directory:
        ours = {"ENV_FILE": os.devnull, "DATA_DIR": str(Path(directory) / "data"), "DATABASE_URL": url}
        ours["DJANGO_SETTINGS_MODULE"] = "batchserver.settings"
        words = [max(0.2, SECONDS * effort.scale), effort.rounds, json.dumps(CASES)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.drives_at_work", *map(str, words)],
            cwd=settings.BASE_DIR,
            env=os.environ | dict.fromkeys(settings_names(), "") | ours,
            stdout=subprocess.PIPE,
            text=True,
        )
    if done.returncode:
        raise CommandError("The drives could not be measured.")
    found: list[tuple[int, int, dict[str, list[float]]]] = json.loads(done.stdout)
    return found
