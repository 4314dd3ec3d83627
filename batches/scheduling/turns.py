"""Whose turn it is: which part of which batch a backend works on, and in which order the lines of the part are sent.

    the model that is loaded (until another has waited for MODEL_PATIENCE_S), then the owner who waits longest,
    then parts that had no turn yet (unless another has waited for a minute), then the part that waits longest for one

A turn lasts 30 s. It ends after 5 s for a part that had none yet: of the same owner if no other waits, or else of an
owner who had no turn lately.

Of each owner, only the parts of its highest priority wait; priorities of different owners are not compared. Loading
another model costs seconds and every prompt that the server remembers, so models are drained one after the other,
across all batches. If more models wait than MODEL_PATIENCE_S has time for, each stays loaded for its share of that
time. Owners take turns, and the parts of each owner, by time. Within a part, lines that begin alike are neighbours, so
that the server reads the prompt that they share once.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from functools import cache, partial
from types import MappingProxyType
from typing import cast

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from batches import backends, registry
from batches.lines import prompt
from batches.models import ANY_PAUSED_MODEL, NO_ROOM, Backend, Batch, Line, LineQuerySet, Part, PausedModel
from common import database
from common.database import GIVEN, Asked
from common.models import Owner

TURN_S = 30.0
# A turn that is over goes on for at most this time, for lines that begin as the last line does.
BORDER_S = 10.0
# A part that had no turn yet waits at most this time for the turn that is on.
FIRST_TURN_WITHIN_S = 5.0
# A part that had a turn waits at most this time while new parts keep coming.
FIRST_TURNS_FOR = timedelta(minutes=1)
# An owner who had no turn for so long is waited for like a part that had none yet.
NO_TURN_LATELY = timedelta(minutes=10)
SUSPICIOUS_CLAIMS = 3
# Parts that are put in the order of their turns to be shown: each turn is chosen among all that wait.
MOST_ORDERED = 200
# A turn that began later than this from now was stamped before the clock went back.
MOST_AHEAD = timedelta(minutes=1)


class Which(Enum):
    """Which lines of its part a turn is for: its first ones first."""

    SPLIT = "were in flight when the server broke down: it is found out at once which of them did it"
    USUAL = "all others"
    CHARGED = "brought the server down, did not end in time, or had no room; their next tries are far apart"
    LOST = "were lost with their worker often, and come after all other lines of all parts"


@dataclass
class Turn:
    """The right of one part to have its lines sent; it has lasted `age_s` seconds so far."""

    part: Part
    which: Which = Which.USUAL
    began: float = field(default_factory=time.monotonic)
    last_key: bytes = b""
    is_stamped: bool = False

    def claimed(self, line: Line) -> None:
        """`line` is the last one claimed in this turn. The first claimed line stamps the `turn_at` of the part and of
        its owner, by which all drives see that they had a turn."""
        self.last_key = bytes(line.order_key)
        if not self.is_stamped:
            Part.objects.filter(pk=self.part.pk).update(turn_at=Now())
            Owner.objects.filter(pk=_owner_of(self.part)).update(turn_at=Now())
            transaction.on_commit(self._stamped)

    def is_like(self, other: "Turn") -> bool:
        """Both are for the same lines."""
        return (self.part.pk, self.which) == (other.part.pk, other.which)

    @property
    def is_suspicious(self) -> bool:
        """One of the lines may be what kills its worker or brings the server down: each is claimed and sent alone."""
        return self.which in (Which.CHARGED, Which.LOST)

    def _stamped(self) -> None:
        self.is_stamped = True

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.began

    def lines(self) -> LineQuerySet:
        """The claimable lines of this turn, in the order in which they are sent."""
        lines = _claimable(are_lost=self.which is Which.LOST).filter(part=self.part)
        split = lines.filter(most_together__gt=0)  # by the index of split lines, which are few
        is_charged = Q(most_together=1) & (Q(backend_crashes__gt=0) | Q(attempts__gt=0)) | Q(error_code=NO_ROOM)
        match self.which:
            case Which.SPLIT:
                # Those first of which most may go together.
                return split.exclude(is_charged).order_by("-most_together", "order_key", "number")
            case Which.CHARGED:
                return split.filter(is_charged).order_by("backend_crashes", "number")
            case Which.LOST:
                # Lost least often first: a line that was claimed beside the one that kills must not wait behind it.
                return lines.order_by("lost_claims", "number")
        return lines.filter(most_together=None).order_by("order_key", "number")


def with_work(backends: Collection[Backend]) -> list[Backend]:
    """Those of these backends to which a drive would find a line to send, or of which it would try a paused model
    again. As many queries for a thousand backends as for one."""
    parts = _runnable().filter(Exists(Line.objects.all().claimable().filter(part=OuterRef("pk"))))
    wanted = set(parts.order_by().values_list("batch__endpoint", "model").distinct())
    paused: defaultdict[int, set[tuple[str, str]]] = defaultdict(set)
    for pk, *at_endpoint in PausedModel.objects.values_list("backend", "endpoint", "model"):
        paused[pk].add((at_endpoint[0], at_endpoint[1]))
    due = set(PausedModel.objects.all().due().values_list("backend", "endpoint", "model")) if paused else set()
    to_retry = {each for each in {(endpoint, model) for _, endpoint, model in due} if _is_to_retry(*each)}
    with_retry = {pk for pk, endpoint, model in due if (endpoint, model) in to_retry}
    return [
        each
        for each in backends
        if each.pk in with_retry or any(not _waits_for_another(each, model) for _, model in wanted - paused[each.pk])
    ]


def _is_to_retry(endpoint: str, model: str) -> bool:
    """The model is wanted, or no line waits for it any more and its pause can be removed."""
    return is_wanted(endpoint, model) or not is_wanted(endpoint, model, now=False)


def _waits_for_another(backend: Backend, model: str) -> bool:
    """A model that only another backend has waits for that backend. A model that no backend has is tried, and its lines
    fail with the reason."""
    return backend.is_fresh and registry.is_only_elsewhere(backend, model)


def is_wanted(endpoint: str, model: str, *, now: bool = True) -> bool:
    """Some line of a batch in progress is still to be answered by this model at this endpoint. With `now`, only batches
    that no operator paused count."""
    batches = Batch.objects.all().runnable() if now else Batch.objects.all().in_progress()
    parts = Part.objects.filter(batch__in=batches.filter(endpoint=endpoint), model=model, failure__isnull=True)
    return Line.objects.all().open().filter(part__in=parts).exists()


def next_turn(backend: Backend, turn: Turn | None, *, at_work: str = "", stayed_s: float = float("inf")) -> Turn | None:
    """The turn that is on from now: `turn` or another; None if no line can be sent. Call every second, and when a turn
    has no line left. `at_work` is the model of lines that were claimed and not answered yet, `stayed_s` for how long
    lines of one model alone have been sent."""
    current = turn if turn is not None and turn.age_s < TURN_S + BORDER_S else None
    if current is not None and _is_alone(backend, current.part) and _turn_of(current.part).is_like(current):
        return current
    if not _ANY_WAITS.is_true():
        return None  # as long as the last lines of all are in flight
    parts = _open_parts(backend)
    waiting = _ours(backend, _with_work(parts, are_lost=False))
    # Lines that were lost with their worker come last of all.
    are_lost = not waiting
    if are_lost:
        waiting = _ours(backend, _with_work(parts, are_lost=True))
    loaded = _loaded(backend, at_work, waiting)
    part = choose(
        waiting,
        loaded=loaded,
        stayed_s=stayed_s,
        turn=turn,
        is_at_border=_is_at_border,
        now=database.now(),
        base_of=backend.base_of,
        owners_turns=_owners_turns(waiting),
    )
    if part is None:
        return None
    new = Turn(part, Which.LOST) if are_lost else _turn_of(part)
    return current if current is not None and new.is_like(current) else new


def order(backend: Backend, most: int) -> list[Part]:
    """The first `most` parts with a line to send, in the order in which their turns come, as it looks now: what comes,
    ends or fails meanwhile changes it."""
    parts = _open_parts(backend).order_by("-batch__priority", "turn_at", "pk")
    models = parts.order_by().values_list("model", flat=True).distinct()
    parts = parts.exclude(model__in=[model for model in models if _waits_for_another(backend, model)])
    waiting = list(_with_work(parts, are_lost=False).select_related("batch")[:MOST_ORDERED])
    loaded = _loaded(backend, "", waiting)
    found: list[Part] = []
    now, owners_turns = database.now(), _owners_turns(waiting)
    while waiting and len(found) < most:
        part = choose(
            waiting,
            loaded=loaded,
            stayed_s=0,
            turn=None,
            is_at_border=_is_at_border,
            now=now,
            base_of=backend.base_of,
            owners_turns=owners_turns,
        )
        assert part is not None  # one of those that wait
        waiting.remove(part)
        found.append(part)
        loaded = part.served_model
        owners_turns[_owner_of(part)] = now + timedelta(microseconds=len(found))
    return found


def _owners_turns(waiting: Sequence[Part]) -> dict[int, datetime | None]:
    """When the last turn of each owner of these parts began, whichever of its parts had it."""
    owners = {_owner_of(part) for part in waiting}
    # One owner alone has every turn.
    return dict(Owner.objects.filter(pk__in=owners).values_list("pk", "turn_at")) if len(owners) > 1 else {}


def _turn_of(part: Part) -> Turn:
    """The turn for the first of the lines of this part that can be claimed."""
    return Turn(part, next((which for which, asked in _HAS_LINES.items() if asked.is_true(part.pk)), Which.CHARGED))


def yields(part: Part, turn: Turn) -> bool:
    """Lines claimed of `part` wait for the lines whose turn it is. The last lines of `part` do not wait, or its model
    would have to be loaded again for them, unless the turn has a higher priority."""
    if part.pk == turn.part.pk:
        return False
    is_of_owner = _owner_of(turn.part) == _owner_of(part)
    is_before = is_of_owner and turn.part.batch.priority > part.batch.priority
    return is_before or _HAS_LINES[Which.USUAL].is_true(part.pk)


def choose(
    waiting: Sequence[Part],
    *,
    loaded: str,
    stayed_s: float,
    turn: Turn | None,
    is_at_border: Callable[[Turn], bool],
    now: datetime,
    base_of: Callable[[str], str] = str,
    owners_turns: Mapping[int, datetime | None] = MappingProxyType({}),
) -> Part | None:
    """The part whose turn it is, among the `waiting` ones, which have a line to send. The model `loaded` has been at
    work for `stayed_s`. `turn` is the turn that is on; `is_at_border` tells whether it would end between prompts that
    have little in common. Models of one `base_of` are loaded together, and count as one. `owners_turns`: when the last
    turn of each owner began, if there are several. Pure.
    """
    if not waiting:
        return None
    waiting = _foremost(waiting)
    bases = {model: base_of(model) for model in {part.served_model for part in waiting}}
    base = _choose_base(waiting, bases, base_of(loaded), stayed_s, now)
    waiting = [part for part in waiting if bases[part.served_model] == base]
    current = next((part for part in waiting if turn is not None and part.pk == turn.part.pk), None)
    fresh = [part for part in waiting if part.turn_at is None and part is not current]
    if current is not None and turn is not None:
        hurried = [part for part in fresh if _ends_early(current, part, owners_turns, now)]
        limit_s = FIRST_TURN_WITHIN_S if hurried else TURN_S
        if turn.age_s < limit_s or (not hurried and turn.age_s < TURN_S + BORDER_S and not is_at_border(turn)):
            return current
    others = [part for part in waiting if part is not current] or waiting
    owner = _next_owner(others, owners_turns, now)
    others = [part for part in others if _owner_of(part) == owner]
    fresh = [part for part in fresh if _owner_of(part) == owner]
    since, _, longest = min((_last_turn(part, now) or now, part.pk, part) for part in others)
    if fresh and since > now - FIRST_TURNS_FOR:
        return min(fresh, key=lambda part: (part.batch.created_at, part.pk))
    return longest


def _ends_early(current: Part, fresh: Part, owners_turns: Mapping[int, datetime | None], now: datetime) -> bool:
    """Whether the turn of `current` is short because `fresh` had none yet. Between owners turns are whole, or one who
    sends a new batch in each turn of another would have more time. One who had no turn lately is no such owner."""
    if not owners_turns:
        return True
    last = _past(owners_turns.get(_owner_of(fresh)), now)
    return _owner_of(fresh) != _owner_of(current) and (last is None or last < now - NO_TURN_LATELY)


def _owner_of(part: Part) -> int:
    """The key of the owner, whom each batch has."""
    return cast(int, part.batch.owner_id)


def _foremost(waiting: Sequence[Part]) -> list[Part]:
    """Of each owner, the parts of its highest priority: a priority is a word between batches of one owner."""
    highest: dict[int, int] = {}
    for part in waiting:
        owner = _owner_of(part)
        highest[owner] = max(part.batch.priority, highest.get(owner, part.batch.priority))
    return [part for part in waiting if part.batch.priority == highest[_owner_of(part)]]


def _next_owner(waiting: Sequence[Part], owners_turns: Mapping[int, datetime | None], now: datetime) -> int:
    """The owner who waits longest for a turn. One who had none yet comes first, by the age of the oldest batch."""

    def waits_since(owner: int) -> tuple[bool, datetime, int]:
        last = _past(owners_turns.get(owner), now)
        oldest = min(part.batch.created_at for part in waiting if _owner_of(part) == owner)
        return last is not None, last or oldest, owner

    owners = {_owner_of(part) for part in waiting}
    return owners.pop() if len(owners) == 1 else min(owners, key=waits_since)


def _last_turn(part: Part, now: datetime) -> datetime | None:
    """When the last turn of `part` began."""
    return _past(part.turn_at, now)


def _past(turn_at: datetime | None, now: datetime) -> datetime | None:
    """A stamp of the future counts as old, or who has it would wait until then."""
    if turn_at is not None and turn_at > now + MOST_AHEAD:
        return now - timedelta(days=1)
    return turn_at


def _choose_base(waiting: Sequence[Part], bases: Mapping[str, str], loaded: str, stayed_s: float, now: datetime) -> str:
    since: dict[str, datetime] = {}
    for base in set(bases.values()):
        parts = [part for part in waiting if bases[part.served_model] == base]
        turns = [at for part in parts if (at := _last_turn(part, now)) is not None]
        # A model waits since the latest turn of its parts or, if none had a turn, since its first part could run.
        since[base] = max(turns) if turns else min(part.batch.in_progress_at or now for part in parts)
    longest = min(since, key=lambda base: (since[base], base))
    if loaded not in since:
        return longest
    owners = _Owners.of(waiting, bases)
    # Otherwise each of many models would be loaded for a line or two, since all the others are overdue still.
    if stayed_s < settings.MODEL_PATIENCE_S * owners.share_of(loaded):
        return loaded
    patience_s = settings.MODEL_PATIENCE_S
    overdue = [base for base in since if since[base] < now - timedelta(seconds=patience_s * owners.wait(base, loaded))]
    return min(overdue, key=lambda base: (since[base], base), default=loaded)


@dataclass(frozen=True)
class _Owners:
    """Which models the lines of each owner wait for. Each owner has as much time as any other, in equal parts for its
    models, so the models of one that has many get less each."""

    models: Mapping[int, set[str]]

    @classmethod
    def of(cls, waiting: Sequence[Part], bases: Mapping[str, str]) -> "_Owners":
        models: defaultdict[int, set[str]] = defaultdict(set)
        for part in waiting:
            models[_owner_of(part)].add(bases[part.served_model])
        return cls(models)

    def share_of(self, base: str) -> float:
        """The part of the time that belongs to this model. All models together have 1."""
        return sum(1 / len(names) for names in self.models.values() if base in names) / len(self.models)

    def wait(self, base: str, loaded: str) -> float:
        """For which part of the patience the model waits at most: for all of it if the loaded model serves one of its
        owners, as with one owner alone; or else for the time that all other owners have."""
        has_its_turn = any(base in names and loaded in names for names in self.models.values())
        return 1 if has_its_turn else 1 - 1 / len(self.models)


def _is_at_border(turn: Turn) -> bool:
    """The next line and the last one share no prompt worth keeping."""
    following = turn.lines().values_list("order_key", flat=True).first()
    return following is None or prompt.shared_blocks(bytes(following), turn.last_key) < prompt.GROUP_BLOCKS


def _is_alone(backend: Backend, part: Part) -> bool:
    """The part has lines to send, and no other has, so that nothing can be chosen; False if that is not clear from some
    small queries. With one batch at work it is so in each second."""
    if ANY_PAUSED_MODEL.is_true() or _OTHER_WAITS.is_true(part.pk) or not _WAITS.is_true(part.pk):
        return False
    return not _waits_for_another(backend, part.model)


def _loaded(backend: Backend, at_work: str, waiting: Sequence[Part]) -> str:
    """The loaded model, as a waiting part names it, or one that is loaded with it: the one at work, or the one that the
    drives loaded, or else one that the server has loaded by itself. Empty if no part waits for it."""
    ours = at_work or backend.loaded_model
    wanted = list(dict.fromkeys(part.served_model for part in waiting))
    for loaded in [ours] if ours else backend.loaded_names:
        if backend.kind and (name := backends.listed_name(backend.kind, wanted, loaded)):
            return name
        base = backend.base_of(loaded)
        if together := next((name for name in wanted if backend.base_of(name) == base), ""):
            return together
    return ""


def _ours(backend: Backend, parts: QuerySet[Part]) -> list[Part]:
    """Without those that wait for another backend."""
    waits = cache(partial(_waits_for_another, backend))
    return [part for part in parts.select_related("batch") if not waits(part.model)]


def _open_parts(backend: Backend) -> QuerySet[Part]:
    """Parts of batches that run, for models that this backend has and that are not paused there."""
    parts = _runnable()
    for endpoint, model in backend.paused_models.values_list("endpoint", "model"):
        parts = parts.exclude(batch__endpoint=endpoint, model=model)
    return parts


def _runnable() -> QuerySet[Part]:
    """Parts of batches that run."""
    return Part.objects.filter(batch__in=Batch.objects.all().runnable(), failure__isnull=True)


def _with_work(parts: QuerySet[Part], *, are_lost: bool) -> QuerySet[Part]:
    return parts.filter(Exists(_claimable(are_lost=are_lost).filter(part=OuterRef("pk"))))


def _claimable(*, are_lost: bool) -> LineQuerySet:
    lines = Line.objects.all().claimable()
    return lines.filter(**{"lost_claims__gte" if are_lost else "lost_claims__lt": SUSPICIOUS_CLAIMS})


# In the order in which the lines of a part are sent; those that are charged come last.
_HAS_LINES = {which: Asked(partial(Turn.lines, Turn(Part(pk=GIVEN), which))) for which in (Which.SPLIT, Which.USUAL)}
# Whether any part has a line to send.
_ANY_WAITS = Asked(lambda: _with_work(_runnable(), are_lost=False), lambda: _with_work(_runnable(), are_lost=True))
# Whether this part, or any other, has a line to send that was not lost too often.
_WAITS = Asked(lambda: _with_work(_runnable(), are_lost=False).filter(pk=GIVEN))
_OTHER_WAITS = Asked(lambda: _with_work(_runnable(), are_lost=False).exclude(pk=GIVEN))
