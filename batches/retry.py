"""Ask the lines of a batch again that have no answer: they become the input file of a new batch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from django.db import transaction
from django.db.models import Q

from batches import creation, lifecycle
from batches.models import FINAL, UNANSWERED, Batch, LineState, Priority
from common import strict_json
from common.errors import SETTLED, ApiError, conflict
from files_api.accept import in_place, store
from files_api.models import File, stored_name
from files_api.storage import MeasuredFile, opened, temporary_file

# What `errors` may name, with the states of the lines.
_STATES = {
    "all": UNANSWERED,
    "failed": [LineState.FAILED],
    "expired": [LineState.EXPIRED, LineState.CANCELLED],
}
ERRORS = list(_STATES)
# The codes of lines that were never finished, with their states; other codes are on the rows.
_CODES = {error["code"]: LineState[state.upper()] for state, error in SETTLED.items()}
PAGE = 2000


@dataclass(frozen=True)
class Wish:
    """Which lines of which batch are asked again, and how.

    `codes` None: whatever their code. `model` None: the model that each line names."""

    parent: Batch
    errors: str = "all"
    codes: list[str] | None = None
    model: str | None = None


@contextmanager
def input_of(wish: Wish) -> Iterator[File]:
    """A file of the lines, in the order of the input, as they stand there, whose row `create` stores in the block; else
    its bytes go again. Memory stays flat.

    Enter it outside of any transaction: no writer waits for it. Raises a 409 if the parent is not over, or its input
    file is gone, and a 400 if no line is left to ask.
    """
    if wish.parent.status not in FINAL:
        raise lifecycle.too_early("retry", wish.parent.status)
    # Of a batch whose input file was another owner's, the file is gone as one that never was.
    files = File.objects.all().visible().filter(owner=wish.parent.owner_id)
    file = files.filter(pk=wish.parent.input_file_id).first()
    if file is None:
        raise _input_is_gone(wish.parent)
    with temporary_file(stored_name(File(), "")) as content:
        try:
            with opened(file.pk, file.content) as source:
                _copy(wish, source, content)
        except ApiError as error:
            raise error if error.status != 404 else _input_is_gone(wish.parent) from None
        except ValueError:
            raise _input_is_gone(wish.parent) from None
        if not content.size:
            raise _nothing_left(wish)
        content.sync()
        name = f"{wish.parent.pk}_retry.jsonl"
        with in_place(content, owner=wish.parent.owner, filename=name, purpose="batch", lifetime=None) as asked:
            yield asked


def create(wish: Wish, asked: File, *, window: str | None, metadata: dict[str, str] | None) -> Batch:
    """The new batch, of what `input_of` gave. `window` and `metadata` None: those of the parent."""
    parent = wish.parent
    with transaction.atomic():
        store(asked)
        return creation.create(
            owner=parent.owner,
            input_file_id=asked.pk,
            endpoint=parent.endpoint,
            completion_window=window or parent.completion_window,
            metadata=parent.metadata if metadata is None else metadata,
            output_lifetime=parent.output_lifetime,
            priority=Priority(parent.priority) if metadata is None else creation.priority(metadata),
            retry_of=parent,
        )


def _copy(wish: Wish, source: IO[bytes], content: MeasuredFile) -> None:
    for page in _pages(wish):
        for offset, length in page:
            source.seek(offset)
            line = source.read(length)
            content.write((_renamed(line, wish.model) if wish.model else line) + b"\n")


def _renamed(line: bytes, model: str) -> bytes:
    request: dict[str, Any] = strict_json.loads(line)
    request["body"]["model"] = model
    return json.dumps(request).encode()


def _pages(wish: Wish) -> Iterator[list[tuple[int, int]]]:
    """Offset and length of the lines, in pages by number: an open cursor would keep SQLite's log from being reset."""
    lines = wish.parent.lines.order_by("number")
    wanted, number = _wanted(wish), 0
    while page := list(lines.filter(number__gt=number).values_list("number", flat=True)[:PAGE]):
        numbers = (page[0], page[-1])
        yield list(lines.filter(wanted, number__range=numbers).values_list("offset", "length"))
        number = numbers[1]


def _wanted(wish: Wish) -> Q:
    states = _STATES[wish.errors]
    of_line, of_original = Q(state__in=states), Q(original__state__in=states)
    if wish.codes is not None:
        settled = [state for code, state in _CODES.items() if code in wish.codes]
        of_line &= Q(state__in=settled) | Q(state=LineState.FAILED, error_code__in=wish.codes)
        of_original &= Q(original__state__in=settled) | Q(
            original__state=LineState.FAILED, original__error_code__in=wish.codes
        )
    return of_line | (Q(state=LineState.REPEATED) & of_original)


def _input_is_gone(parent: Batch) -> ApiError:
    return conflict(
        f"The input file {parent.input_file_id} of {parent.pk} is deleted or expired, so its lines cannot be read. "
        "Upload them again and create a batch of them.",
        code="input_file_gone",
    )


def _nothing_left(wish: Wish) -> ApiError:
    if not wish.parent.lines.exists():
        return ApiError(
            f"{wish.parent.pk} failed because of its input file. Correct the lines that its 'errors' name, and create "
            "a batch of them.",
            code="no_lines_to_retry",
        )
    which = f" with the codes {', '.join(wish.codes)}" if wish.codes is not None else ""
    return ApiError(
        f"No line of {wish.parent.pk} is left to retry (errors: {wish.errors}){which}. "
        f"GET /v1/batches/{wish.parent.pk}/reasons lists the codes that it has.",
        code="no_lines_to_retry",
    )
