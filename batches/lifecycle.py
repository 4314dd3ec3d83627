"""The state machine of a batch: the only writer of `Batch.status` and of the stamps that go with it.

    validating ──> in_progress ──> finalizing ──> completed
        │   └──> failed   │            └────────> expired
        └───────────> cancelling ───────────────> cancelled

    in_progress   validation, if every line is good; `model` is set with it
    failed        validation, if a line is bad; nothing was sent
    finalizing    the dispatcher or the tick, if no line is open or the completion window is over
    cancelling    the API or the admin, while the batch is validating or in progress
    completed     results, once both files are in place
    expired       results, likewise, if the window ended before some lines were finished
    cancelled     results, likewise, with the lines that were finished

Each move is one conditional UPDATE: if two processes try the same move, one wins and the other gets False.
A move to a final status stores the events for the webhooks in the same transaction.

A step of a batch (validation, sending a line, finalizing) that cannot be done now stalls the batch: no step of it is
tried before a backoff is over. The backoff doubles each time, and the reason is told wherever the batch is shown.
"""

import logging
from collections.abc import Callable, Collection
from datetime import timedelta
from enum import Enum
from typing import Any

from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Now

from batches.models import FINAL, Batch, Lease, Status, WebhookDelivery
from common import database
from common.database import GIVEN, from_now
from common.errors import ApiError, conflict

logger = logging.getLogger(__name__)

ALLOWED: dict[Status, tuple[Status, ...]] = {
    Status.VALIDATING: (Status.IN_PROGRESS, Status.FAILED, Status.CANCELLING),
    Status.IN_PROGRESS: (Status.FINALIZING, Status.CANCELLING),
    Status.FINALIZING: (Status.COMPLETED, Status.EXPIRED),
    Status.CANCELLING: (Status.CANCELLED,),
}
NOT_STALLED: dict[str, Any] = {"stalls": 0, "stall_reason": "", "stalled_at": None, "retry_at": None}
FIRST_STALL_S, LONGEST_STALL_S = 2.0, 300.0
MOST_STALLS = 1000  # counted no further: the column is a small integer

SOURCES = {to: [status for status, targets in ALLOWED.items() if to in targets] for to in Status}


class Outcome(Enum):
    """What became of a step of a batch. Only after DONE and MORE is a worker woken."""

    DONE = "done"  # the batch needs this step no more
    MORE = "more"  # a slice of it is done, and the next one can follow at once
    HELD = "held"  # another worker does the step, and wakes the next one
    LATER = "later"  # the batch is stalled; the tick asks again once its backoff is over


def move(batch_id: str, to: Status, *, only_if: Q | None = None, lease: Lease | None = None, **fields: Any) -> bool:
    """Move a batch to `to`, stamp `<to>_at` and set `fields`, in one UPDATE. False: another process moved it first.

    `lease` fences the move: a batch is moved only while that lease holds it.
    """
    batches = Batch.objects.filter(pk=batch_id, status__in=SOURCES[to])
    if lease is not None:
        batches = batches.filter(lease=lease)
    if only_if is not None:
        batches = batches.filter(only_if)
    now = database.now()
    with transaction.atomic():
        moved = batches.update(status=to, **{f"{to}_at": now}, **NOT_STALLED, **fields) == 1
        if moved and to in FINAL:
            WebhookDelivery.announce(batch_id, f"batch.{to}")
    if moved:
        logger.info("%s: %s", batch_id, to)
    return moved


def cancel(batch_id: str) -> bool:
    """Stop a batch; its finished lines are delivered. False if it was cancelled before. Safe to run twice. Raises a 409
    if it is too late to stop it."""
    if move(batch_id, Status.CANCELLING):
        return True
    status = Batch.objects.values_list("status", flat=True).get(pk=batch_id)
    if status not in (Status.CANCELLING, Status.CANCELLED):
        raise too_late("cancel", status)
    return False


