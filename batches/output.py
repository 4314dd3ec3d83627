"""Rows to result files, once a batch has nothing left to send."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from django.db import transaction
from django.db.models import Case, F, When
from django.db.models.functions import Length
from django.utils import timezone

from batches import leases, lifecycle, repeats
from batches.models import OPEN, Batch, Lease, Line, LineState, Status
from batchserver import failpoints, ids
from batchserver.errors import line_error
from files_api.models import RESULTS, File
from files_api.storage import MeasuredFile, temporary_file

logger = logging.getLogger(__name__)

PAGE = 1000
PART_BYTES = 8 * 2**20
TOKENS = ["input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"]
MESSAGES: dict[int, dict[str, str]] = {
    LineState.CANCELLED: line_error("batch_cancelled", "The batch was cancelled before this request executed."),
    LineState.EXPIRED: line_error(
        "batch_expired", "This request could not be executed before the completion window expired."
    ),
}


def finalize(batch_id: str, *, breathe: Callable[[], None]) -> None:
    """Write the result files of a finalizing or cancelling batch and move it to its final status.

    `breathe` is called between pages, so that other duties do not wait behind a million lines. Safe to run twice and
    at once: one lease holds the batch, the last move is fenced by it, and a loser removes only what it wrote itself.
    """
    lease = leases.acquire("finalize")
    try:
        waiting = Batch.objects.filter(pk=batch_id, status__in=[Status.FINALIZING, Status.CANCELLING], lease=None)
        if waiting.update(lease=lease):
            _Finalizer(Batch.objects.get(pk=batch_id), lease, breathe).run()
    except OSError as error:
        # A full disk, most likely: the tick asks again until there is room.
        logger.error("%s: the result files cannot be written yet: %s", batch_id, error.strerror)
    finally:
        leases.release(lease)


class _LeaseLost(Exception):
    pass


class _Finalizer:
    def __init__(self, batch: Batch, lease: Lease, breathe: Callable[[], None]) -> None:
        self.batch = batch
        self.lease = lease
        self.breathe = breathe
        self.renewed_at = time.monotonic()
        self.states: Counter[int] = Counter()
        self.tokens = [0] * len(TOKENS)

    def run(self) -> None:
        files: dict[str, File] = {}
        try:
            self._settle_open_lines()
            failpoints.reach("before_finalize_write")
            with temporary_file() as output, temporary_file() as errors:
                self._write(output, errors)
                for name, content in (("output", output), ("error", errors)):
                    if content.size:
                        files[name] = self._put_in_place(name, content)
        except _LeaseLost:
            logger.warning("%s: finalizing was taken over", self.batch.pk)
            return
        if not self._finish(files):
            for file in files.values():
                file.content.delete(save=False)

    def _pause(self) -> None:
        if time.monotonic() > self.renewed_at + leases.RENEW_EVERY_S:
            if not leases.renew(self.lease):
                raise _LeaseLost
            self.renewed_at = time.monotonic()
        self.breathe()

    def _settle_open_lines(self) -> None:
        """Close what was not finished when the batch was cancelled or its window ended. A late result then finds its
        line not running any more, and is dropped. Repeats go with their originals.

        One pass over the numbers does it: no line opens again, and one that is handed back meanwhile is open still. To
        look for open lines again and again would be to pass each time over all that are settled.
        """
        state = LineState.CANCELLED if self.batch.status == Status.CANCELLING else LineState.EXPIRED
        while Line.objects.all().open().filter(part__batch=self.batch).exists():
            for numbers in ranges(self.batch):
                settled = {"state": state, "lease": None, "finished_at": timezone.now()}
                self.batch.lines.filter(number__range=numbers, state__in=OPEN).update(**settled)
                self._pause()

    def _write(self, output: MeasuredFile, errors: MeasuredFile) -> None:
        """Write each line to its file, and count it: no line changes any more."""
        succeeded = LineState.SUCCEEDED.value
        for rows in self._pages():
            good: list[str] = []
            bad: list[str] = []
            for row in rows:
                state = row[2]
                (good if state == succeeded else bad).append(result_line(self.batch.pk, *row[:8]))
                self.states[state] += 1
            for column in range(len(TOKENS)):
                self.tokens[column] += sum(row[8 + column] for row in rows)
            # In one piece: writing and hashing each line by itself takes longer than making it.
            output.write("".join(good).encode("ascii"))
            errors.write("".join(bad).encode("ascii"))

    def _pages(self) -> Iterator[list[tuple[Any, ...]]]:
        """What `result_line` needs of the lines, and their tokens, in input order. By keyset pages: an open cursor
        would keep SQLite's log from being reset."""
        has_repeats = repeats.exist_in(self.batch)

        def outcome(name: str) -> F | Case:
            """Of a repeat that of its original. The join only where it is needed: it doubles the time."""
            return (
                Case(When(original__isnull=False, then=F(f"original__{name}")), default=F(name))
                if has_repeats
                else F(name)
            )

        size = Length(outcome("response")) + Length(outcome("error_message"))
        columns = [outcome(name) for name in ("state", "http_status", "response", "error_code", "error_message")]
        number = 0
        lines = self.batch.lines.order_by("number")
        while page := list(lines.filter(number__gt=number).values_list("number", size)[:PAGE]):
            # A page of long replies is read in parts: a million short ones cost few queries, long ones little memory.
            for first, last in _parts(page):
                part = lines.filter(number__range=(first, last))
                yield list(part.values_list("number", "custom_id", *columns, "original", *TOKENS))
                self._pause()
            number = page[-1][0]

    def _put_in_place(self, name: str, content: MeasuredFile) -> File:
        """The result file, in place on disk but without a row yet.

        Its id comes from the batch; its stored name holds our token, so that nobody else writes to it.
        """
        now = timezone.now()
        file = File(
            id=ids.derived_file_id(self.batch.pk, name),
            filename=f"{self.batch.pk}_{name}.jsonl",
            purpose=RESULTS,
            bytes=content.size,
            sha256=content.sha256,
            created_at=now,
            expires_at=now + self.batch.output_lifetime if self.batch.output_lifetime else None,
        )
        content.seek(0)
        file.content.save(f".{self.lease.pk}", content, save=False)
        failpoints.reach("after_result_file")
        return file

    def _finish(self, files: dict[str, File]) -> bool:
        if self.batch.status == Status.CANCELLING:
            final = Status.CANCELLED
        else:
            final = Status.EXPIRED if self.states[LineState.EXPIRED] else Status.COMPLETED
        counts: dict[str, Any] = {
            "completed": self.states[LineState.SUCCEEDED],
            "failed": self.states[LineState.FAILED],
            **dict(zip(TOKENS, self.tokens, strict=True)),
        }
        output, errors = files.get("output"), files.get("error")
        with transaction.atomic():
            # The move first: its fence keeps a loser from colliding with the winner's rows.
            moved = lifecycle.move(
                self.batch.pk, final, lease=self.lease, output_file=output, error_file=errors, **counts
            )
            if moved:
                File.objects.bulk_create(files.values())
        failpoints.reach("after_final_move")
        return moved


