"""What `pause` and `resume` have in common."""

from collections.abc import Callable

from django.core.management.base import CommandError

from batches.models import Batch
from common.errors import ApiError


def each(batch_ids: list[str], do: Callable[[str], object]) -> str:
    """Do it to these batches; their ids, to print. CommandError if one is unknown, and then nothing is done; or if one
    is too far for it, after it was done to the others."""
    known = set(Batch.objects.filter(pk__in=batch_ids).values_list("pk", flat=True))
    if unknown := [batch_id for batch_id in batch_ids if batch_id not in known]:
        raise CommandError(f"No batch found with id {', '.join(map(repr, unknown))}.")
    refused = []
    for batch_id in batch_ids:
        try:
            do(batch_id)
        except ApiError as refusal:
            refused.append(f"{refusal.message} ({batch_id})")
    if refused:
        raise CommandError(" ".join(refused))
    return ", ".join(batch_ids)
