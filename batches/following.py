"""The lines of a batch in the order in which they finish, while it runs and after its end.

Each finished line has a place (`Line.place`), and a reader goes on after the last one that it has. Responses have the
answers until the batch is over; then the result file has them, in the order of the input. So what a reader has not got
by then comes in that order. Lines without a place, of batches from before places, come last.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.conf import settings
from django.db.models import Case, F, Value, When
from django.db.models.functions import Coalesce, Length

from batches.models import FINAL, UNANSWERED, Batch, BatchQuerySet, LineState, Status
from batches.results import PAGE, chunks, result_line
from common import ids
from common.errors import ApiError
from files_api.models import File
from files_api.storage import opened

# The names of the result files, as `ids.derived_file_id` takes them.
FILES = {"output": "output", "errors": "error"}
STATES = {"output": [LineState.SUCCEEDED], "errors": UNANSWERED}


@dataclass(frozen=True)
class Following:
    """`last` is the place to go on after; `is_whole`: the batch is over, and no line follows."""

    batch: Batch
    kind: str
    after: int
    last: int
    is_whole: bool

    @classmethod
    def of(cls, batch: Batch, kind: str, after: int) -> "Following":
        """`kind`: output or errors. Raises a 404 if the batch is over and its result file is deleted, and a 503
        if it cannot be read now."""
        following = cls(batch, kind, after, batch.counted.settled_place + batch.is_final, batch.is_final)
        if batch.is_final and after < following.last:
            file = _result_file(batch, kind)
            if file is not None:
                opened(file.pk, file.content).close()  # what cannot be read is told before the answer begins
        return following

    def lines(self) -> Iterator[str]:
        """The lines after `after`, up to `last`, each with its line end. Memory stays flat."""
        place = self.after
        if not self.is_whole:
            for place, text in self._from_rows():  # noqa: B007  (used behind the loop)
                yield text
            if not Batch.objects.filter(pk=self.batch.pk, status__in=FINAL).exists():
                return
        # Over by now, maybe since a moment ago: the rest is read from the result file.
        yield from self._from_file(place)

    def _from_rows(self) -> Iterator[tuple[int, str]]:
        """Place and text of each finished line, with its answer from its Response; ends once the batch is over."""
        lines = self.batch.lines.filter(state__in=STATES[self.kind]).order_by("place")
        place = self.after
        while page := list(
            lines.filter(place__gt=place, place__lte=self.last).values_list("place", Length(BODY))[:PAGE]
        ):
            for first, last in chunks(page):
                rows = list(lines.filter(place__range=(first, last)).values_list("pk", "place", *COLUMNS))
                # Tidying deletes Responses only after the final move, so those that were read before it are whole.
                if Batch.objects.filter(pk=self.batch.pk, status__in=FINAL).exists():
                    return
                for pk, place, *columns in rows:
                    yield place, result_line(self.batch.pk, *columns)
                    if self.batch.repeated:
                        yield from ((place, text) for text in self._repeats(pk, columns))
            place = page[-1][0]

    def _repeats(self, original: int, columns: list[Any]) -> Iterator[str]:
        lines = self.batch.lines.filter(original=original, state=LineState.REPEATED).order_by("number")
        number = 0
        while page := list(lines.filter(number__gt=number).values_list("number", "custom_id")[:PAGE]):
            for number, custom_id in page:
                yield result_line(self.batch.pk, *[number, custom_id, *columns[2:], original])

    def _from_file(self, after: int) -> Iterator[str]:
        if after >= self.last:
            return
        file = _result_file(self.batch, self.kind)
        if file is None:
            return
        with file.content.open("rb") as stream:
            line = stream.readline()
            for number, place in self._places():
                # A line of the file belongs to the row whose number its id comes from.
                if not line.startswith(
                    b'{"id":"%s"' % ids.derived_id(ids.BATCH_REQUEST, self.batch.pk, number).encode()
                ):
                    continue
                if after < place <= self.last:
                    yield line.decode()
                if not (line := stream.readline()):
                    return

    def _places(self) -> Iterator[tuple[int, int]]:
        """Number and place of each line in the order of the input."""
        rows, without = self.batch.lines.order_by("number"), self.batch.last_place + 1
        place: F | Case = F("place")
        if self.batch.repeated:
            place = Case(When(original__isnull=False, then=F("original__place")), default=F("place"))
        number = 0
        while page := list(rows.filter(number__gt=number).values_list("number", place)[:PAGE]):
            for number, known in page:
                yield number, without if known is None else known


def early_id(batch: Batch, kind: str) -> str | None:
    """The id that a result file of this batch will have; None before and after the time in which it is shown, and
    without EARLY_RESULT_FILES."""
    if not settings.EARLY_RESULT_FILES or batch.is_final or batch.status == Status.VALIDATING:
        return None
    return ids.derived_file_id(batch.pk, FILES[kind])


class FollowedFile(NamedTuple):
    batch: Batch
    kind: str
    is_made: bool


def followed_file(file_id: str, *, among: BatchQuerySet) -> FollowedFile | None:
    """The one of these batches whose result file this is, or will be; None if it is another file."""
    for name, kind in (("output_file", "output"), ("error_file", "errors")):
        if batch := among.filter(**{name: file_id}).first():
            return FollowedFile(batch, kind, is_made=True)
    if settings.EARLY_RESULT_FILES and not File.objects.filter(pk=file_id).exists():
        for batch in among.exclude(status__in=FINAL).only("pk", "status").iterator():
            for kind in FILES:
                if file_id == early_id(batch, kind):
                    return FollowedFile(batch, kind, is_made=False)
    return None


COLUMNS = ("number", "custom_id", "state", "http_status", "response__body", "error_code", "error_message")
BODY = Coalesce("response__body", Value(""))


def _result_file(batch: Batch, kind: str) -> File | None:
    """The result file of a batch that is over; None if it has none of this kind. Raises a 404 if it is deleted."""
    now = Batch.objects.get(pk=batch.pk)
    file_id = now.output_file_id if kind == "output" else now.error_file_id
    if file_id is None:
        return None
    file = File.objects.all().visible().filter(pk=file_id).first()
    if file is None:
        raise ApiError(f"The result file {file_id} of {batch.pk} is deleted or expired.", status=404)
    return file
