"""How far a batch is: what it waits for, how fast its lines go, when it may end. Reads rows and writes none.

The work is bounded, whatever the size of the batch: its counters, and its last lines by their index.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from django.conf import settings
from django.db.models import F, Q

from batches import creation, hosts, registry
from batches.models import Batch, Line, LineState, Part, PausedModel, Status
from batches.models.counts import lines_open
from batches.scheduling import gate, switch
from batches.status import disk
from common import database

# The speed is that of the last MOST_MEASURED lines, and unknown for fewer than LEAST_MEASURED.
MOST_MEASURED, LEAST_MEASURED = 200, 5
# Nothing is estimated for more than MOST_PARTS models of a batch, for more than MOST_OTHERS other batches, or if one of
# several models has MOST_COUNTED open lines.
MOST_PARTS, MOST_OTHERS = 10, 10
MOST_COUNTED = 100_000
# Earlier batches that are looked at for the speed of a model.
MOST_EARLIER = 3
# Lines that were sent and wait for another try are among the first of those left: lines are sent in order.
MOST_WAITING = 100
# Between two answers that follow each other: answers are stored in groups, and those of a group share a time.
STORING = timedelta(seconds=0.5)
# What waits for a step of the control worker.
FOR_CONTROL = (Status.VALIDATING, Status.FINALIZING, Status.CANCELLING)


@dataclass(frozen=True)
class Finished:
    """A line that succeeded or failed."""

    at: datetime
    took: timedelta
    output_tokens: int


@dataclass(frozen=True)
class Speed:
    """How long lines took while they were being sent; pauses and the turns of other batches are left out."""

    lines: int
    busy: timedelta
    output_tokens: int

    @classmethod
    def of(cls, finished: Sequence[Finished]) -> "Speed | None":
        """The speed of the last lines; None if they are too few to tell."""
        last = sorted(finished, key=lambda line: line.at)[-MOST_MEASURED:]
        # The end of the first line says when the next began. With several calls at once the time between two answers is
        # short. With a pause between them it is long, and only the answer's own time counts.
        busy = sum((min(line.at - before.at, line.took + STORING) for before, line in pairwise(last)), timedelta())
        if len(last) < LEAST_MEASURED or not busy:
            return None
        return cls(len(last) - 1, busy, sum(line.output_tokens for line in last[1:]))

    @property
    def each(self) -> timedelta:
        return self.busy / self.lines


@dataclass(frozen=True)
class Progress:
    """`estimated_from` says what `estimated_end` is based on, or why there is none; None once the batch is over."""

    batch: Batch
    lines_open: int
    waiting_for: str | None
    warnings: list[dict[str, str]]
    contexts: list[Part]  # the parts whose lines get a context that was chosen for them
    lines_per_minute: float | None
    tokens_per_second: float | None
    estimated_end: datetime | None
    estimated_from: str | None
    disk: disk.Disk


class Unknown(Exception):
    """No estimate is possible; the text says why."""


class _Read:
    """The parts of batches, their last lines and their needs on the disk, each read once for all forecasts that are
    made together."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Part]] = {}
        self._finished: dict[int, list[Finished]] = {}
        self.needs = disk.Needs()

    def parts(self, batch: Batch) -> list[Part]:
        if batch.pk not in self._parts:
            self._parts[batch.pk] = _parts(batch)
        return self._parts[batch.pk]

    def last_finished(self, part: Part) -> list[Finished]:
        if part.pk not in self._finished:
            self._finished[part.pk] = _last_finished(part)
        return self._finished[part.pk]


def of(batch: Batch) -> Progress:
    return _of(batch, _Read())


def of_each(batches: Iterable[Batch]) -> list[Progress]:
    """The progress of several batches that take turns, for less than each by itself costs."""
    read = _Read()
    return [_of(batch, read) for batch in batches]


