"""How a drive counts what it stores, without waiting for other drives (batches/models/counts.py has why).

A place (`Line.place`) tells a reader of a running batch how far it got. So nothing may appear below a place that a
reader has seen, and yet drives store at the same time, and one with lower places may commit later. Therefore a drive
takes its places before it stores, in a moment, and notes on its own row after which place they begin (`open_after`).
The transaction that stores takes the note back. A reader goes up to the lowest place that is noted.

On SQLite one process writes at a time, and takes the places in the transaction that stores.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from django.db import connection, transaction
from django.db.models import F

from batches.models import FINAL, Batch, BatchQuerySet, Counts, Lease
from batches.models.counts import COUNTERS, FOLDED, RECOUNTED

# The batch's row is locked for this statement alone. It need not wait for the disk: the commit that stores lines at
# these places does, and brings all before it to the disk.
OPEN = (
    "WITH taken AS "
    "(UPDATE batches_batch SET last_place = last_place + %s WHERE id = %s RETURNING last_place - %s AS last) "
    f"INSERT INTO batches_counts (batch_id, lease_id, open_after, {', '.join(COUNTERS)}) "
    f"SELECT %s, %s, last, {', '.join('0' for _ in COUNTERS)} FROM taken "
    "ON CONFLICT (batch_id, lease_id) DO UPDATE SET open_after = EXCLUDED.open_after "
    "RETURNING open_after, set_config('synchronous_commit', 'off', true)"
)
TAKE = "UPDATE batches_batch SET last_place = last_place + %s WHERE id = %s RETURNING last_place - %s"
COUNT = (
    f"INSERT INTO batches_counts (batch_id, lease_id, {', '.join(COUNTERS)}) "
    f"VALUES (%s, %s, {', '.join('%s' for _ in COUNTERS)}) ON CONFLICT (batch_id, lease_id) DO UPDATE SET "
    + ", ".join(f"{name} = batches_counts.{name} + EXCLUDED.{name}" for name in COUNTERS)
    + ", open_after = NULL"
)


@contextmanager
def storing(lease: Lease, lines: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """A transaction that stores so many finished lines of each batch, and calls `count` for each of them. Gives the
    place behind which the lines of each batch begin. If it is not committed, these places stay unused."""
    if connection.vendor == "sqlite":
        with transaction.atomic():
            yield {batch_id: _after(TAKE, count, batch_id, count) for batch_id, count in lines.items()}
        return
    places = {
        batch_id: _after(OPEN, count, batch_id, count, batch_id, lease.pk) for batch_id, count in sorted(lines.items())
    }
    with transaction.atomic():
        yield places


def _after(statement: str, *values: int | str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        rows = cursor.fetchall()
    return int(rows[0][0]) if rows else 0  # none: the batch was deleted, and no line of it can be stored


def count(lease: Lease, batch_id: str, tally: Mapping[str, int]) -> None:
    """Add to what the drive has counted of this batch (COUNTERS), and take back the note of its places. In the
    transaction that stores the lines."""
    with connection.cursor() as cursor:
        cursor.execute(COUNT, [batch_id, lease.pk, *(tally.get(name, 0) for name in COUNTERS)])


def fold(lease_id: int) -> None:
    """Add what a drive that is over has counted to the rows of the batches, and forget it. One transaction; safe to run
    twice. Call it once no line is claimed by this lease, or a late answer could get a place that was passed over."""
    counts = Counts.objects.filter(lease=lease_id)
    if not (batch_ids := sorted(counts.values_list("batch_id", flat=True))):
        return
    with transaction.atomic():
        # Batches first, in order, as `storing` locks them, or the two could wait for each other.
        list(Batch.objects.select_for_update().filter(pk__in=batch_ids).order_by("pk").values_list("pk"))
        for each in counts:
            more = {name: value for name in COUNTERS if (value := getattr(each, name))}
            batches = Batch.objects.filter(pk=each.batch_id)
            _add(batches.exclude(status__in=FINAL), more)
            _add(batches.filter(status__in=FINAL), {name: more[name] for name in more.keys() - RECOUNTED})
        counts.delete()


def _add(batches: BatchQuerySet, counts: Mapping[str, int]) -> None:
    if counts:
        batches.update(**{FOLDED[name]: F(FOLDED[name]) + count for name, count in counts.items()})
