"""`manage.py benchmark [SCENARIO …]`: figures that can be measured again on any machine, each compared inside one run.

A scenario (one module of benchmarks each) starts a server of its own (web, workers, broker, as `manage.py serve` does)
with a data directory of its own inside DATA_DIR, so on the disk that counts, and a model server to measure with. All of
it is removed at the end, even after an error. A figure that misses its target is printed like any other.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from inspect import cleandoc
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from benchmarks import effort, figures, report
from benchmarks.disk import disk
from benchmarks.drives import drives
from benchmarks.effort import Effort
from benchmarks.idle import idle
from benchmarks.intake import intake
from benchmarks.latency import latency
from benchmarks.load import load
from benchmarks.machines import machines
from benchmarks.money import money
from benchmarks.networks import NotHere
from benchmarks.overhead import overhead
from benchmarks.pages import pages
from benchmarks.person import person
from benchmarks.prefixes import prefixes
from benchmarks.scale import scale
from benchmarks.several_models import models
from benchmarks.tables import Table
from benchmarks.throughput import throughput

Scenario = Callable[[Effort], list[Table]]
# In the order of the report; a scenario's docstring is its text there.
SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        *(overhead, throughput, idle, prefixes, models, intake, scale, disk, drives, latency, load, person, pages),
        *(machines, money),
    )
}


class Command(BaseCommand):
    help = "Measure this server on this machine and print the figures. Needs no model server."

    def add_arguments(self, parser: CommandParser) -> None:
        names = ", ".join(SCENARIOS)
        parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {names} (default: all)")
        parser.add_argument(
            "--write", action="store_true", help=f"put the figures into {report.PATH} too, and draw them"
        )
        parser.add_argument("--draw", action="store_true", help=f"measure nothing; draw what {report.PATH} says")
        effort.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        names = options["scenarios"] or list(SCENARIOS)
        if unknown := [name for name in names if name not in SCENARIOS]:
            raise CommandError(f"There is no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}.")
        if options["write"] or options["draw"]:
            try:
                figures.library()
            except figures.NoLibrary as error:
                raise CommandError(str(error)) from None
        if options["draw"]:
            report.redraw(SCENARIOS)
            return
        chosen = Effort.chosen(options, self._tell)
        try:
            with _ended_by_signals():
                for name in names:
                    try:
                        self._measure(name, SCENARIOS[name], chosen, write=options["write"])
                    except NotHere as error:
                        if options["scenarios"]:
                            raise
                        self._tell(f"{name} is left out. {error}")
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted. Everything that was started is stopped and removed.", returncode=130
            ) from None
        self.stdout.write(f"\n{report.machine()}\n{report.versions()}")

    def _measure(self, name: str, scenario: Scenario, chosen: Effort, *, write: bool) -> None:
        command = " ".join(["python manage.py benchmark", name, *chosen.arguments()])
        measured_at = f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC with `{command}`."
        figures = "\n\n".join(map(str, scenario(chosen)))
        self.stdout.write(f"\n{name}\n\n{figures}\n")
        self.stdout.flush()
        if write:
            text = f"{cleandoc(scenario.__doc__ or '')}\n\n```\n{figures}\n```\n\n{measured_at}"
            report.write(name, text, SCENARIOS)

    def _tell(self, progress: str) -> None:
        """To stderr, so that the figures alone can be sent to a file, and not in the red of an error."""
        self.stderr.write(progress, str)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, and a second signal does not interrupt the clean-up."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
