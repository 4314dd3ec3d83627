"""How fast lines were finished in the last hours, by the rows of the lines. Reads rows and writes none.

The lines of a batch have places in the order in which they finish, so a few hundred rows, evenly spread over the
places, say when how many were finished. The work is the same for a thousand lines and for a million.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

from django.db.models import Q

from batches.models import Batch, LineState, Status
from common import database

HOURS = 6
STEP = timedelta(minutes=5)
MOST_BATCHES = 12  # the newest of those that ran in these hours
PROBES = 200  # rows that are read of a batch, once to find where the hours begin and once in them

Moment = tuple[int, datetime]  # so many lines were finished then


def last_hours(hours: int = HOURS) -> list[tuple[datetime, float]]:
    """The start of each STEP of the last hours, and the lines a minute that were finished in it; the last one is not
    over."""
    now = database.now()
    # Steps begin at the full five minutes, so that a chart that is drawn again does not flicker.
    last = now.replace(second=0, microsecond=0) - timedelta(minutes=now.minute % (STEP // timedelta(minutes=1)))
    steps = hours * (timedelta(hours=1) // STEP)
    since = last - (steps - 1) * STEP
    lines = [0.0] * steps
    for batch in _ran(since):
        for (before, began), (after, ended) in pairwise(_curve(batch, since)):
            for index, part in _spread(began, ended, since, steps):
                lines[index] += part * (after - before)
    lengths = [STEP / timedelta(minutes=1)] * (steps - 1) + [max(1.0, (now - last) / timedelta(minutes=1))]
    return [
        (since + index * STEP, count / length) for index, (count, length) in enumerate(zip(lines, lengths, strict=True))
    ]


def _ran(since: datetime) -> list[Batch]:
    later = Q(status=Status.IN_PROGRESS) | Q(finalizing_at__gte=since) | Q(cancelling_at__gte=since)
    batches = Batch.objects.filter(later, in_progress_at__isnull=False, last_place__gt=0)
    found = list(batches.order_by("-in_progress_at").defer("errors", "metadata", "warnings")[:MOST_BATCHES])
    Batch.read_counters(found)
    return found


def _curve(batch: Batch, since: datetime) -> list[Moment]:
    """Moments in order of time, the first one before `since` if there is one."""
    # Lines that were settled at the end of the batch have places too; these lines were not asked.
    last = min(batch.counted.settled_place, batch.completed + batch.failed - batch.repeated_finished)
    moments = _probe(batch, 0, last)
    before = [moment for moment in moments if moment[1] < since]
    if before and last > PROBES:
        moments = [before[-1], *_probe(batch, before[-1][0], last)]
    assert batch.in_progress_at is not None  # as `_ran` asks for it
    return [(0, batch.in_progress_at), *moments] if not before else moments


def _probe(batch: Batch, low: int, high: int) -> list[Moment]:
    """Moments of at most PROBES places behind `low`, that of `high` among them."""
    step = max(1, -(-(high - low) // PROBES))
    places = range(high, low, -step)
    lines = batch.lines.filter(place__in=places, state__in=[LineState.SUCCEEDED, LineState.FAILED])
    found = lines.order_by("place").values_list("place", "finished_at")
    return [(place, at) for place, at in found if place is not None and at is not None]


def _spread(began: datetime, ended: datetime, since: datetime, steps: int) -> Iterator[tuple[int, float]]:
    """The steps between two moments, each with its part of the time between them."""
    if ended <= began:
        began = ended - timedelta(microseconds=1)
    first, last = max(0, (began - since) // STEP), min(steps - 1, (ended - since) // STEP)
    for index in range(first, last + 1):
        start = since + index * STEP
        part = (min(ended, start + STEP) - max(began, start)) / (ended - began)
        if part > 0:
            yield index, part
