"""Plays all scenarios on both databases and prints the table scenario x invariant:

    python -m tests.faults [part of a scenario's name ...]

`script/test --faults` is the way to call it. The status is 1 if an invariant was broken. All scenarios together, with
no name given, replace the table in docs/reliability.md.
"""

import argparse
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "batchserver.settings")
django.setup()

from benchmarks.report import machine  # noqa: E402
from tests.faults import invariants, scenarios  # noqa: E402
from tests.faults.scenarios import Outcome, Scenario  # noqa: E402
from tests.faults.world import Postgres  # noqa: E402
from tests.stack import ROOT  # noqa: E402

# They mostly wait: for a worker to come back, for a tick, for a lease to expire.
AT_ONCE = 3
REPORT = ROOT / "docs" / "reliability.md"
HEADING = "## The latest table\n"
Row = tuple[Scenario, str, Outcome | None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("names", nargs="*", help="parts of names; all scenarios where there is none")
    options = parser.parse_args()
    chosen = [each for each in scenarios.ALL if any(part in each.name for part in options.names or [""])]
    rows = play(chosen)
    report = table(rows) + problems(rows)
    print(report)
    if not options.names:
        kept = REPORT.read_text().partition(HEADING)[0]
        REPORT.write_text(f"{kept}{HEADING}\n{report}\n{provenance()}")
    return int(any(outcome is not None and not outcome.is_good for _, _, outcome in rows))


def play(chosen: list[Scenario]) -> list[Row]:
    """The outcomes, in the order of the table; None for what this machine cannot play."""
    played: list[tuple[Scenario, str, Future[Outcome] | None]] = []
    with ExitStack() as stack:
        # One of its own for whoever crashes it.
        postgres = stack.enter_context(Postgres()) if Postgres.is_installed() else None
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))

        def submit(scenario: Scenario, database: str) -> Future[Outcome] | None:
            if not scenario.needs() or (database == "postgres" and postgres is None):
                return None
            return pool.submit(_play, scenario, postgres if database == "postgres" else None)

        # The longest first, or the others would wait for them at the end.
        for scenario in sorted(chosen, key=lambda each: not each.is_long):
            for database in ("sqlite", "postgres"):
                if scenario.only_on in ("", database):
                    played.append((scenario, database, submit(scenario, database)))
        rows = [(scenario, database, future and future.result()) for scenario, database, future in played]
    return sorted(rows, key=lambda row: scenarios.ALL.index(row[0]))


def _play(scenario: Scenario, postgres: Postgres | None) -> Outcome:
    if postgres is not None and scenario.only_on == "postgres":
        with Postgres() as own:
            outcome = scenarios.run(scenario, own)
    else:
        outcome = scenarios.run(scenario, postgres)
    print(f"{scenario.name} ({'postgres' if postgres else 'sqlite'}): {outcome}", file=sys.stderr, flush=True)
    if not outcome.is_good:
        print(outcome.log[-3000:], file=sys.stderr, flush=True)
    return outcome


def table(rows: list[Row]) -> str:
    columns = ["played", *invariants.ALL]
    head = ["scenario", "database", *columns, "s"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for scenario, database, outcome in rows:
        if outcome is None:
            cells = ["no", *("" for _ in invariants.ALL), ""]
        else:
            cells = [outcome.cell(column) for column in columns] + [f"{outcome.took_s:.0f}"]
        lines.append(f"| {scenario.name} | {database} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def problems(rows: list[Row]) -> str:
    bad = [f"* {scenario.name}, {database}: {outcome}" for scenario, database, outcome in rows if _is_bad(outcome)]
    return "\nWhat failed:\n\n" + "\n".join(bad) + "\n" if bad else "\nNothing failed.\n"


def _is_bad(outcome: Outcome | None) -> bool:
    return outcome is not None and not outcome.is_good


def provenance() -> str:
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return f"Played {when} by `script/test --faults`.\n{machine()}\n"


if __name__ == "__main__":
    sys.exit(main())
