"""Which line runs next: the oldest batch first, its lines by model and by how they begin."""

from django.db.models import Exists, OuterRef

from batches.models import Backend, Batch, Line, LineQuerySet, Part

SUSPICIOUS_CLAIMS = 3


def next_lines(backend: Backend) -> LineQuerySet:
    """The claimable lines of the batch whose turn it is, in the order in which they should be sent; maybe none.

    Lines that were lost with their worker again and again come last of all, and in no order: one of them may be what
    kills it, and those that were only claimed beside it must not wait behind it for ever.
    """
    parts = Part.objects.filter(batch__in=Batch.objects.all().in_progress())
    for endpoint, model in backend.paused_models.values_list("endpoint", "model"):
        parts = parts.exclude(batch__endpoint=endpoint, model=model)
    waiting = Line.objects.all().claimable()
    in_order = ("order_key", "number")
    for lines, order in ((waiting.filter(lost_claims__lt=SUSPICIOUS_CLAIMS), in_order), (waiting, ("?",))):
        with_work = parts.filter(Exists(lines.filter(part=OuterRef("pk"))))
        if part := with_work.order_by("batch__created_at", "batch", "pk").first():
            return lines.filter(part=part).order_by(*order)
    return Line.objects.none()
