"""What the rest of a batch will take on the disk of DATA_DIR, told before it is full. Reads rows and writes none.

An answer is on the disk twice at the end: on its row, and in the result file. All numbers are rough.
"""

from dataclasses import dataclass

from django.db.models.functions import Length

from batches.models import Batch, Status
from files_api import storage
from files_api.models import File

# Answers whose mean length is taken for that of all.
MOST_MEASURED = 50
# What a line of a result file has beside its answer.
ENVELOPE_BYTES = 200


@dataclass(frozen=True)
class Disk:
    """`needed_bytes` is None while nothing tells how long answers are; `free_bytes` where files are on no own disk."""

    needed_bytes: int | None
    free_bytes: int | None

    @property
    def is_too_small(self) -> bool:
        return self.needed_bytes is not None and storage.missing_bytes(self.needed_bytes) > 0


def of(batch: Batch) -> Disk:
    return Disk(_needed(batch), storage.free_bytes())


def _needed(batch: Batch) -> int | None:
    if batch.is_final:
        return 0
    if batch.status == Status.VALIDATING or not batch.total:
        return None
    each = _answer_bytes(batch) if batch.completed or batch.failed else _earlier_answer_bytes(batch)
    if each is None:
        return None
    return round(each * (2 * batch.lines_open + batch.completed) + ENVELOPE_BYTES * batch.total)


def _answer_bytes(batch: Batch) -> float | None:
    """The mean length of the answers that came last."""
    last = batch.lines.filter(place__isnull=False).order_by("-place")
    lengths = [length for length in last.values_list(Length("response__body"), flat=True)[:MOST_MEASURED] if length]
    return sum(lengths) / len(lengths) if lengths else None


def _earlier_answer_bytes(batch: Batch) -> float | None:
    """By the result file of the newest earlier batch for the same model."""
    earlier = Batch.objects.filter(endpoint=batch.endpoint, model=batch.model, model__isnull=False, completed__gt=0)
    found = earlier.exclude(output_file=None).order_by("-created_at", "-pk").first()
    if found is None:
        return None
    size = File.objects.filter(pk=found.output_file_id).values_list("bytes", flat=True).first()
    return max(0.0, size / found.completed - ENVELOPE_BYTES) if size else None
