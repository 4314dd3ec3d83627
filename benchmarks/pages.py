"""The scenario `pages`."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from batchserver import first_start
from benchmarks.effort import Effort
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import settings_names

LINES, BATCHES = 1_000_000, 2_000
MOST_MS = 300


def pages(effort: Effort) -> list[Table]:
    """How long the admin takes for each of its pages, with 1,000,000 lines and 2,000 batches in the database (SQLite).

    Half of the lines are those of one batch that runs and is half done, four tenths those of one that is over and has
    its result files, and the others are spread over small batches, of which ten wait for their turn. The pages are made
    in one process, by Django's test client, which has all middleware and no network. `ms` is the median of the rounds,
    `first ms` the first one, in which templates are read. `queries` and `KiB` are those of one page.
    """
    lines, batches = effort.lines(LINES, least=1000), effort.lines(BATCHES, least=20)
    effort.tell(f"pages: {lines:,} lines, {batches:,} batches")
    found = _measure(lines, batches, effort.rounds)
    rows = [
        [page["name"], figure(page["first_ms"], 0), figure(page["ms"], 0), str(page["queries"]), figure(page["kib"], 0)]
        for page in found
    ]
    slowest = max(found, key=lambda page: page["ms"])
    remark = verdict(
        f"each page in less than {MOST_MS} ms",
        slowest["ms"] < MOST_MS,
        f"{figure(slowest['ms'], 0)} ms for {slowest['name']}",
    )
    return [Table(["page", "first ms", "ms", "queries", "KiB"], rows, remark)]


def _measure(lines: int, batches: int, rounds: int) -> list[dict[str, Any]]:
    """In a process of its own, whose settings name a directory of its own."""
    first_start.make_directories()
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=settings.DATA_DIR) as directory:
        ours = {"ENV_FILE": os.devnull, "DATA_DIR": str(Path(directory) / "data")}
        done = subprocess.run(
            [sys.executable, "manage.py", "time_pages", str(lines), str(batches), str(rounds)],
            cwd=settings.BASE_DIR,
            env=os.environ | dict.fromkeys(settings_names(), "") | ours,
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise CommandError("The pages could not be measured.")
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found
