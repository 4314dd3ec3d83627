"""A table with its answers: all rows once the batch is over, and until then those that are answered so far.

A server sends lines that begin alike one after the other, so answers do not come in the order of the rows. They are
kept on disk until the table is written.
"""

import csv
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from client import delivery
from client.api import Server
from client.prompts import Answers, Cells, Recipe
from client.table import Table
from client.trouble import Trouble

# The table of what is answered so far is written anew so often, and takes a fiftieth of the time at most.
EVERY_S = 60.0
PAUSE_FOR_EACH_S = 50


class Spool:
    """Result lines by their custom_id, in a file that is gone with this process: they may be more than memory holds."""

    def __init__(self, directory: Path) -> None:
        self.file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  # closed by whoever leaves the spool
        self.places: dict[str, tuple[int, int]] = {}
        self.with_answer: set[str] = set()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, lines: Iterable[bytes], *, are_answers: bool = False) -> None:
        """Take lines of an output file, or of an error file. What is known already stays, but for a failure whose line
        has an answer by now; so this is safe to repeat."""
        end = self.file.seek(0, io.SEEK_END)
        for line in lines:
            custom_id = json.loads(line)["custom_id"]
            if custom_id in (self.with_answer if are_answers else self.places):
                continue
            # Ctrl-C may come between any two of these.
            length = self.file.write(line)
            self.places[custom_id] = (end, length)
            end += length
            if are_answers:
                self.with_answer.add(custom_id)

    def get(self, custom_id: str) -> dict[str, Any] | None:
        """None: the line is not there."""
        place = self.places.get(custom_id)
        if place is None:
            return None
        self.file.seek(place[0])
        line: dict[str, Any] = json.loads(self.file.read(place[1]))
        return line


def table(recipe: Recipe, found: Spool, *, answered_only: bool) -> Iterator[bytes]:
    """The rows of the input in their order, with the columns of the answers. `answered_only`: without those that have
    no answer yet."""
    source = recipe.table
    answers = Answers(recipe)
    yield b"\xef\xbb\xbf" if source.encoding in ("utf-8-sig", "utf-16") else b""
    yield _row([*source.columns, *answers.heads], source)
    recipe.seen = {}
    for number, row in source.rows():
        skipped = recipe.skipped
        request = recipe.request(number, row)
        if request is None:
            if recipe.skipped == skipped:
                continue  # --where leaves it out
            cells = Cells(error="skipped: the prompt is empty")
        else:
            line = found.get(request[0])
            if line is None and answered_only:
                continue
            cells = answers.cells(line)
        yield _row([*row.values(), *answers.row(cells)], source)


def _row(cells: Iterable[str], table: Table) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=table.delimiter, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", errors="replace")


class Partial:
    """`OUTPUT.part`: the rows that are answered so far, while a batch runs. It is written anew now and then, so
    whatever stops the command leaves a whole table, and the same command again goes on with it."""

    def __init__(self, recipe: Recipe, found: Spool, output: Path, now: Callable[[], float] = time.monotonic) -> None:
        self.recipe = recipe
        self.found = found
        self.path = output.with_name(f"{output.name}.part")
        self.now = now
        self.due_at = now() + EVERY_S
        self.after: dict[tuple[str, str], int] = {}  # of a batch and what of it: the last line that is known

    def look(self, server: Server, batch_id: str) -> None:
        if self.now() >= self.due_at:
            self.write(server, batch_id)

    def write(self, server: Server, batch_id: str) -> None:
        """Read what was answered since the last time, and write the table. A server that does not answer is left alone:
        the next time has it all."""
        started_at = self.now()
        with suppress(Trouble):
            for what in ("output", "errors"):
                chunk = server.finished_lines(batch_id, what, self.after.get((batch_id, what), 0))
                self.found.add(chunk.lines, are_answers=what == "output")
                self.after[batch_id, what] = chunk.last_line
            delivery.put(table(self.recipe, self.found, answered_only=True), self.path, force=True)
        self.due_at = self.now() + max(EVERY_S, PAUSE_FOR_EACH_S * (self.now() - started_at))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
