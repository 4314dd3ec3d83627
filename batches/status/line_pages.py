"""Pages of the lines of a batch, each found by an index from the line at its edge: no page costs more than the first.

The order is that of the index that serves the choice: lines of one state come as they are sent, all lines as in the
input. Nothing is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import Q

from batches.models import UNANSWERED, Batch, Line, LineQuerySet, LineState
from common.errors import SETTLED

MOST = 25
UNKNOWN = "unknown"  # what a reason without a code is called (status.reasons)
# The states of lines that were never finished, by the codes that their result lines have.
_SETTLED = {error["code"]: LineState[state.upper()] for state, error in SETTLED.items()}


@dataclass(frozen=True)
class Choice:
    """Which lines: all of a batch, those of a state, or those with a reason (a code of `status.reasons`)."""

    batch: Batch
    state: LineState | None = None
    reason: str = ""


@dataclass(frozen=True)
class Page:
    """`has_earlier` and `has_later`: there are lines of the choice before the first and behind the last."""

    lines: list[Line]
    has_earlier: bool
    has_later: bool


def page(choice: Choice, *, after: Line | None = None, before: Line | None = None, most: int = MOST) -> Page:
    """At most `most` lines behind `after`, or before `before`, or the first ones."""
    if before is None:
        found = _walk(choice, after, most + 1, forward=True)
        return Page(found[:most], has_earlier=after is not None, has_later=len(found) > most)
    found = _walk(choice, before, most + 1, forward=False)
    return Page(found[:most][::-1], has_earlier=len(found) > most, has_later=True)


def with_custom_id(custom_id: str, batch: Batch | None = None, most: int = MOST) -> list[Line]:
    """The lines with this custom_id, in one batch or in all: a look into the index for each batch."""
    batches = Batch.objects.all() if batch is None else Batch.objects.filter(pk=batch.pk)
    lines = Line.objects.filter(batch__in=batches.values("pk"), custom_id=custom_id)
    return list(_for_list(lines)[:most])


def _for_list(lines: LineQuerySet) -> LineQuerySet:
    return lines.select_related("part", "batch").defer("batch__errors", "batch__metadata")


def _groups(choice: Choice) -> tuple[list[tuple[object, LineQuerySet]], str, Sequence[str]]:
    """The lines in groups, each with its key; the column of the keys; and the columns by which a group is sorted."""
    lines, state = choice.batch.lines.all(), choice.state
    if choice.reason:
        state = _SETTLED.get(choice.reason, LineState.FAILED)
        lines = lines.unanswered().filter(state=state)
        if choice.reason not in _SETTLED:
            lines = lines.filter(error_code="" if choice.reason == UNKNOWN else choice.reason)
            return [(state, lines)], "state", ["number"]
        return [(state, lines)], "state", ["error_code", "number"]
    if state is None:
        return [(choice.batch.pk, lines)], "batch_id", ["number"]
    if state in UNANSWERED:
        return [(state, lines.unanswered().filter(state=state))], "state", ["error_code", "number"]
    parts = choice.batch.parts.order_by("pk").values_list("pk", flat=True)
    # By the part alone: with the batch too, the index of the batch's numbers would be as good to a database.
    of_parts = [(part, Line.objects.filter(part=part, state=state)) for part in parts]
    return list(of_parts), "part_id", ["order_key", "number"]


def _walk(choice: Choice, edge: Line | None, most: int, *, forward: bool) -> list[Line]:
    groups, key, columns = _groups(choice)
    if not forward:
        groups.reverse()
    if edge is not None:
        keys = [each for each, _ in groups]
        groups = groups[keys.index(getattr(edge, key)) :] if getattr(edge, key) in keys else []
    found: list[Line] = []
    for index, (_, lines) in enumerate(groups):
        lines = _for_list(lines).order_by(*(column if forward else f"-{column}" for column in columns))
        steps = _behind(edge, columns, "gt" if forward else "lt") if edge is not None and index == 0 else [Q()]
        for step in steps:
            if len(found) < most:
                found += lines.filter(step)[: most - len(found)]
    return found


def _behind(edge: Line, columns: Sequence[str], way: str) -> list[Q]:
    """What is behind the edge in the order of the columns: first what differs in the last of them alone. One condition
    for all would be a scan from the beginning where many lines are the same in the first."""
    steps = []
    for last in range(len(columns) - 1, -1, -1):
        same = {column: getattr(edge, column) for column in columns[:last]}
        steps.append(Q(**same, **{f"{columns[last]}__{way}": getattr(edge, columns[last])}))
    return steps
