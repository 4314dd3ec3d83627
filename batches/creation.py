"""How a batch begins: the values that a request gives become its row."""

import re
from datetime import timedelta

from django.db import transaction
from django.db.models import Sum

from batches.models import FINAL, Batch, Priority
from batches.models.counts import lines_open
from common import database, errors
from common.errors import ApiError
from common.models import Owner
from files_api.models import File

LONGEST_WINDOW = timedelta(days=30)
WINDOW = "([1-9][0-9]{0,5})([mhd])"
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def window_length(window: str) -> timedelta | None:
    """The length that `90m`, `24h` or `7d` names; None if it names none, or more than LONGEST_WINDOW."""
    match = re.fullmatch(WINDOW, window)
    if match is None:
        return None
    length = timedelta(**{_UNITS[match[2]]: int(match[1])})
    return length if length <= LONGEST_WINDOW else None


def priority(metadata: dict[str, str] | None) -> Priority:
    """The priority that `metadata.priority` names; any other value is plain metadata."""
    named = {"low": Priority.LOW, "high": Priority.HIGH}
    return named.get((metadata or {}).get("priority", ""), Priority.NORMAL)


def create(
    *,
    owner: Owner,
    input_file_id: str,
    endpoint: str,
    completion_window: str,
    metadata: dict[str, str] | None,
    output_lifetime: timedelta | None,
    priority: Priority,
    retry_of: Batch | None = None,
) -> Batch:
    """Store a new batch, with a hold on its input file. Validation finds whether the owner has that file and whether it
    is good. Raises a 429 if the owner has as many as it may."""
    now = database.now()
    with transaction.atomic():
        _check_limits(owner)
        batch = Batch.objects.create(
            owner=owner,
            input_file_id=input_file_id,
            endpoint=endpoint,
            completion_window=completion_window,
            metadata=metadata,
            priority=priority,
            output_lifetime=output_lifetime,
            retry_of=retry_of,
            created_at=now,
            expires_at=now + (window_length(completion_window) or LONGEST_WINDOW),
            nudged_at=now,  # its first message is sent at the commit
        )
        File.objects.all().filter(owner=owner).hold(batch.input_file_id, batch.pk)
    return batch


def open_lines(owner: Owner) -> int:
    """The lines without a result of all batches of the owner that are not over, as far as their files were read."""
    active = Batch.objects.filter(owner=owner).exclude(status__in=FINAL)
    return int(active.aggregate(lines=Sum(lines_open()))["lines"] or 0)


def _check_limits(owner: Owner) -> None:
    most_batches, most_lines = owner.limit("active_batches"), owner.limit("open_lines")
    if most_batches is None and most_lines is None:
        return
    owner.lock()
    active = Batch.objects.filter(owner=owner).exclude(status__in=FINAL)
    if most_batches is not None and (batches := active.count()) >= most_batches:
        raise _used_up(owner, f"{batches} batches", most_batches, "OWNER_MAX_ACTIVE_BATCHES")
    if most_lines is not None and (lines := open_lines(owner)) >= most_lines:
        raise _used_up(owner, f"{lines} lines", most_lines, "OWNER_MAX_OPEN_LINES")


def _used_up(owner: Owner, what: str, most: int, setting: str) -> ApiError:
    return errors.used_up(
        f"'{owner.name}' has {what} that are not finished, and may have {most} ({setting}, or the owner's page in the "
        "admin). Create the batch once others are over, or cancel one."
    )
