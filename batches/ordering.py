"""Which line runs next: the oldest batch first, its lines in input order."""

from django.db.models import Exists, OuterRef, Q

from batches.models import Backend, Batch, Line, LineQuerySet


def next_lines(backend: Backend) -> LineQuerySet:
    """The claimable lines of the batch whose turn it is, in the order in which they should be sent; maybe none."""
    waiting = Line.objects.all().claimable()
    for endpoint, model in backend.paused_models.values_list("endpoint", "model"):
        waiting = waiting.exclude(Q(batch__endpoint=endpoint), model=model)
    batch_id = (
        Batch.objects.all()
        .in_progress()
        .filter(Exists(waiting.filter(batch=OuterRef("pk"))))
        .order_by("created_at", "pk")
        .values_list("pk", flat=True)
        .first()
    )
    return waiting.filter(batch=batch_id).order_by("number")
