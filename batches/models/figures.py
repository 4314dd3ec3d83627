"""Figures: running totals for `/metrics` that no other row can tell."""

from collections.abc import Mapping
from typing import Any

from django.db import models, transaction

Counts = Mapping[str, Mapping[str, float]]
OTHER = "other"
NO_LABELS = ""  # the key of the one sum of a counter without labels
# The upper bounds of histograms; what is above the last one has a bucket too. A monitor keeps each for every model.
BOUNDS: dict[str, tuple[float, ...]] = {
    "line_seconds": (0.5, 2.0, 5.0, 15.0, 60.0, 300.0),
    "line_output_tokens": (16.0, 64.0, 256.0, 1024.0, 4096.0),
}


class Figures(models.Model):
    """What one source has counted. Each source has a row of its own, so that writers do not wait for each other.

    `values` has counters by their name, each with its sums by their labels (`labels`), and beside them what a source
    says of the present.
    """

    source = models.CharField(primary_key=True, max_length=64)
    values = models.JSONField(default=dict)

    # Different values of a counter's first label in one row. What comes later is counted as OTHER, or a client that
    # thinks up names of models would fill the row, and the monitor's memory.
    MOST_LABELS = 50
    # Sources
    DELETED, FORECASTS, CONTROL, WEBHOOKS = "deleted batches", "forecasts", "control worker", "webhooks"

    class Meta:
        verbose_name_plural = "figures"

    def __str__(self) -> str:
        return self.source

    @classmethod
    def add(cls, source: str, counts: Counts, *, present: Mapping[str, Any] | None = None) -> None:
        """Add `counts` to the totals of the source, and put what is in `present` in the place of what was there. One
        transaction, or a part of the caller's."""
        with transaction.atomic():
            cls.objects.get_or_create(pk=source)
            row = cls.objects.select_for_update().get(pk=source)
            for name, sums in counts.items():
                _add(row.values.setdefault(name, {}), sums, most=cls.MOST_LABELS)
            row.values |= present or {}
            row.save(update_fields=["values"])


def labels(*values: str) -> str:
    """The key of a sum: the values of its counter's labels, in the counter's order."""
    return "\t".join(value.replace("\t", " ") for value in values)


def _add(totals: dict[str, float], sums: Mapping[str, float], *, most: int) -> None:
    known = {key.partition("\t")[0] for key in totals} - {OTHER}
    for key, value in sums.items():
        first, tab, rest = key.partition("\t")
        if first not in known and len(known) >= most:
            key = OTHER + tab + rest
        elif first != OTHER:
            known.add(first)
        totals[key] = totals.get(key, 0) + value
