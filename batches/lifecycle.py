"""The state machine of a batch: the only writer of `Batch.status` and of the stamps that go with it.

    validating ──> in_progress ──> finalizing ──> completed
        │   └──> failed   │            └────────> expired
        └───────────> cancelling ───────────────> cancelled

    in_progress   intake, when every line is good; `total` and `model` are set with it
    failed        intake, when a line is bad; nothing was sent
    finalizing    executor or tick, when no line is open or the completion window is over
    cancelling    the API or the admin, from the two statuses in which there is something to stop
    completed     output, once both files are in place
    expired       output, likewise, if the window was over before some lines
    cancelled     output, likewise, with whatever was finished

Each move is one conditional UPDATE: of two processes that try the same move one wins, and the other gets False.
A move to a final status stores the event that WEBHOOK_URL is told, in the same transaction.
"""

import logging
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from batches.models import FINAL, Batch, Lease, Status, WebhookDelivery
from batchserver import ids
from batchserver.errors import ApiError

logger = logging.getLogger(__name__)

ALLOWED: dict[Status, tuple[Status, ...]] = {
    Status.VALIDATING: (Status.IN_PROGRESS, Status.FAILED, Status.CANCELLING),
    Status.IN_PROGRESS: (Status.FINALIZING, Status.CANCELLING),
    Status.FINALIZING: (Status.COMPLETED, Status.EXPIRED),
    Status.CANCELLING: (Status.CANCELLED,),
}
SOURCES = {to: [status for status, targets in ALLOWED.items() if to in targets] for to in Status}


def move(batch_id: str, to: Status, *, only_if: Q | None = None, lease: Lease | None = None, **fields: Any) -> bool:
    """Move a batch to `to`, stamp `<to>_at` and set `fields`, in one UPDATE. False: somebody else moved it first.

    `lease` fences the move: it happens only while the batch is still held by that lease.
    """
    batches = Batch.objects.filter(pk=batch_id, status__in=SOURCES[to])
    if lease is not None:
        batches = batches.filter(lease=lease)
    if only_if is not None:
        batches = batches.filter(only_if)
    now = timezone.now()
    with transaction.atomic():
        moved = batches.update(status=to, **{f"{to}_at": now}, **fields) == 1
        if moved and to in FINAL and settings.WEBHOOK_URL:
            event = f"batch.{to}"
            event_id = ids.derived_id("evt_", batch_id, event)
            WebhookDelivery.objects.create(id=event_id, batch_id=batch_id, event=event, created_at=now, next_at=Now())
    if moved:
        logger.info("%s: %s", batch_id, to)
    return moved


def cancel(batch_id: str) -> None:
    """Stop a batch; its finished lines are delivered. Again is fine; a batch that is past stopping is a 409."""
    if move(batch_id, Status.CANCELLING):
        return
    status = Batch.objects.values_list("status", flat=True).get(pk=batch_id)
    if status not in (Status.CANCELLING, Status.CANCELLED):
        raise ApiError(
            f"Cannot cancel a batch with status '{status}'.",
            status=409,
            # The official clients retry a 409 unless told that it is for good.
            headers={"x-should-retry": "false"},
        )


def close_finished() -> list[str]:
    """Move batches with no open line, or past their window, to finalizing; the ids of those moved by this call."""
    drained = [
        batch_id
        for batch_id in Batch.objects.drained().values_list("pk", flat=True)
        if move(batch_id, Status.FINALIZING)
    ]
    overdue = [
        batch_id
        for batch_id in Batch.objects.overdue().values_list("pk", flat=True)
        if move(batch_id, Status.FINALIZING, only_if=Q(expires_at__lte=timezone.now()))
    ]
    return drained + overdue
