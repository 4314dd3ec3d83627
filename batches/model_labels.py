"""The label `model` of what batches add to the counters of `/metrics`."""

from django.db.models import Min
from django.db.models.functions import Coalesce

from batches.models import Batch, Figures
from batches.models.figures import OTHER

SEVERAL = "several"  # the model of a batch whose lines name more than one


def named(model: str | None, models: list[str]) -> str:
    """The label of a batch's model: SEVERAL for none, OTHER for what is not among these."""
    if not model:
        return SEVERAL
    return model if model in models else OTHER


def known_models() -> list[str]:
    """The models with sums of their own: the first that the server had lines for, Figures.MOST_LABELS at most.

    A batch has its model from the moment at which its lines are sent, so the order is that of these moments: a model
    that comes later is behind all that are counted already, however long its batch was validated. Nor does the list
    change when batches are deleted (`keep`). So no sum moves from one name to another.
    """
    deleted = dict(Figures.objects.values_list("pk", "values")).get(Figures.DELETED, {}).get("models", {})
    with_model = Batch.objects.filter(total__gt=0, model__isnull=False).order_by()
    first = with_model.values_list("model").annotate(first=Min(Coalesce("in_progress_at", "created_at")))
    alive = [model for model, _ in sorted(first, key=lambda row: (row[1], row[0])) if model]
    names = dict.fromkeys([*sorted(deleted, key=lambda name: int(deleted[name])), *alive])
    return list(names)[: Figures.MOST_LABELS]
