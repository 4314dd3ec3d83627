"""Rows to result files, once a batch has nothing left to send; and what is let go afterwards."""

import json
import logging
from collections.abc import Callable, Iterator
from itertools import chain

from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models import Count, Q, Sum
from django.db.models.functions import Length
from django.utils import timezone

from batches import leases, lifecycle
from batches.models import OPEN, Batch, Lease, Line, LineState, Status
from batchserver import failpoints, ids
from batchserver.errors import line_error
from files_api import retention
from files_api.models import RESULTS, File, stored_name
from files_api.storage import temporary_file

logger = logging.getLogger(__name__)

PAGE = 1000
PART_BYTES = 8 * 2**20
TOKENS = ["input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"]
MESSAGES = {
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

    def run(self) -> None:
        try:
            self._settle_open_lines()
            failpoints.reach("before_finalize_write")
            output = self._write("output", [LineState.SUCCEEDED])
            errors = self._write("error", [LineState.FAILED, LineState.CANCELLED, LineState.EXPIRED])
        except _LeaseLost:
            logger.warning("%s: finalizing was taken over", self.batch.pk)
            return
        files = [file for file in (output, errors) if file is not None]
        if not self._finish(output, errors, files):
            for file in files:
                file.content.delete(save=False)

    def _pause(self) -> None:
        if not leases.renew(self.lease):
            raise _LeaseLost
        self.breathe()

    def _settle_open_lines(self) -> None:
        """Close what was not finished when the batch was cancelled or its window ended. A late result then finds its
        line not running any more, and is dropped."""
        state = LineState.CANCELLED if self.batch.status == Status.CANCELLING else LineState.EXPIRED
        while ids_ := list(self.batch.lines.all().open().order_by("number").values_list("pk", flat=True)[:PAGE]):
            settled = {"state": state, "lease": None, "finished_at": timezone.now()}
            Line.objects.filter(pk__in=ids_, state__in=OPEN).update(**settled)
            self._pause()

    def _pages(self, states: list[LineState]) -> Iterator[Line]:
        """The lines in input order, by keyset pages: an open cursor would keep SQLite's log from being reset."""
        number = 0
        lines = self.batch.lines.filter(state__in=states).order_by("number")
        while page := list(
            lines.filter(number__gt=number).values_list("number", Length("response") + Length("error_message"))[:PAGE]
        ):
            # A page of long replies is read in parts: a million short ones cost few queries, long ones little memory.
            for first, last in _parts(page):
                yield from lines.filter(number__range=(first, last))
                self._pause()
            number = page[-1][0]

    def _write(self, name: str, states: list[LineState]) -> File | None:
        """The file of the lines in these states, in place on disk but without a row yet; None if there are no lines.

        Its id comes from the batch; its stored name holds our token, so that nobody else writes to it.
        """
        lines = (result_line(line).encode("ascii") for line in self._pages(states))
        first = next(lines, None)
        if first is None:
            return None
        now = timezone.now()
        file = File(
            id=ids.derived_file_id(self.batch.pk, name),
            filename=f"{self.batch.pk}_{name}.jsonl",
            purpose=RESULTS,
            created_at=now,
            expires_at=now + self.batch.output_lifetime if self.batch.output_lifetime else None,
        )
        with temporary_file() as content:
            for line in chain([first], lines):
                content.write(line)
            content.seek(0)
            file.bytes, file.sha256 = content.size, content.sha256
            file.content.save(f".{self.lease.pk}", content, save=False)
        failpoints.reach("after_result_file")
        return file

    def _finish(self, output: File | None, errors: File | None, files: list[File]) -> bool:
        counts = self.batch.lines.aggregate(
            completed=Count("pk", filter=Q(state=LineState.SUCCEEDED)),
            failed=Count("pk", filter=Q(state=LineState.FAILED)),
            expired=Count("pk", filter=Q(state=LineState.EXPIRED)),
            **{name: Sum(name, default=0) for name in TOKENS},
        )
        expired = counts.pop("expired")
        if self.batch.status == Status.CANCELLING:
            final = Status.CANCELLED
        else:
            final = Status.EXPIRED if expired else Status.COMPLETED
        with transaction.atomic():
            # The move first: its fence keeps a loser from colliding with the winner's rows.
            moved = lifecycle.move(
                self.batch.pk, final, lease=self.lease, output_file=output, error_file=errors, **counts
            )
            if moved:
                File.objects.bulk_create(files)
        failpoints.reach("after_final_move")
        return moved


def _parts(page: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """From (number, size) of lines in order: the first and the last number of each part of about PART_BYTES."""
    first, size = page[0][0], 0
    for index, (number, bytes_) in enumerate(page):
        size += bytes_
        if size >= PART_BYTES or index == len(page) - 1:
            yield first, number
            if index < len(page) - 1:
                first, size = page[index + 1][0], 0


def result_line(line: Line) -> str:
    """A line of the output or the error file, ASCII, with its line end. Its ids depend on the row alone."""
    response, error = "null", "null"
    if line.response:
        request_id = ids.derived_id("req_", line.batch_id, line.number)
        # The reply is stored as compact ASCII JSON and goes in as it is.
        response = f'{{"status_code":{line.http_status},"request_id":"{request_id}","body":{line.response}}}'
    else:
        error = json.dumps(MESSAGES.get(LineState(line.state)) or line_error(line.error_code, line.error_message))
    result_id = ids.derived_id("batch_req_", line.batch_id, line.number)
    custom_id = json.dumps(line.custom_id)
    return f'{{"id":"{result_id}","custom_id":{custom_id},"response":{response},"error":{error}}}\n'


def tidy(batch_id: str, *, breathe: Callable[[], None]) -> None:
    """Let go of what a batch in a final status does not need any more. Safe to run twice.

    The rows give up their answers (the files hold them), a failed batch its lines, and the input file its hold.
    """
    batch = Batch.objects.get(pk=batch_id)
    if not batch.is_final or batch.tidied_at is not None:
        return
    number = 0
    while page := list(batch.lines.filter(number__gt=number).order_by("number").values_list("pk", "number")[:PAGE]):
        lines = Line.objects.filter(pk__in=[pk for pk, _ in page])
        if batch.status == Status.FAILED:
            lines.delete()
        else:
            lines.exclude(response="").update(response="")
        number = page[-1][1]
        breathe()
        failpoints.reach("mid_tidy")
    _remove_lost_results(batch)
    retention.release(batch.pk)
    Batch.objects.filter(pk=batch.pk).update(tidied_at=timezone.now())


def _remove_lost_results(batch: Batch) -> None:
    """Remove result files that a finalizer wrote and could not deliver because it was killed."""
    for name, delivered in (("output", batch.output_file), ("error", batch.error_file)):
        directory, _, stem = stored_name(File(id=ids.derived_file_id(batch.pk, name)), "").rpartition("/")
        try:
            _, found = default_storage.listdir(directory)
        except FileNotFoundError:
            continue
        for filename in found:
            path = f"{directory}/{filename}"
            if filename.startswith(f"{stem}.") and (delivered is None or path != delivered.content.name):
                default_storage.delete(path)
