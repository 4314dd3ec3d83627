"""Which line runs next: the oldest batch first, its lines in input order."""

from django.db.models import Exists, OuterRef, Q

from batches.models import Backend, Batch, Line, LineQuerySet

SUSPICIOUS_CLAIMS = 3


def next_lines(backend: Backend) -> LineQuerySet:
    """The claimable lines of the batch whose turn it is, in the order in which they should be sent; maybe none.

    Lines that were lost with their worker again and again come last of all, and in no order: one of them may be what
    kills it, and those that were only claimed beside it must not wait behind it for ever.
    """
    waiting = Line.objects.all().claimable()
    for endpoint, model in backend.paused_models.values_list("endpoint", "model"):
        waiting = waiting.exclude(Q(batch__endpoint=endpoint), model=model)
    for lines, order in ((waiting.filter(lost_claims__lt=SUSPICIOUS_CLAIMS), "number"), (waiting, "?")):
        batches = Batch.objects.all().in_progress().filter(Exists(lines.filter(batch=OuterRef("pk"))))
        if batch_id := batches.order_by("created_at", "pk").values_list("pk", flat=True).first():
            return lines.filter(batch=batch_id).order_by(order)
    return Line.objects.none()
