"""Which line runs next: the oldest batch first, its lines in input order."""

from django.db.models import Exists, OuterRef, Q

from batches.models import Backend, Batch, Line, LineQuerySet

SUSPICIOUS_CLAIMS = 3


def next_lines(backend: Backend) -> LineQuerySet:
    """The claimable lines of the batch whose turn it is, in the order in which they should be sent; maybe none.

    Lines that were lost with their worker again and again come last of all: one that kills it must not hold up others.
    """
    waiting = Line.objects.all().claimable()
    for endpoint, model in backend.paused_models.values_list("endpoint", "model"):
        waiting = waiting.exclude(Q(batch__endpoint=endpoint), model=model)
    for lines in (waiting.filter(lost_claims__lt=SUSPICIOUS_CLAIMS), waiting):
        batches = Batch.objects.all().in_progress().filter(Exists(lines.filter(batch=OuterRef("pk"))))
        if batch_id := batches.order_by("created_at", "pk").values_list("pk", flat=True).first():
            return lines.filter(batch=batch_id).order_by("number")
    return Line.objects.none()
