"""Write the result files of a batch from its rows, once it has no line left to send."""

import errno
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any

from django.db import transaction
from django.db.models import Case, F, Q, TextField, Value, When
from django.db.models.functions import Coalesce, Length

from batches import leases, lifecycle, model_labels, reuse, steps
from batches.lifecycle import Outcome
from batches.models import OPEN, Batch, Counts, Figures, Line, LineState, Status, last_places
from batches.models.counts import FOLDED, TOKENS
from batches.models.figures import labels
from common import database, failpoints, ids
from common.database import DamagedText, readable
from common.disk import trouble
from common.errors import SETTLED, line_error
from files_api import storage_id
from files_api.models import RESULTS, File, row_id, stored_name
from files_api.storage import MeasuredFile, files_take_disk, free_bytes, temporary_file

logger = logging.getLogger(__name__)

PAGE = 1000
CHUNK_BYTES = 8 * 2**20
FRAME_BYTES = 200  # of a result line without its answer: slightly more than most lines have
MESSAGES: dict[int, dict[str, str]] = {
    LineState.CANCELLED: SETTLED["cancelled"],
    LineState.EXPIRED: SETTLED["expired"],
}
# What stands in place of an answer that the database cannot give any more, and its error. It is no JSON.
DAMAGED = Value("damaged", output_field=TextField())
UNREADABLE = ("answer_unreadable", "The stored answer to this request is damaged. Send the request again.")


def finalize(batch_id: str, *, breathe: Callable[[], None]) -> Outcome:
    """Write the result files of a finalizing or cancelling batch and move it to its final status.

    `breathe` is called between pages, so that other duties do not wait behind a million lines. Safe to run twice and
    at once: one lease holds the batch and fences its last move, and a loser removes only files that it wrote itself.
    """

    def work(batch: Batch, keeper: leases.Keeper) -> Outcome:
        _Finalizer(batch, keeper, breathe).run()
        return Outcome.DONE

    return steps.run(batch_id, "finalize", Q(status__in=[Status.FINALIZING, Status.CANCELLING]), work)


