"""Answers that another batch may use again: only with ANSWER_ONCE_ACROSS_BATCHES, and for KEPT_FOR.

They belong to a model's name: an answer stays though another model was put in the name's place.
"""

from collections.abc import Iterable
from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from batches import repeats
from batches.models import Answer, Line

KEPT_FOR = timedelta(days=30)
FORGOTTEN_AT_ONCE = 1000  # a tick keeps nobody waiting


def remember(answered: Iterable[tuple[Line, str]]) -> None:
    """Keep the responses of lines that were answered, where they have one answer alone. Safe to run twice: the first
    answer stays."""
    if not settings.ANSWER_ONCE_ACROSS_BATCHES:
        return
    known = {bytes(line.digest).hex(): response for line, response in answered if line.digest is not None}
    # In one order, or two drives that store the same answers could wait for each other.
    rows = [Answer(digest=digest, response=response) for digest, response in sorted(known.items())]
    Answer.objects.bulk_create(rows, ignore_conflicts=True)


def recall(line: Line) -> str | None:
    """The response to a line that was answered in another batch, with the line's own ids and a usage of 0; None if
    there is none."""
    if not settings.ANSWER_ONCE_ACROSS_BATCHES or line.digest is None:
        return None
    oldest = timezone.now() - KEPT_FOR
    known = Answer.objects.filter(pk=bytes(line.digest).hex(), created_at__gt=oldest)
    response = known.values_list("response", flat=True).first()
    return repeats.copied(response, line.batch_id, line.number) if response else None


def forget_old() -> None:
    """Forget some of what is older than KEPT_FOR. Called again and again."""
    old = Answer.objects.filter(created_at__lt=timezone.now() - KEPT_FOR).order_by("created_at")
    if digests := list(old.values_list("pk", flat=True)[:FORGOTTEN_AT_ONCE]):
        Answer.objects.filter(pk__in=digests).delete()
