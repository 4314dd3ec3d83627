"""What a person does to batches in the admin: one table for the buttons of a page and for the actions of a list."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from django.contrib import messages
from django.http import HttpRequest

from batches import creation, forecasts, lifecycle, retry, tasks
from batches.models import Batch, Priority, Status
from batches.scheduling import switch
from common import database
from common.errors import ApiError

PERMISSION = "batches.change_batch"
WEEK = timedelta(days=7)
LEAST_GAIN = timedelta(hours=1)
# The ends that leave lines: the lines of a batch that failed are deleted.
WITH_LINES = (Status.COMPLETED, Status.EXPIRED, Status.CANCELLED)


@dataclass(frozen=True)
class Action:
    """`do` gets the id of a batch and returns what became of it, in a sentence; it raises ApiError if the batch does
    not allow it any more. `suits` says for which batches a page has the button. `asks`: a person has to say yes."""

    name: str
    label: str
    icon: str
    do: Callable[[str], str]
    suits: Callable[[Batch], bool]
    asks: bool = False


def _cancel(batch_id: str) -> str:
    if not lifecycle.cancel(batch_id):
        return f"{batch_id} was cancelled before."
    tasks.wake_control(batch_id)
    return f"Cancelling {batch_id}."


def _pause(batch_id: str) -> str:
    return f"Paused {batch_id}." if switch.pause(batch_id) else f"{batch_id} was paused before."


def _resume(batch_id: str) -> str:
    if not switch.resume(batch_id):
        return f"{batch_id} was not paused."
    tasks.wake(tasks.drive)
    return f"Resumed {batch_id}."


def _extend(batch_id: str, *, length: timedelta) -> str:
    if forecasts.extend(batch_id, length):
        return f"Extended {batch_id}."
    return f"The completion window of {batch_id} is longer than {length.days} days from now. It stays as it is."


def _set_priority(batch_id: str, *, priority: Priority) -> str:
    switch.set_priority(batch_id, priority)
    return f"{batch_id} has {priority.label.lower()} priority."


def _retry(batch_id: str) -> str:
    """The failed, expired and cancelled lines become a new batch, as with POST /v1/batches/{id}/retry."""
    wish = retry.Wish(Batch.objects.get(pk=batch_id))
    with retry.input_of(wish) as file:
        made = retry.create(wish, file, window=None, metadata=None).pk
    tasks.wake_control(made)
    return f"{made} asks the lines of {batch_id} again."


def _try_again(batch_id: str) -> str:
    """End the backoff of a stalled batch."""
    if not lifecycle.try_again(batch_id):
        return f"{batch_id} does not wait for another try."
    tasks.wake_control(batch_id)
    tasks.wake(tasks.drive)
    return f"Trying {batch_id} again."


def _sends(batch: Batch) -> bool:
    return batch.status in switch.PAUSABLE


def _gains(batch: Batch, length: timedelta) -> bool:
    """Its completion window would end later by an hour at least: not again right after it was extended."""
    return _sends(batch) and batch.expires_at + LEAST_GAIN <= database.now() + length


def _priority(priority: Priority, icon: str) -> Action:
    name = priority.label.lower()
    return Action(
        f"{name}_priority",
        f"{priority.label} priority",
        icon,
        partial(_set_priority, priority=priority),
        lambda batch: _sends(batch) and batch.priority != priority,
    )


def _extension(name: str, length: timedelta) -> Action:
    label = f"Extend to {length.days} days from now"
    return Action(name, label, "more_time", partial(_extend, length=length), partial(_gains, length=length))


_ALL = [
    Action("pause", "Pause", "pause", _pause, lambda batch: _sends(batch) and not switch.is_paused(batch)),
    Action("resume", "Resume", "play_arrow", _resume, switch.is_paused),
    Action("try_again", "Try again now", "refresh", _try_again, lambda batch: batch.stalled_at is not None),
    _extension("extend", WEEK),
    _extension("extend_longest", creation.LONGEST_WINDOW),
    _priority(Priority.HIGH, "keyboard_double_arrow_up"),
    _priority(Priority.NORMAL, "drag_handle"),
    _priority(Priority.LOW, "keyboard_double_arrow_down"),
    Action(
        "retry",
        "Retry the lines without an answer",
        "replay",
        _retry,
        lambda batch: batch.status in WITH_LINES and batch.completed < batch.total,
    ),
    Action(
        "cancel",
        "Cancel",
        "close",
        _cancel,
        _sends,
        asks=True,
    ),
]
ACTIONS = {action.name: action for action in _ALL}


def may_act(request: HttpRequest) -> bool:
    return request.user.has_perm(PERMISSION)


def run(request: HttpRequest, action: Action, batch_ids: Iterable[str]) -> None:
    """Do it to each batch, and tell the person what became of it, or why not."""
    for batch_id in batch_ids:
        try:
            told, level = action.do(batch_id), messages.SUCCESS
        except ApiError as refusal:
            told, level = f"{refusal.message} ({batch_id})", messages.WARNING
        except Batch.DoesNotExist:
            told, level = f"There is no batch {batch_id} any more.", messages.WARNING
        messages.add_message(request, level, told)


def suiting(batch: Batch) -> list[Action]:
    """The buttons of its page."""
    return [action for action in _ALL if action.suits(batch)]
