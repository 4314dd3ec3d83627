"""Fail the lines of a model that will never answer, without sending them.

    a drive ── mark ──> part.failure ── fail_lines, slice by slice ──> failed lines

A drive marks the part in one UPDATE and goes on; lines of a marked part are not claimed any more. The control worker
fails the lines: a million of them take minutes, which a drive does not have. The tick finds lines that a drive hands
back later.
"""

import time
from collections.abc import Collection
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Q, QuerySet

from batches import leases, reuse, steps
from batches.backends.replies import LONGEST_CODE, Reply, reason_of
from batches.lifecycle import Outcome
from batches.models import Batch, Figures, Lease, Line, LineState, Part, Response, Status, last_places
from batches.models.figures import labels
from common import database
from common.database import retrying

SLICE_S = 2.0
# Lines in one transaction: a million would keep all other writers waiting.
FAILED_AT_ONCE = 2000


def mark(part_ids: Collection[int], reply: Reply) -> None:
    """Let the pending lines of these parts fail with this reply. The caller wakes the control worker for the batches.
    Safe to run twice: the first reply stays."""
    _mark(Part.objects.filter(pk__in=part_ids), reply)


def mark_model(endpoint: str, model: str, reply: Reply) -> list[str]:
    """Mark the parts for this model of all batches in progress; the ids of these batches, for the caller to wake."""
    batches = Batch.objects.all().in_progress().filter(endpoint=endpoint)
    parts = Part.objects.filter(batch__in=batches, model=model)
    _mark(parts, reply)
    return list(parts.values_list("batch", flat=True))


def _mark(parts: QuerySet[Part], reply: Reply) -> None:
    failure = {"status": reply.status, "body": reply.body}
    told = reason_of(reply)
    failure |= {"code": told["error_code"], "message": told["error_message"]}
    parts.filter(failure__isnull=True).update(failure=failure)


def fail_lines(batch_id: str) -> Outcome:
    """Fail lines of the marked parts of a batch in progress, for SLICE_S at most; MORE if some may be left.

    Safe to run twice and at once. It stops if the batch is cancelled or overdue: finalizing settles the other lines.
    """
    return steps.run(batch_id, "fail_lines", Q(status=Status.IN_PROGRESS), _fail_slice)


def _fail_slice(batch: Batch, keeper: leases.Keeper) -> Outcome:
    ends_at = time.monotonic() + SLICE_S
    for part in batch.parts.filter(failure__isnull=False):
        while retrying(_fail_page, part, part.failure or {}, keeper.lease):
            keeper.keep()
            if time.monotonic() > ends_at:
                return Outcome.MORE
    return Outcome.DONE


def _fail_page(part: Part, failure: dict[str, Any], lease: Lease) -> bool:
    """Fail a page of pending lines with their repeats, and count both. False: the page was the last.

    Raises LeaseLost, and changes nothing, if the batch is not in progress any more or not held by `lease`.
    """
    waiting = Line.objects.filter(part=part, state=LineState.PENDING).order_by("order_key", "number")
    with transaction.atomic():
        # The batch's row first, as everybody locks them, or two could wait for each other.
        place = last_places([part.batch_id]).get(part.batch_id, 0)
        # On Postgres a claim from before the mark may have locked lines. Such lines are sent, or handed back and found
        # by the tick.
        found = waiting.select_for_update(skip_locked=True).values_list("pk", flat=True)
        ids = list(found[:FAILED_AT_ONCE])
        if not ids:
            return False
        Response.store((pk, failure["body"]) for pk in ids)
        Line.objects.filter(pk__in=ids).update(
            state=LineState.FAILED,
            finished_at=database.now(),
            http_status=failure["status"],
            error_code=failure["code"][:LONGEST_CODE],
            error_message=failure["message"],
        )
        _give_places(ids, place)
        repeated = sum(reuse.counts(ids).values())
        counters: dict[str, Any] = {
            "folded_failed": F("folded_failed") + len(ids) + repeated,
            "folded_repeated_finished": F("folded_repeated_finished") + repeated,
        }
        counters |= {"last_place": place + len(ids)}
        ours = Batch.objects.filter(pk=part.batch_id, status=Status.IN_PROGRESS, lease=lease)
        if not ours.update(**counters):
            raise leases.LeaseLost
        Figures.add(Figures.CONTROL, {"failures": {labels(failure["code"] or "unknown"): len(ids)}})
    return len(ids) == FAILED_AT_ONCE


def _give_places(ids: list[int], after: int) -> None:
    """The next places for these lines, in this order and without a gap: `status/speed.py` takes places for counts."""
    with connection.cursor() as cursor:
        places = ((after + rank, pk) for rank, pk in enumerate(ids, start=1))
        cursor.executemany("UPDATE batches_line SET place = %s WHERE id = %s", list(places))