def ranges(batch: Batch) -> Iterator[tuple[int, int]]:
    """The first and the last number of each PAGE of its lines in order, by an index alone."""
    numbers = batch.lines.order_by("number").values_list("number", flat=True)
    number = 0
    while page := list(numbers.filter(number__gt=number)[:PAGE]):
        yield page[0], page[-1]
        number = page[-1]


def _parts(page: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """From (number, size) of lines in order: the first and the last number of each part of about PART_BYTES."""
    first, size = page[0][0], 0
    for index, (number, bytes_) in enumerate(page):
        size += bytes_
        if size >= PART_BYTES or index == len(page) - 1:
            yield first, number
            if index < len(page) - 1:
                first, size = page[index + 1][0], 0


def result_line(
    batch_id: str,
    number: int,
    custom_id: str,
    state: int,
    http_status: int | None,
    response: str,
    error_code: str,
    error_message: str,
    original: int | None = None,
) -> str:
    """A line of the output or the error file, ASCII, with its line end. Its ids depend on batch and number alone.

    State, response and error of a repeat, which has an `original`, are those of the original.
    """
    answer, error = "null", "null"
    # For both ids: hashing takes as long as all the rest.
    digits = ids.derived_id("", batch_id, number)
    if response:
        if original is not None:
            response = repeats.copied(response, batch_id, number)
        # The reply is stored as compact ASCII JSON and goes in as it is.
        answer = f'{{"status_code":{http_status},"request_id":"req_{digits}","body":{response}}}'
    else:
        error = json.dumps(MESSAGES.get(state) or line_error(error_code, error_message))
    return f'{{"id":"batch_req_{digits}","custom_id":{json.dumps(custom_id)},"response":{answer},"error":{error}}}\n'