class _Finalizer:
    def __init__(self, batch: Batch, keeper: leases.Keeper, breathe: Callable[[], None]) -> None:
        self.batch = batch
        self.keeper = keeper
        self.breathe = breathe
        self.states: Counter[int] = Counter()
        self.tokens = [0] * len(TOKENS)
        self.files: dict[str, File] = {}

    def run(self) -> None:
        """Raises CannotGoOn if the files cannot be written now, or LeaseLost; the files are removed then."""
        self._settle_open_lines()
        failpoints.reach("before_finalize_write")
        try:
            self._make_files()
        except leases.LeaseLost:
            self._remove_files()
            raise
        except OSError as error:
            self._remove_files()
            raise steps.CannotGoOn(f"The result files cannot be written: {trouble(error)}") from error
        # An error here removes no file: the move may be committed all the same, and the files delivered.
        if not self._finish():
            self._remove_files()
            raise leases.LeaseLost

    def _between_pages(self) -> None:
        self.keeper.keep()
        self.breathe()

    def _make_files(self) -> None:
        if self.batch.stalls:
            self._check_room()
        with temporary_file(self._stored_as("output")) as output, temporary_file(self._stored_as("error")) as errors:
            self._write(output, errors)
            for name, content in (("output", output), ("error", errors)):
                if content.size:
                    self._put_in_place(name, content)

    def _stored_as(self, name: str) -> str:
        """Made of the batch's id and the lease's, so that no other finalizer writes to it."""
        return stored_name(File(id=ids.derived_file_id(self.batch.pk, name)), f".{self.keeper.lease.pk}")

    def _remove_files(self) -> None:
        """The tidying removes any file that cannot be removed here."""
        for file in self.files.values():
            with suppress(OSError):
                file.content.delete(save=False)

    def _check_room(self) -> None:
        """Find a full disk by counting bytes, rather than by writing lines until the disk is full at every try."""
        wanted = 0
        for page in self._sizes():
            wanted += sum(size + FRAME_BYTES for _, size in page)
            self._between_pages()
        free = free_bytes()
        if files_take_disk() and free is not None and free < wanted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _settle_open_lines(self) -> None:
        """Close the lines that were not finished when the batch was cancelled or its window ended. A late answer then
        finds its line not running any more, and is dropped. Repeats go with their originals.

        One pass over the numbers is enough: a settled line never opens again, and a line that is handed back meanwhile
        is open still. A query for the open lines alone would scan all settled lines, page after page.
        """
        state = LineState.CANCELLED if self.batch.status == Status.CANCELLING else LineState.EXPIRED
        while Line.objects.all().open().filter(part__batch=self.batch).exists():
            for numbers in ranges(self.batch):
                settled = {"state": state, "lease": None, "finished_at": database.now()}
                with transaction.atomic():
                    place = last_places([self.batch.pk])[self.batch.pk]
                    open_ = self.batch.lines.filter(number__range=numbers, state__in=OPEN)
                    if open_.update(place=F("number") + place, **settled):
                        Batch.objects.filter(pk=self.batch.pk).update(last_place=place + numbers[1])
                self._between_pages()

    def _write(self, output: MeasuredFile, errors: MeasuredFile) -> None:
        """Write each line to its file, and count it: no line changes any more."""
        succeeded = LineState.SUCCEEDED.value
        unreadable = 0
        for rows in self._pages():
            good: list[str] = []
            bad: list[str] = []
            for row in rows:
                state = row[2]
                try:
                    text = result_line(self.batch.pk, *row[:8])
                except ValueError:
                    state, unreadable = LineState.FAILED.value, unreadable + 1
                    text = result_line(self.batch.pk, row[0], row[1], state, None, None, *UNREADABLE)
                (good if state == succeeded else bad).append(text)
                self.states[state] += 1
            for column in range(len(TOKENS)):
                self.tokens[column] += sum(row[8 + column] for row in rows)
            # One write for the page: writing and hashing each line by itself takes longer than making it.
            output.write("".join(good).encode("ascii"))
            errors.write("".join(bad).encode("ascii"))
        if unreadable:
            logger.error("%s: %d stored answers are damaged; their lines are failed", self.batch.pk, unreadable)

    def _pages(self) -> Iterator[list[tuple[Any, ...]]]:
        """What `result_line` needs of the lines, and their tokens, in input order. In keyset pages: an open cursor
        would keep SQLite's log from being reset."""
        for page in self._sizes():
            # A page of long replies is read in chunks: a million short ones cost few queries, long ones little memory.
            for first, last in chunks(page):
                try:
                    yield self._rows(first, last)
                except DamagedText:
                    yield [row for number in range(first, last + 1) for row in self._readable_rows(number)]
                self._between_pages()

    def _rows(self, first: int, last: int, **instead: Any) -> list[tuple[Any, ...]]:
        names = ("state", "http_status", "response__body", "error_code", "error_message")
        columns = [instead.get(name, self._result_column(name)) for name in names]
        lines = self.batch.lines.filter(number__range=(first, last)).order_by("number")
        rows = lines.values_list("number", "custom_id", *columns, "original", *TOKENS)
        return readable(lambda: list(rows))

    def _readable_rows(self, number: int) -> list[tuple[Any, ...]]:
        """The row of this number, or none; with DAMAGED for its answer and its error if they cannot be read."""
        try:
            return self._rows(number, number)
        except DamagedText:
            return self._rows(number, number, response__body=DAMAGED, error_message=DAMAGED)

    def _sizes(self) -> Iterator[list[tuple[int, int]]]:
        """Pages of the lines in input order: number, and the size of the answer."""
        body = Coalesce(self._result_column("response__body"), Value(""))
        size = Length(body) + Length(self._result_column("error_message"))
        lines = self.batch.lines.order_by("number").values_list("number", size)
        number = 0
        while page := list(lines.filter(number__gt=number)[:PAGE]):
            yield page
            number = page[-1][0]

    def _result_column(self, name: str) -> F | Case:
        """A column of a line's result; for a repeat, the column of its original."""
        if not self._has_repeats:
            return F(name)  # without the join, which doubles the time
        return Case(When(original__isnull=False, then=F(f"original__{name}")), default=F(name))

    @cached_property
    def _has_repeats(self) -> bool:
        return reuse.exist_in(self.batch)

    def _put_in_place(self, name: str, content: MeasuredFile) -> None:
        """Make the result file, in place for good but without a row yet. Its id comes from the batch."""
        now = database.now()
        file = File(
            id=row_id(content.stored_as),
            owner_id=self.batch.owner_id,
            filename=f"{self.batch.pk}_{name}.jsonl",
            purpose=RESULTS,
            bytes=content.size,
            sha256=content.sha256,
            created_at=now,
            expires_at=now + self.batch.output_lifetime if self.batch.output_lifetime else None,
        )
        storage_id.check()
        content.sync()
        file.content.save(f".{self.keeper.lease.pk}", content, save=False)
        self.files[name] = file
        failpoints.reach("after_result_file")

    def _finish(self) -> bool:
        if self.batch.status == Status.CANCELLING:
            final = Status.CANCELLED
        else:
            final = Status.EXPIRED if self.states[LineState.EXPIRED] else Status.COMPLETED
        recounted = {
            "completed": self.states[LineState.SUCCEEDED],
            "failed": self.states[LineState.FAILED],
            **dict(zip(TOKENS, self.tokens, strict=True)),
        }
        output, errors = self.files.get("output"), self.files.get("error")
        with transaction.atomic():
            told = Batch.objects.get(pk=self.batch.pk).counted
            counts: dict[str, Any] = {
                FOLDED[name]: count for name, count in {**told._asdict(), **recounted}.items() if name in FOLDED
            }
            # The move first: its fence keeps a loser from colliding with the winner's rows.
            moved = lifecycle.move(
                self.batch.pk, final, lease=self.keeper.lease, output_file=output, error_file=errors, **counts
            )
            if moved:
                File.objects.bulk_create(self.files.values())
                Counts.objects.filter(batch=self.batch).delete()
                self._keep_completed(told.completed - recounted["completed"])
        failpoints.reach("after_final_move")
        return moved

    def _keep_completed(self, lost: int) -> None:
        """Keep `lost` lines as completed for `/metrics`, which were told so and whose answers are damaged. A monitor
        takes a counter that falls for one that began anew, and adds the whole sum once more. So these lines stay
        counted as completed, and count as failed too."""
        if lost > 0:
            model = model_labels.named(self.batch.model, model_labels.known_models())
            Figures.add(Figures.DELETED, {"lines": {labels(model, "completed"): lost}})


