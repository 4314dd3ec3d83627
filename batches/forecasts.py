"""Warn of a batch whose forecast end lies beyond its completion window, or whose answers the disk has no room for,
before the night is lost."""

import logging
from collections.abc import Collection
from datetime import timedelta

from django.db import transaction

from batches import lifecycle
from batches.models import Batch
from batches.status import progress

logger = logging.getLogger(__name__)

MOST_BATCHES = 20  # looked at by one tick: those whose windows end first


def review() -> None:
    """Store the warnings of a forecast (`progress.FORECAST`) on batches in progress for which they hold, and remove
    them where they do not hold any more. Logs each once. Safe to run twice."""
    batches = Batch.objects.all().runnable().order_by("expires_at")
    for batch in batches[:MOST_BATCHES]:
        _store(batch)


def extend(batch_id: str, length: timedelta) -> None:
    """`lifecycle.extend`, and the warning about the window is gone until it holds again."""
    lifecycle.extend(batch_id, length)
    _replace(batch_id, [], (progress.WINDOW_TOO_SHORT,))


def _store(batch: Batch) -> None:
    told = progress.of(batch).warnings
    if told == batch.warnings:
        return
    found = [each for each in told if each["code"] in progress.FORECAST]
    before = _replace(batch.pk, found, progress.FORECAST)
    for each in found:
        if each["code"] not in before:
            logger.warning("%s: %s", batch.pk, each["message"])


def _replace(batch_id: str, found: list[dict[str, str]], codes: Collection[str]) -> set[str]:
    """Store these in place of the warnings with those codes; the codes of all that were stored before."""
    with transaction.atomic():
        stored = Batch.objects.select_for_update().values_list("warnings", flat=True).get(pk=batch_id)
        warnings = [each for each in stored if each["code"] not in codes] + found
        if warnings != stored:
            Batch.objects.filter(pk=batch_id).update(warnings=warnings)
    return {each["code"] for each in stored}
