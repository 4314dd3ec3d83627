"""What the rest of open batches will take on the disk of DATA_DIR, told before it is full. Reads rows and writes none.

An answer is on the disk twice at the end: in a row of SQLite, and in the result file. Postgres has its rows elsewhere.
All numbers are rough.
"""

from dataclasses import dataclass

from django.db import connection
from django.db.models.functions import Length

from batches.models import FINAL, Batch, Status
from files_api import storage
from files_api.models import File

# Answers whose mean length is taken for that of all.
MOST_MEASURED = 50
# What a line of a result file has beside its answer.
ENVELOPE_BYTES = 200
# Open batches that are added up: those whose windows end first.
MOST_BATCHES = 20


@dataclass(frozen=True)
class Disk:
    """`needed_bytes` is what this batch takes, and `needed_by_all_bytes` what all open ones take together, as far as it
    is known; both are None while nothing tells how long its answers are. `free_bytes` is None where files are on no own
    disk."""

    needed_bytes: int | None
    needed_by_all_bytes: int | None
    free_bytes: int | None

    @property
    def is_too_small(self) -> bool:
        return self.needed_by_all_bytes is not None and storage.missing_bytes(self.needed_by_all_bytes) > 0


@dataclass(frozen=True)
class _Need:
    rows: float
    files: float


class Needs:
    """What batches need, each read once for all forecasts that are made together."""

    def __init__(self) -> None:
        self._needs: dict[str, _Need | None] = {}
        self._open: list[Batch] | None = None
        self._unused: int | None = None

    def disk(self, batch: Batch) -> Disk:
        need, free = self._of(batch), storage.free_bytes()
        if need is None:
            return Disk(None, None, free)
        if self._open is None:
            self._open = list(Batch.objects.exclude(status__in=FINAL).order_by("expires_at", "pk")[:MOST_BATCHES])
        others = [self._of(each) for each in self._open if each.pk != batch.pk]
        return Disk(self._bytes([need]), self._bytes([need, *(each for each in others if each is not None)]), free)

    def _of(self, batch: Batch) -> _Need | None:
        if batch.pk not in self._needs:
            self._needs[batch.pk] = _need(batch)
        return self._needs[batch.pk]

    def _bytes(self, needs: list[_Need]) -> int:
        rows = sum(need.rows for need in needs) if connection.vendor == "sqlite" else 0
        if rows and self._unused is None:
            self._unused = unused_bytes()
        files = sum(need.files for need in needs) if storage.files_take_disk() else 0
        return round(max(0, rows - (self._unused or 0)) + files)


def of(batch: Batch) -> Disk:
    return Needs().disk(batch)


def unused_bytes() -> int:
    """Pages of SQLite's file that new rows take before the file grows."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size")
        return int(cursor.fetchone()[0])


def _need(batch: Batch) -> _Need | None:
    if batch.is_final:
        return _Need(0, 0)
    if batch.status == Status.VALIDATING or not batch.total:
        return None
    each = _answer_bytes(batch) if batch.completed or batch.failed else _earlier_answer_bytes(batch)
    if each is None:
        return None
    files = each * (batch.lines_open + batch.completed) + ENVELOPE_BYTES * batch.total
    # A repeat has no answer of its own in the rows.
    return _Need(rows=each * batch.lines_to_send, files=files)


def _answer_bytes(batch: Batch) -> float | None:
    """The mean length of the answers that came last."""
    last = batch.lines.filter(place__isnull=False).order_by("-place")
    lengths = [length for length in last.values_list(Length("response__body"), flat=True)[:MOST_MEASURED] if length]
    return sum(lengths) / len(lengths) if lengths else None


def _earlier_answer_bytes(batch: Batch) -> float | None:
    """By the result file of the owner's newest earlier batch for the same model: clients are told what comes of it, and
    how long another owner's answers are is no business of theirs."""
    earlier = Batch.objects.filter(owner=batch.owner_id, endpoint=batch.endpoint, folded_completed__gt=0)
    earlier = earlier.filter(model=batch.model, model__isnull=False)
    found = earlier.exclude(output_file=None).order_by("-created_at", "-pk").first()
    if found is None:
        return None
    size = File.objects.filter(pk=found.output_file_id).values_list("bytes", flat=True).first()
    return max(0.0, size / found.completed - ENVELOPE_BYTES) if size else None