def ranges(batch: Batch) -> Iterator[tuple[int, int]]:
    """The first and the last number of each PAGE of the batch's lines in order, from an index alone."""
    numbers = batch.lines.order_by("number").values_list("number", flat=True)
    number = 0
    while page := list(numbers.filter(number__gt=number)[:PAGE]):
        yield page[0], page[-1]
        number = page[-1]


def chunks(page: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """From (number, size) of lines in order: the first and the last number of each chunk of about CHUNK_BYTES."""
    first, size = page[0][0], 0
    for index, (number, bytes_) in enumerate(page):
        size += bytes_
        if size >= CHUNK_BYTES or index == len(page) - 1:
            yield first, number
            if index < len(page) - 1:
                first, size = page[index + 1][0], 0


def result_line(
    batch_id: str,
    number: int,
    custom_id: str,
    state: int,
    http_status: int | None,
    response: str | None,
    error_code: str,
    error_message: str,
    original: int | None = None,
) -> str:
    """A line of the output or the error file, ASCII, with its line end. Its ids depend on batch and number alone.

    `response` is the JSON of the reply; None or empty if there was none.

    A repeat has an `original`, and its state, response and error are those of the original. Raises ValueError if the
    response is not what a drive stores: a row can be damaged.
    """
    answer, error = "null", "null"
    # One digest for both ids: hashing takes as long as all the rest.
    digits = ids.derived_id("", batch_id, number)
    if response:
        # The reply is stored as compact ASCII JSON, and is put in unchanged. Parsing it would take a hundred times as
        # long for an embedding; a look at its form finds what would spoil the file for the lines behind it.
        if not (response.isascii() and response[0] == "{" and response[-1] == "}" and len(response.splitlines()) == 1):
            raise ValueError("the response is no JSON object on one line")
        if original is not None:
            response = reuse.copied(response, batch_id, number)
        answer = f'{{"status_code":{http_status},"request_id":"{ids.REQUEST}{digits}","body":{response}}}'
    else:
        error = json.dumps(MESSAGES.get(state) or line_error(error_code, error_message))
    name = ids.BATCH_REQUEST + digits
    return f'{{"id":"{name}","custom_id":{json.dumps(custom_id)},"response":{answer},"error":{error}}}\n'
