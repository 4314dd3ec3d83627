"""The operator's pause: no line of one batch, or of any batch, is sent until the operator resumes it.

Calls in flight are answered and stored; the completion window goes on. Pauses that failures cause, and that trials or
health probes end, are made elsewhere (`dispatch.circuit_breaker`, `registry`).
"""

import logging
from datetime import datetime

from batches import lifecycle
from batches.models import Batch, Hold, Priority, Status
from common import database

logger = logging.getLogger(__name__)

# A batch in another status has no lines to keep back.
PAUSABLE = (Status.VALIDATING, Status.IN_PROGRESS)


def pause(batch_id: str) -> bool:
    """Keep back the lines of a batch; False if they were kept back before. Safe to repeat.

    ApiError 409 for a batch that sends no more lines anyway.
    """
    if Batch.objects.filter(pk=batch_id, status__in=PAUSABLE, paused_at=None).update(paused_at=database.now()):
        logger.info("%s: paused", batch_id)
        return True
    _check_pausable(batch_id, "pause")
    return False


def resume(batch_id: str) -> bool:
    """Let the lines of a batch be sent again; the caller wakes a drive. False if it was not paused. Safe to repeat;
    errors as for `pause`."""
    if Batch.objects.filter(pk=batch_id, status__in=PAUSABLE, paused_at__isnull=False).update(paused_at=None):
        logger.info("%s: resumed", batch_id)
        return True
    _check_pausable(batch_id, "resume")
    return False


def set_priority(batch_id: str, priority: Priority) -> None:
    """Let the lines of a batch go before or behind those of others, from the next turn on. Safe to repeat; errors as
    for `pause`."""
    if not Batch.objects.filter(pk=batch_id, status__in=PAUSABLE).update(priority=priority):
        _check_pausable(batch_id, "change the priority of")


def _check_pausable(batch_id: str, what: str) -> None:
    status = Batch.objects.values_list("status", flat=True).get(pk=batch_id)
    if status not in PAUSABLE:
        raise lifecycle.too_late(what, status)


def is_paused(batch: Batch) -> bool:
    """An operator has paused the batch. A batch that ended or is ending is not paused, whatever was asked before."""
    return batch.paused_at is not None and batch.status in PAUSABLE


def pause_all() -> datetime:
    """Keep back all lines, those of later batches too; returns since when they are kept back. Safe to repeat."""
    if (since := all_paused_at()) is None:
        since = Hold.objects.create(reason=Hold.Reason.PAUSED).created_at
        logger.info("all batches: paused")
    return since


def resume_all() -> None:
    """Let lines be sent again, but not those of a batch paused by itself; the caller wakes a drive. Safe to repeat."""
    if Hold.objects.filter(reason=Hold.Reason.PAUSED, backend=None).delete()[0]:
        logger.info("all batches: resumed")


def all_paused_at() -> datetime | None:
    """Since when an operator keeps all lines back; None if no operator does."""
    # Two operators who pause at the same moment may leave two rows; `resume_all` removes both.
    holds = Hold.objects.filter(backend=None, reason=Hold.Reason.PAUSED)
    return holds.order_by("created_at").values_list("created_at", flat=True).first()
