"""Warn of a batch whose forecast end lies beyond its completion window, before the night is lost."""

import logging
from datetime import timedelta

from django.db import transaction

from batches import lifecycle
from batches.models import Batch
from batches.status import progress

logger = logging.getLogger(__name__)

MOST_BATCHES = 20  # looked at by one tick: those whose windows end first


def review() -> None:
    """Store `window_too_short` among the warnings of batches in progress for which it holds, and remove it where it
    does not hold any more. Logs each once. Safe to run twice."""
    batches = Batch.objects.all().runnable().order_by("expires_at")
    for batch in batches[:MOST_BATCHES]:
        _store(batch)


def extend(batch_id: str, length: timedelta) -> None:
    """`lifecycle.extend`, and the warning about the window is gone until it holds again."""
    lifecycle.extend(batch_id, length)
    _replace(batch_id, [])


def _store(batch: Batch) -> None:
    told = progress.of(batch).warnings
    if told == batch.warnings:
        return
    found = [each for each in told if each["code"] == progress.WINDOW_TOO_SHORT]
    if _replace(batch.pk, found) and found:
        logger.warning("%s: %s", batch.pk, found[0]["message"])


def _replace(batch_id: str, found: list[dict[str, str]]) -> bool:
    """Store this in place of the warning about the window; whether there was none before."""
    with transaction.atomic():
        stored = Batch.objects.select_for_update().values_list("warnings", flat=True).get(pk=batch_id)
        others = [each for each in stored if each["code"] != progress.WINDOW_TOO_SHORT]
        if others + found != stored:
            Batch.objects.filter(pk=batch_id).update(warnings=others + found)
    return len(others) == len(stored)