def _of(batch: Batch, read: _Read) -> Progress:
    parts = read.parts(batch)
    finished = {part: read.last_finished(part) for part in parts[:MOST_PARTS]}
    speed = Speed.of([line for lines in finished.values() for line in lines])
    blocked, turn, end, based_on = _held_up(batch), None, None, None
    on_disk = read.needs.disk(batch)
    if batch.status in switch.PAUSABLE:
        with_work = _with_work(parts)
        blocked = _blocked(batch, with_work)
        turn = None if blocked else _turn(batch, with_work) or _unchecked(with_work)
        try:
            if blocked:
                raise Unknown("Not known while the batch waits.")
            end, based_on = _estimate(batch, {part: finished.get(part, []) for part in with_work}, speed, read)
        except Unknown as reason:
            based_on = str(reason)
    return Progress(
        batch=batch,
        lines_open=batch.lines_open,
        waiting_for=blocked or turn,
        warnings=_warnings(batch, end, on_disk),
        contexts=fitted(batch),
        lines_per_minute=round(timedelta(minutes=1) / speed.each, 2) if speed else None,
        # Embeddings write no tokens, and so have no such speed.
        tokens_per_second=round(speed.output_tokens / speed.busy.total_seconds(), 2)
        if speed and speed.output_tokens
        else None,
        estimated_end=end,
        estimated_from=based_on,
        disk=on_disk,
    )


def fitted(batch: Batch) -> list[Part]:
    """The parts whose lines get another context than their model has; the first MOST_PARTS."""
    return list(batch.parts.filter(fitted_tokens__gt=0).order_by("model")[:MOST_PARTS])


def waiting_for(batch: Batch) -> str | None:
    """Why the batch's next step is not done, no line of it is sent, or answers are not used, in sentences for a person;
    None if it goes on."""
    if batch.status not in switch.PAUSABLE:
        return _held_up(batch)
    with_work = _with_work(_parts(batch))
    return _blocked(batch, with_work) or _turn(batch, with_work) or _unchecked(with_work)


def _parts(batch: Batch) -> list[Part]:
    """The parts with the latest turns, MOST_PARTS + 1 at most: one too many shows that there are more."""
    return list(batch.parts.order_by(F("turn_at").desc(nulls_last=True), "pk")[: MOST_PARTS + 1])


def _with_work(parts: list[Part]) -> list[Part]:
    """The parts with lines to send. Lines of a failed part are not sent."""
    parts = [part for part in parts if part.failure is None]
    return [part for part in parts if Line.objects.all().open().filter(part=part).exists()]


# What it waits for


def _held_up(batch: Batch) -> str | None:
    """Why its next step is not done: it stalls, or hosts that could do the step take no work."""
    if batch.stall_reason or batch.status not in FOR_CONTROL or batch.lease_id is not None:
        return batch.stall_reason or None
    return " ".join(hosts.troubles()) or None


def _blocked(batch: Batch, with_work: list[Part]) -> str | None:
    """What must end before a line of the batch is sent."""
    if reason := _held_up(batch):
        return reason
    if switch.is_paused(batch) and batch.paused_at is not None:
        return (
            f"A person paused this batch at {gate.clock(batch.paused_at)}. Resume it in the admin, by manage.py "
            f"resume {batch.pk} or by POST /v1/batches/{batch.pk}/resume."
        )
    if not with_work:
        return None
    backends = registry.live_backends()
    if not backends:
        return " ".join(hosts.troubles()) or registry.NO_WORKER
    gates = gate.looks(backends)
    reasons = {backend.pk: gates[backend.pk].reason or backend.pause_reason for backend in backends}
    if all(reasons.values()):
        return next(iter(reasons.values()))
    running = [backend for backend in backends if not reasons[backend.pk]]
    paused = PausedModel.objects.filter(backend__in=running, endpoint=batch.endpoint)
    models = {(pk, model): reason for pk, model, reason in paused.values_list("backend", "model", "reason")}
    # A backend that lacks the model of a part sends none of its lines while another has it.
    troubles = [
        models.get((backend.pk, part.model))
        for part in with_work
        for backend in [each for each in running if each.has_model(part.model)] or running
    ]
    return troubles[0] if all(troubles) else None


def _turn(batch: Batch, with_work: list[Part]) -> str | None:
    # By the index of claimed lines, which are few. For a query in other words SQLite scans all lines.
    batches = set(Line.objects.filter(lease__isnull=False, state=LineState.RUNNING).values_list("batch", flat=True))
    if with_work and batches and batch.pk not in batches:
        return "The lines of another batch are being sent; the turn of this batch comes."
    return None


