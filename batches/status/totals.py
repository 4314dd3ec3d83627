"""What batches add to the counters of `/metrics`: read from their rows, and kept when the rows are deleted."""

from collections import defaultdict

from django.db.models import Count, QuerySet, Sum

from batches.model_labels import known_models, named
from batches.models import FINAL, Batch, Figures, Status
from batches.models.counts import summed
from batches.models.figures import labels

TOKENS = ("input", "cached", "output", "reasoning")

Totals = dict[str, dict[str, float]]


def of(batches: QuerySet[Batch], models: list[str] | None = None) -> Totals:
    """The sums over these batches: counter -> labels -> sum. `models` (`known_models()`) have names of their own."""
    models = known_models() if models is None else models
    totals: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    counters = ["completed", "failed", "repeated_finished", *(f"{kind}_tokens" for kind in TOKENS)]
    sums = {f"all_{name}": Sum(summed(name)) for name in counters}
    rows = batches.order_by().values_list("model", "status").annotate(Sum("total"), **sums)
    lines = totals["lines"]
    for name, status, total, completed, failed, repeated, *tokens in rows:
        model = named(name, models)
        lines[labels(model, "completed")] += completed
        lines[labels(model, "failed")] += failed
        if status in (Status.CANCELLED, Status.EXPIRED):
            # The rest of its lines: those that the end of the batch settled.
            lines[labels(model, status)] += max(0, total - completed - failed)
        totals["lines_repeated"][labels(model)] += repeated
        for kind, count in zip(TOKENS, tokens, strict=True):
            totals["tokens"][labels(model, kind)] += int(count)
    for status, count in batches.order_by().filter(status__in=FINAL).values_list("status").annotate(Count("pk")):
        totals["batches_finished"][status] += count
    return {name: dict(sums_of) for name, sums_of in totals.items()}


def keep(batches: QuerySet[Batch]) -> None:
    """Keep what these batches have added, since they are deleted in the caller's transaction."""
    models = known_models()
    gone = set(batches.values_list("model", flat=True))
    Figures.add(Figures.DELETED, of(batches, models))
    with_order = Figures.objects.select_for_update().get(pk=Figures.DELETED)
    order = with_order.values.setdefault("models", {})
    for model in models:
        if model in gone:
            order.setdefault(model, len(order))
    with_order.save(update_fields=["values"])
