"""Why lines of a batch have no answer: each code, how many lines, and the first of them.

Read by an index of these lines alone, so the work does not grow with the lines that were answered. The same while the
batch runs and after its end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.core.cache import cache
from django.db import connection

from batches.models import Batch, LineState
from common.errors import SETTLED

MOST_FIRST = 5  # lines that are named for each code
MOST_CODES = 100
MANY = 20_000  # lines, which are counted in some ms
HOLDS_S = 60

# Written out: SQLite uses a partial index only for a condition in the very words of the index.
_COUNTS = (
    "SELECT state, error_code, count(*) FROM batches_line WHERE batch_id = %s AND state IN (3, 4, 5) "
    "GROUP BY state, error_code"
)
_REPEATS = (
    "SELECT original.state, original.error_code, count(*) FROM batches_line AS original "
    "JOIN batches_line AS line ON line.original_id = original.id "
    "WHERE original.batch_id = %s AND original.state IN (3, 4, 5) GROUP BY original.state, original.error_code"
)
_FIRST = (
    "SELECT custom_id, error_message FROM batches_line WHERE batch_id = %s AND state IN (3, 4, 5) AND state = %s "
    "AND error_code = %s ORDER BY number LIMIT %s"
)


# One look into the index for each code, however many lines have it.
_FIRST_OF_STATE = "SELECT number FROM batches_line WHERE batch_id = %s AND state IN (3, 4, 5) AND state = %s LIMIT 1"
_NEXT_CODE = (
    "SELECT error_code FROM batches_line WHERE batch_id = %s AND state IN (3, 4, 5) AND state = %s "
    "AND error_code > %s ORDER BY error_code LIMIT 1"
)


@dataclass
class Reason:
    """`first`: the custom_ids of the first lines in the order of the input; `message` is that of the first."""

    code: str
    message: str
    count: int
    first: list[str]


def of(batch: Batch) -> list[Reason]:
    """The reasons of lines that failed, expired or were cancelled; the commonest first, MOST_CODES at most."""
    found: dict[str, Reason] = {}
    for state, code, count in _counts(batch):
        told = SETTLED.get(LineState(state).name.lower())
        lines = _rows(_FIRST, batch.pk, state, code, MOST_FIRST)
        if not lines:
            continue
        name = told["code"] if told else code or "unknown"
        reason = found.setdefault(name, Reason(name, told["message"] if told else lines[0][1], 0, []))
        reason.count += count
        reason.first = (reason.first + [custom_id for custom_id, _ in lines])[:MOST_FIRST]
    return sorted(found.values(), key=lambda reason: (-reason.count, reason.code))[:MOST_CODES]


def codes(batch: Batch) -> list[str]:
    """The codes of these reasons, sorted, MOST_CODES at most. Nothing is counted."""
    found = {
        told["code"] for state, told in SETTLED.items() if _rows(_FIRST_OF_STATE, batch.pk, LineState[state.upper()])
    }
    if _rows(_FIRST, batch.pk, LineState.FAILED, "", 1):
        found.add("unknown")
    code = ""
    while len(found) < MOST_CODES and (rows := _rows(_NEXT_CODE, batch.pk, LineState.FAILED, code)):
        [(code,)] = rows
        found.add(code)
    return sorted(found)


def lately(batch: Batch) -> list[Reason]:
    """As `of`; where many lines are without an answer, as it was at some time in the last minute: for a page that asks
    every few seconds."""
    if batch.total - batch.completed < MANY:
        return of(batch)
    found = cache.get_or_set(f"reasons:{batch.pk}:{batch.status}", lambda: of(batch), HOLDS_S)
    return found or []


def _counts(batch: Batch) -> Iterator[tuple[int, str, int]]:
    repeats = {(state, code): count for state, code, count in _rows(_REPEATS, batch.pk)} if batch.repeated else {}
    for state, code, count in _rows(_COUNTS, batch.pk):
        yield state, code, count + repeats.get((state, code), 0)


def _rows(statement: str, *values: str | int) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())