def _unchecked(with_work: list[Part]) -> str | None:
    """That answers were thrown away, because nobody knew whether the model server read their prompts whole."""
    numbers, reason = [], ""
    for part in with_work[:MOST_PARTS]:
        for state in (LineState.PENDING, LineState.RUNNING):
            first = Line.objects.filter(part=part, state=state).order_by("order_key", "number")
            for number, code, message in first.values_list("number", "error_code", "error_message")[:MOST_WAITING]:
                if code:
                    numbers.append(number)
                    reason = message
    if not numbers:
        return None
    which = f"Line {numbers[0]} waits" if len(numbers) == 1 else f"{len(numbers)} lines wait"
    return f"{which} for another try, because an answer could not be used. {reason} See its log."


# What a person should know

WINDOW_TOO_SHORT, DISK_TOO_SMALL = "window_too_short", "disk_too_small"
FORECAST = (WINDOW_TOO_SHORT, DISK_TOO_SMALL)


def _warnings(batch: Batch, end: datetime | None, on_disk: disk.Disk) -> list[dict[str, str]]:
    """The stored warnings, with those of the window and the disk as this forecast has them. While no end is known, the
    last warning about the window stands."""
    warnings = [each for each in batch.warnings if each["code"] not in FORECAST]
    if batch.status not in switch.PAUSABLE:
        return warnings
    if end is None:
        warnings += [each for each in batch.warnings if each["code"] == WINDOW_TOO_SHORT]
    elif end > batch.expires_at:
        warnings.append({"code": WINDOW_TOO_SHORT, "message": _window_too_short(batch, end)})
    if on_disk.is_too_small:
        warnings.append({"code": DISK_TOO_SMALL, "message": _disk_too_small(on_disk)})
    return warnings


def _window_too_short(batch: Batch, end: datetime) -> str:
    # A quarter more than the forecast, which is none of a clock.
    days = min(creation.LONGEST_WINDOW.days, math.ceil((end - database.now()) * 1.25 / timedelta(days=1)))
    return (
        f"The completion window ends at {gate.clock(batch.expires_at)}, and by the forecast the batch ends at "
        f"{gate.clock(end)}. Lines that are open when the window ends fail with batch_expired. Extend the window: "
        f"script/batch extend {batch.pk} {days}d, or POST /v1/batches/{batch.pk}/extend "
        f'{{"completion_window": "{days}d"}}, or '
        "by the admin."
    )


def _disk_too_small(on_disk: disk.Disk) -> str:
    needed, free, kept = map(
        _size, (on_disk.needed_by_all_bytes or 0, on_disk.free_bytes or 0, settings.MIN_FREE_BYTES)
    )
    whose = "the batch" if on_disk.needed_by_all_bytes == on_disk.needed_bytes else "the batch and of other open ones"
    return (
        f"The rest of {whose} takes about {needed} on the disk of DATA_DIR, where {free} are free. Make room there, "
        f"or the batch waits from the moment at which less than {kept} (MIN_FREE_BYTES) are left. No answer is lost."
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6)):,} MB"


# When it may end


def _last_finished(part: Part) -> list[Finished]:
    """The last finished lines: lines are sent in the order of the index, so they are at its end."""
    rows: list[tuple[datetime | None, int | None, int]] = []
    for state in (LineState.SUCCEEDED, LineState.FAILED):
        lines = Line.objects.filter(part=part, state=state).order_by("-order_key", "-number")
        rows += lines.values_list("finished_at", "duration_ms", "output_tokens")[:MOST_MEASURED]
    # Lines that failed for their model have no duration. Filtered here: in SQL the filter could search a million.
    return [Finished(at, timedelta(milliseconds=ms), tokens) for at, ms, tokens in rows if at and ms is not None]


