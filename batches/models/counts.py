"""What has finished of a batch: the counters on the batch's own row, and beside them a row for each drive at work.

    a drive ── count (batches/counting.py) ──> its Counts of the batch ── fold, when it is over ──> the batch's row

If all drives counted in the batch's row, each would hold the row's lock until its commit is on the disk, so that they
would store one after the other. Whoever reads counts adds the rows up, by `read` and `summed`, and by nothing else. At
its end a batch is recounted from its lines: then its own row has all, and its Counts say no more of what was recounted.

Workers of versions before this one count in the batch's row alone: the sum is right beside them too.
"""

from collections.abc import Collection
from typing import ClassVar, NamedTuple

from django.db import connection, models
from django.db.models import Case, F, OuterRef, Subquery, Sum, When
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Coalesce

from batches.models.lease import Lease
from batches.models.statuses import FINAL

TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
RECOUNTED = frozenset({"completed", "failed", *TOKENS})  # from the lines, when the batch is finalized
COUNTERS = ("completed", "failed", *TOKENS, "repeated_finished")
# The fields of the batch's own row.
FOLDED = {name: f"folded_{name}" for name in COUNTERS}


class Counted(NamedTuple):
    """The counters of a batch. `settled_place`: no line appears at this place or below it any more, so a reader may go
    on behind it."""

    completed: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    repeated_finished: int
    settled_place: int


class Counts(models.Model):
    """What one drive has finished of one batch. No constraint ties it to the batch: an earlier version that deletes a
    batch knows nothing of it. The end of the drive removes it."""

    # No index of its own: the constraint's begins with it.
    batch = models.ForeignKey("Batch", models.CASCADE, db_constraint=False, db_index=False, related_name="counts")
    lease = models.ForeignKey(Lease, models.DO_NOTHING, db_constraint=False, related_name="+")
    completed = models.PositiveBigIntegerField(default=0)
    failed = models.PositiveBigIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)
    reasoning_tokens = models.PositiveBigIntegerField(default=0)
    repeated_finished = models.PositiveBigIntegerField(default=0)
    open_after = models.PositiveBigIntegerField(
        null=True, help_text="The drive has taken places after this one and not stored their lines yet; empty: none."
    )

    class Meta:
        verbose_name_plural = "counts"
        constraints: ClassVar = [models.UniqueConstraint(fields=["batch", "lease"], name="counts_once")]

    def __str__(self) -> str:
        return f"{self.batch_id} by lease {self.lease_id}"


def read(batch_ids: Collection[str]) -> dict[str, Counted]:
    """The counters of these batches, by id. One statement, so that what moves from a drive's row to the batch's
    meanwhile is counted once."""
    if not batch_ids:
        return {}
    sums = ", ".join(f"batch.{name} + COALESCE(SUM(counts.{name}), 0)" for name in COUNTERS)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT batch.id, batch.last_place, MIN(counts.open_after), {sums} FROM batches_batch batch "
            "LEFT JOIN batches_counts counts ON counts.batch_id = batch.id AND batch.status NOT IN (%s, %s, %s, %s) "
            f"WHERE batch.id IN ({', '.join(['%s'] * len(batch_ids))}) GROUP BY batch.id",
            [*FINAL, *batch_ids],
        )
        rows = cursor.fetchall()
    return {
        pk: Counted._make(map(int, (*counters, last if open_after is None else min(last, open_after))))
        for pk, last, open_after, *counters in rows
    }


def summed(name: str) -> Case:
    """The counter of this name as an expression for queries of batches; one of COUNTERS."""
    of_drives = Counts.objects.filter(batch=OuterRef("pk")).order_by().values("batch").annotate(sum=Sum(name))
    recounted = [When(status__in=FINAL, then=F(FOLDED[name]))] if name in RECOUNTED else []
    return Case(
        *recounted,
        default=F(FOLDED[name]) + Coalesce(Subquery(of_drives.values("sum")), 0),
        output_field=models.BigIntegerField(),
    )


def lines_open() -> CombinedExpression:
    """The lines of a batch without a result, as an expression for queries of batches."""
    return F("total") - summed("completed") - summed("failed")
