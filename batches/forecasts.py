"""Look ahead: warn of a batch that ends after its completion window, or whose answers the disk has no room for, and
tell the log how far it is."""

import logging
import time
from collections.abc import Collection
from datetime import timedelta

from django.db import transaction

from batches import lifecycle, webhooks
from batches.models import Batch, Figures
from batches.scheduling import gate
from batches.status import progress
from common import database

logger = logging.getLogger(__name__)

TELL_EVERY_S = 300.0
MOST_BATCHES = 20  # looked at by one tick: those whose windows end first


# Of each batch: its finished lines and the time, when the log was told last.
_told: dict[str, tuple[int, float]] = {}


def review() -> None:
    """Store the warnings of a forecast (`progress.FORECAST`) on batches in progress for which they hold, and remove
    them where they do not hold any more. Logs and sends each once, and keeps the forecasts for /metrics.

    Safe to run twice."""
    ends = []
    batches = list(Batch.objects.all().runnable().order_by("expires_at")[:MOST_BATCHES])
    Batch.read_counters(batches)
    for told in progress.of_each(batches):
        batch = told.batch
        with database.passing_by_locks():
            _store(batch, told)
        _tell(told)
        if told.estimated_end is not None:
            ends.append((told.estimated_end.timestamp(), batch.expires_at.timestamp()))
    Figures.add(Figures.FORECASTS, {}, present={"at": database.now().timestamp(), "ends": ends})


def extend(batch_id: str, length: timedelta) -> bool:
    """`lifecycle.extend`, and the warning about a window that was extended is gone until it holds again."""
    if extended := lifecycle.extend(batch_id, length):
        _replace(batch_id, [], (progress.WINDOW_TOO_SHORT,))
    return extended


def _store(batch: Batch, told: progress.Progress) -> None:
    if told.warnings == batch.warnings:
        return
    found = [each for each in told.warnings if each["code"] in progress.FORECAST]
    with transaction.atomic():
        before = _replace(batch.pk, found, progress.FORECAST)
        new = [each for each in found if each["code"] not in before]
        for each in new:
            webhooks.warn(batch.pk, each["code"], about=batch.expires_at.isoformat())
    for each in new:
        logger.warning("%s: %s", batch.pk, each["message"])


def _tell(told: progress.Progress) -> None:
    """A line in the log every TELL_EVERY_S, if lines of the batch have finished since the last one."""
    batch, now = told.batch, time.monotonic()
    done, at = _told.get(batch.pk, (0, float("-inf")))
    finished = batch.completed + batch.failed
    if finished == done or now < at + TELL_EVERY_S:
        return
    _told[batch.pk] = finished, now
    while len(_told) > 10 * MOST_BATCHES:
        del _told[next(iter(_told))]
    speed = f"{told.lines_per_minute:g} lines a minute" if told.lines_per_minute else "speed not known yet"
    end = gate.clock(told.estimated_end) if told.estimated_end else "not known"
    failed = f", {batch.failed} of them failed" if batch.failed else ""
    counts = f"{finished} of {batch.total} lines finished{failed}"
    logger.info("%s: %s, %s, ends: %s, window ends: %s", batch.pk, counts, speed, end, gate.clock(batch.expires_at))


def _replace(batch_id: str, found: list[dict[str, str]], codes: Collection[str]) -> set[str]:
    """Store these in place of the warnings with those codes; the codes of all that were stored before."""
    with transaction.atomic():
        stored = Batch.objects.select_for_update().values_list("warnings", flat=True).get(pk=batch_id)
        warnings = [each for each in stored if each["code"] not in codes] + found
        if warnings != stored:
            Batch.objects.filter(pk=batch_id).update(warnings=warnings)
    return {each["code"] for each in stored}
