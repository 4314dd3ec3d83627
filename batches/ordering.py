"""Which line runs next: the oldest batch first, its lines in input order."""

from django.db.models import Exists, OuterRef

from batches.models import Batch, Line, LineQuerySet


def next_lines() -> LineQuerySet:
    """The claimable lines of the batch whose turn it is, in the order in which they should be sent; maybe none."""
    waiting = Line.objects.all().claimable().filter(batch=OuterRef("pk"))
    batch_id = (
        Batch.objects.all()
        .in_progress()
        .filter(Exists(waiting))
        .order_by("created_at", "pk")
        .values_list("pk", flat=True)
        .first()
    )
    return Line.objects.all().claimable().filter(batch=batch_id).order_by("number")
