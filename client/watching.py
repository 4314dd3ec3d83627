"""Following a batch to its end, with what the server says of it: never a guess of our own."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from client import rendering
from client.api import FINAL, Server
from client.trouble import Away

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

FIRST_POLL_S, MOST_POLL_S = 0.2, 2.0
PLAIN_EVERY_S = 30.0  # without a terminal each report is a line of a log
WORDS = {
    "validating": "reading the file",
    "in_progress": "in progress",
    "finalizing": "writing the result files",
    "cancelling": "being cancelled",
}


class Display(ABC):
    """Shows one report of `/progress` after another. Notes that stay are printed once each."""

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.has_forecast = False

    def show(self, progress: dict[str, Any]) -> None:
        # The first that there is; later ones stand in each report.
        if not self.has_forecast and (text := rendering.forecast(progress)):
            self.has_forecast = True
            self.note(text)
        for warning in progress.get("warnings") or []:
            self.note(f"Warning: {warning['message']}")
        if progress["waiting_for"]:
            self.note(f"Waiting: {progress['waiting_for']}")
        else:
            # The same reason is told again when it comes back.
            self.told = {note for note in self.told if not note.startswith("Waiting: ")}
        self.report(progress)

    def note(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self.write(text)

    def write(self, text: str) -> None:
        """Print a line that stays. Names and messages in it come from others."""
        self.print(rendering.printable(text))

    def print(self, text: str) -> None:
        click.echo(text)

    @abstractmethod
    def report(self, progress: dict[str, Any]) -> None: ...

    def close(self) -> None:  # noqa: B027  # most displays have nothing to end
        """The last report was given."""


class Silent(Display):
    """For `--json`: what is printed is JSON alone, so notes go to the error output."""

    def print(self, text: str) -> None:
        click.echo(text, err=True)

    def report(self, progress: dict[str, Any]) -> None:
        pass


class Plain(Display):
    """A line when the status changes, at the end, and every PLAIN_EVERY_S."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.now = now
        self.status = ""
        self.due_at = 0.0

    def report(self, progress: dict[str, Any]) -> None:
        if progress["status"] == self.status and self.now() < self.due_at:
            return
        self.status, self.due_at = progress["status"], self.now() + PLAIN_EVERY_S
        told = filter(None, [rendering.counts(progress), rendering.speed(progress)])
        self.write(": ".join(filter(None, [WORDS.get(self.status, self.status), ", ".join(told)])))


class Live(Display):
    """A bar that moves, in a terminal: how far it is, and below it how fast and when it ends."""

    BAR_WIDTH = 30  # with the longest counts beside it, that is 80 letters at most

    def __init__(self) -> None:
        super().__init__()
        from rich.live import Live as Screen
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (BarColumn(self.BAR_WIDTH), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
        self.bar: Bar = Progress(*columns, auto_refresh=False)
        self.task = self.bar.add_task("", total=None)
        self.screen = Screen(self.bar, auto_refresh=False)
        self.screen.start()

    def print(self, text: str) -> None:
        from rich.text import Text

        self.screen.console.print(Text(text))

    def report(self, progress: dict[str, Any]) -> None:
        from rich.console import Group
        from rich.text import Text

        told, status = progress["request_counts"], progress["status"]
        words = [] if status == "in_progress" else [WORDS.get(status, rendering.printable(status))]
        self.bar.update(
            self.task,
            total=told["total"] or None,
            completed=told["completed"] + told["failed"],
            description=rendering.counts(progress),
        )
        below = ", ".join(filter(None, [*words, rendering.speed(progress)]))
        self.screen.update(Group(self.bar, Text(below)) if below else self.bar, refresh=True)

    def close(self) -> None:
        self.screen.stop()


def display(as_json: bool) -> Display:
    """What suits the output: JSON, a terminal, or a file."""
    if as_json:
        return Silent()
    return Live() if rendering.is_terminal() else Plain()


def until_over(
    server: Server, batch_id: str, shown: Display, each: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The batch in its final status. `each` is called after each report. A server that does not answer is waited for: a
    batch may outlive its restarts."""
    poll_s = FIRST_POLL_S
    try:
        while True:
            try:
                progress = server.get(f"batches/{batch_id}/progress")
                shown.show(progress)
                if progress["status"] in FINAL:
                    return server.batch(batch_id)
                each()
            except Away as error:
                server.while_away()
                shown.note(f"Waiting: {error.message} It is asked again until it does.")
            time.sleep(poll_s)
            poll_s = min(poll_s * 1.5, MOST_POLL_S)
    finally:
        shown.close()