def _estimate(
    batch: Batch, finished: dict[Part, list[Finished]], speed: Speed | None, read: _Read
) -> tuple[datetime, str]:
    """When the last line may be finished, and what the estimate is based on. Raises Unknown."""
    if batch.status == Status.VALIDATING:
        raise Unknown("Not known before the input file is validated.")
    if not finished:
        raise Unknown("Every line is finished; the result files are next.")
    if len(finished) > MOST_PARTS:
        raise Unknown(f"Not known while lines for more than {MOST_PARTS} models are left.")
    work, measured, earlier = timedelta(), 0, []
    for part, to_send in _to_send(batch, list(finished)).items():
        of_part = Speed.of(finished[part])
        if of_part is None:
            of_part, other = _earlier(part, batch)
            earlier.append(other)
        work += to_send * of_part.each
        measured += of_part.lines
    based_on = f"The speed of the last {measured} lines"
    # At the start of a batch there is nothing else to tell by.
    based_on += f", of {', '.join(earlier)} too: those may be longer or shorter." if earlier else "."
    if others := _others(batch):
        work += _before(batch, work, others, speed, read)
        own = [other for other in others if other.owner_id == batch.owner_id]
        more = "1 more batch" if len(own) == 1 else f"{len(own)} more batches"
        based_on += f" The turns of {more} are counted in." if own else ""
        based_on += " The turns of others are counted in." if len(own) < len(others) else ""
    end = settings.QUIET_HOURS.after(database.now(), work, exact_until=batch.expires_at)
    if settings.QUIET_HOURS.text:
        based_on += " Quiet hours are counted in."
    if end > batch.expires_at:
        based_on += f" The completion window ends before that, at {gate.clock(batch.expires_at)}."
    return end, based_on


def _earlier(part: Part, batch: Batch) -> tuple[Speed, str]:
    """The speed of the model in another batch, the last one that has any, and the id of that batch, or other words for
    one of another owner. Raises Unknown."""
    others = Part.objects.filter(model=part.model, batch__endpoint=batch.endpoint).exclude(pk=part.pk)
    last = others.order_by(F("turn_at").desc(nulls_last=True), "-pk").select_related("batch")
    for other in last[:MOST_EARLIER]:
        if speed := Speed.of(_last_finished(other)):
            is_own = other.batch.owner_id == batch.owner_id
            return speed, other.batch_id if is_own else f"other lines for {part.model}"
    raise Unknown(f"Not known before {LEAST_MEASURED} lines for {part.model} are finished.")


def _to_send(batch: Batch, parts: list[Part]) -> dict[Part, int]:
    """How many lines of each part are still to be sent; counted only if the counts of the batch do not say it."""
    if len(parts) == 1:
        return {parts[0]: batch.lines_to_send}
    lines = Line.objects.all().open()
    counts = {part: lines.filter(part=part)[:MOST_COUNTED].count() for part in parts}
    if any(count == MOST_COUNTED for count in counts.values()):
        raise Unknown(f"Not known while {MOST_COUNTED} lines or more for one of several models are left.")
    return counts


def _others(batch: Batch) -> list[Batch]:
    """The batches that have lines to send before the last line of this one. Whatever their priority, those of other
    owners have turns."""
    others = Batch.objects.all().in_progress().exclude(pk=batch.pk)
    others = others.filter(Q(priority__gte=batch.priority) | ~Q(owner=batch.owner_id))
    others = others.alias(left=lines_open()).filter(paused_at=None, left__gt=0)
    found = list(others.order_by("created_at")[: MOST_OTHERS + 1])
    Batch.read_counters(found)
    if len(found) > MOST_OTHERS:
        raise Unknown(f"Not known while more than {MOST_OTHERS} other batches take turns.")
    if found and len(registry.live_backends()) > 1:
        raise Unknown("Not known while several batches share several model servers.")
    return found


def _before(batch: Batch, work: timedelta, others: list[Batch], speed: Speed | None, read: _Read) -> timedelta:
    """The time that others get until `work` is done: all they need if they go first, at most `work` if in turn. Each
    other owner gets at most as much as this one."""
    before = timedelta()
    of_owners: defaultdict[int | None, timedelta] = defaultdict(timedelta)
    for other in others:
        finished = [line for part in read.parts(other)[:MOST_PARTS] for line in read.last_finished(part)]
        of_other = Speed.of(finished) or speed  # without a measurement, the other is assumed to be as fast
        if of_other is None:
            raise Unknown("Not known before lines of this and the other batches are finished.")
        wanted = other.lines_to_send * of_other.each
        if other.owner_id != batch.owner_id:
            of_owners[other.owner_id] += wanted
        else:
            before += wanted if other.priority > batch.priority else min(wanted, work)
    return before + sum((min(wanted, work + before) for wanted in of_owners.values()), timedelta())
