"""Why lines of a batch have no answer: the reasons, with how many lines each has and the first of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Min

from batches.models import NOT_EXECUTED, Batch, Line, LineState

MOST_REASONS, MOST_FIRST = 50, 5


@dataclass(frozen=True)
class Reason:
    code: str
    message: str  # of the first line
    count: int
    first: list[str]  # custom_ids


def of(batch: Batch) -> list[Reason]:
    """The reasons, the commonest first, MOST_REASONS at most; of a running batch those until now. Equal lines that were
    sent once count once. Reads the index of the lines that have no answer, and no other line."""
    states = [LineState.FAILED, *NOT_EXECUTED]
    unanswered = Line.objects.filter(part__in=batch.parts.all(), state__in=states).order_by()
    groups = unanswered.values("state", "error_code", "http_status").annotate(count=Count("pk"), number=Min("number"))
    return [_reason(batch, group) for group in groups.order_by("-count", "number")[:MOST_REASONS]]


def _reason(batch: Batch, group: Mapping[str, Any]) -> Reason:
    which = {name: group[name] for name in ("state", "error_code", "http_status")}
    alike = Line.objects.filter(part__in=batch.parts.all(), **which).order_by()
    first = sorted(alike.values_list("number", "custom_id")[:MOST_FIRST])
    [message] = Line.objects.filter(batch=batch, number=group["number"]).values_list("error_message", flat=True)
    code, message = NOT_EXECUTED.get(group["state"], (group["error_code"], message))
    return Reason(code or f"http_{group['http_status']}", message, group["count"], [name for _, name in first])