def extend(batch_id: str, length: timedelta) -> bool:
    """Let the completion window end `length` from now, if that is later than it ends; False if it is not. Safe to run
    twice.

    Of this and the move of an overdue batch to finalizing, the first UPDATE wins. Raises a 409 if that was the move, or
    if the batch sends no lines any more for another reason.
    """
    ends_at = database.now() + length
    open_ = Batch.objects.filter(pk=batch_id, status__in=(Status.VALIDATING, Status.IN_PROGRESS))
    if open_.filter(expires_at__lt=ends_at).update(expires_at=ends_at):
        logger.info("%s: its completion window ends at %s", batch_id, ends_at.isoformat(timespec="seconds"))
        return True
    if not open_.exists():
        raise too_late("extend", Batch.objects.values_list("status", flat=True).get(pk=batch_id))
    return False


def too_late(to: str, status: str) -> ApiError:
    """The 409 for `to` (a verb), which the status of the batch does not allow any more."""
    return conflict(f"Cannot {to} a batch with status '{status}'.")


def too_early(to: str, status: str) -> ApiError:
    """The 409 for `to` (a verb), which the batch allows after its end alone."""
    return conflict(f"Cannot {to} a batch with status '{status}'. Wait for its end, or cancel it first.")


_FINISHED = database.Asked(Batch.objects.drained, Batch.objects.overdue)
_IS_FINISHED = database.Asked(
    lambda: Batch.objects.drained().filter(pk=GIVEN), lambda: Batch.objects.overdue().filter(pk=GIVEN)
)


def close_finished(closed: Callable[[str], None], among: Collection[str] | None = None) -> None:
    """Move batches with no open line, or past their window, to finalizing; `closed` gets each id at once.

    `among`: look at these batches alone. None is for the tick: it finds what nobody else does, and looks at every batch
    in progress. Each move is a transaction, and its call follows it: an error leaves no batch that was moved without a
    call. Safe to run again.
    """
    if among is None:
        batches = Batch.objects.all()
        any_is = _FINISHED.is_true()
    else:
        finished = [pk for pk in among if _IS_FINISHED.is_true(pk)]
        batches = Batch.objects.filter(pk__in=finished)
        any_is = bool(finished)
    if not any_is:
        return  # as a rule, and many times a minute
    for batch_id in batches.drained().values_list("pk", flat=True):
        _close(batch_id, Q(), closed)
    for batch_id in batches.overdue().values_list("pk", flat=True):
        _close(batch_id, Q(expires_at__lte=Now()), closed)


def _close(batch_id: str, only_if: Q, closed: Callable[[str], None]) -> None:
    moved = False
    with database.passing_by_locks():  # a worker that stands still while it stores an answer holds up its batch alone
        moved = move(batch_id, Status.FINALIZING, only_if=only_if)
    if moved:
        closed(batch_id)


def stall(batch_id: str, reason: str, *, only_in: Status | None = None) -> bool:
    """Try no step of this batch before a backoff is over: FIRST_STALL_S, doubled each time, LONGEST_STALL_S at most.

    `reason` is a sentence for a person, with what to do. Each reason is logged once, however often the batch stalls for
    it. True: the reason is new. Nothing changes during a backoff, or if the batch is no longer `only_in` this status.
    """
    with transaction.atomic():
        batch = Batch.objects.select_for_update().get(pk=batch_id)
        backoff_s = min(LONGEST_STALL_S, FIRST_STALL_S * 2 ** min(batch.stalls, 20))
        stalled = Batch.objects.filter(pk=batch_id, status=only_in or batch.status).not_stalled()
        changed = stalled.update(
            stalls=min(MOST_STALLS, batch.stalls + 1),
            stall_reason=reason,
            stalled_at=Coalesce(F("stalled_at"), Now()),
            retry_at=from_now(timedelta(seconds=backoff_s)),
            nudged_at=None,  # the tick asks as soon as the backoff is over
        )
    is_new = bool(changed) and batch.stall_reason != reason
    if is_new:
        logger.error("%s: stalled: %s", batch_id, reason)
    return is_new


def unstall(batch_id: str) -> None:
    """End the stall of a batch whose step was done. Cheap, and safe to call if the batch is not stalled."""
    if Batch.objects.filter(pk=batch_id, stalls__gt=0).update(**NOT_STALLED):
        logger.info("%s: goes on", batch_id)


def try_again(batch_id: str) -> bool:
    """End the backoff of a stalled batch; the caller wakes the worker of its next step. False if it is not stalled."""
    return bool(Batch.objects.filter(pk=batch_id, stalls__gt=0).update(retry_at=None, nudged_at=None))
