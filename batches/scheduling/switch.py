"""The switch that a person has: no line of one batch, or of any, is sent until it is resumed.

What is on its way to the model server is answered and stored; the completion window goes on. What failures pause, and
trials lift again, is elsewhere (`dispatch.circuit_breaker`, `registry`).
"""

import logging
from datetime import datetime

from django.utils import timezone

from batches import lifecycle
from batches.models import Batch, Hold, Status

logger = logging.getLogger(__name__)

# In these there is something to hold back.
PAUSABLE = (Status.VALIDATING, Status.IN_PROGRESS)


def pause(batch_id: str) -> None:
    """Hold back the lines of a batch. Again is fine; ApiError 409 for a batch that sends no more lines anyway."""
    if Batch.objects.filter(pk=batch_id, status__in=PAUSABLE, paused_at=None).update(paused_at=timezone.now()):
        logger.info("%s: paused", batch_id)
    else:
        _check_pausable(batch_id, "pause")


def resume(batch_id: str) -> None:
    """Let its lines be sent again; the caller wakes a drive. Again is fine; ApiError 409 as for a pause."""
    if Batch.objects.filter(pk=batch_id, status__in=PAUSABLE, paused_at__isnull=False).update(paused_at=None):
        logger.info("%s: resumed", batch_id)
    else:
        _check_pausable(batch_id, "resume")


def _check_pausable(batch_id: str, what: str) -> None:
    status = Batch.objects.values_list("status", flat=True).get(pk=batch_id)
    if status not in PAUSABLE:
        raise lifecycle.too_late(what, status)


def is_paused(batch: Batch) -> bool:
    """A person holds it back. One that ended or is being ended waits for nobody, whatever was asked before."""
    return batch.paused_at is not None and batch.status in PAUSABLE


def pause_all() -> datetime:
    """Hold back all lines, those of later batches too; since when they are. Again is fine."""
    if (since := all_paused_at()) is None:
        since = Hold.objects.create(reason=Hold.Reason.PAUSED).created_at
        logger.info("all batches: paused")
    return since


def resume_all() -> None:
    """Let lines be sent again, those of batches paused one by one excepted; the caller wakes a drive. Again is fine."""
    if Hold.objects.filter(reason=Hold.Reason.PAUSED).delete()[0]:
        logger.info("all batches: resumed")


def all_paused_at() -> datetime | None:
    """Since when all lines are held back by a person; None if they are not."""
    # Of two that paused at the same moment there may be two rows; resuming removes both.
    holds = Hold.objects.filter(backend=None, reason=Hold.Reason.PAUSED)
    return holds.order_by("created_at").values_list("created_at", flat=True).first()
