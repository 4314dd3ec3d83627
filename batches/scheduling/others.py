"""Whoever uses a model server without us is a person too: lines stand aside for them as for persons whom we serve.

Ollama's list of loaded models tells of them. Others are at work if a model appears there that we did not use, or if the
time at which a model is to be unloaded moves while we use it for nothing: each request that ends sets that time anew
(sched.go, processCompleted). While lines of ours run, other requests for the same model can be told from them in the
gaps of a drive alone (batches.dispatch.used_beside).
"""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta

from django.conf import settings

from batches import backends, leases
from batches.models import Backend, Batch, Hold, Part
from batches.scheduling import model_uses, persons
from batches.scheduling.habits import Habits
from common.database import from_now

logger = logging.getLogger(__name__)

# A hold is renewed by each probe of the backend, and ends by itself if its worker is killed.
LIFETIME_S = 15.0
# A model that others loaded keeps lines of other models back while it is loaded. But it may stay loaded for ever, so
# for no longer than Ollama keeps a model as a rule.
LOADED_S = 300.0
# Within this time our own use is noted, and a request that we broke off ends.
SLACK_S = 5.0
# What a person whom we serve asked for so lately may be what had another model make room.
LATELY = timedelta(seconds=60)


def stand_aside(backend: Backend, model: str = "another model", seconds: float = LIFETIME_S) -> None:
    """Keep lines back for others, for so long from now. Safe to repeat."""
    holds = Hold.objects.filter(backend=backend, reason=Hold.Reason.OTHERS)
    until = from_now(timedelta(seconds=seconds))
    if not holds.update(until=until, model=model):
        Hold.objects.create(backend=backend, reason=Hold.Reason.OTHERS, until=until, model=model)
        logger.info("others use %s: lines stand aside", model)


def took_place_of(backend: Backend, model: str) -> bool:
    """Others had `model`, which we loaded, make room: neither a person whom we serve nor a line used another one
    lately."""
    used = model_uses.within(backend, LATELY)
    return not used - {backends.kind_named(backend.kind).identity(model)}


def found_beside(backend: Backend, model: str) -> None:
    """Somebody used `model` beside a drive when all calls of that had ended: keep lines back, unless it was one whom we
    serve, or another drive."""
    if len(leases.alive(backend.pk)) <= 1 and not persons.person_is_at(backend):
        stand_aside(backend, model)


class Others:
    """What one worker has seen of others at its backend. Call `look` with each answer of the health probe."""

    def __init__(self) -> None:
        self._before: dict[str, str] | None = None
        self._looked_at = 0.0
        self._used_at: dict[str, float] = {}  # by model: when others were last seen to use it
        self._is_held = False
        self._listed: dict[str, str] = {}  # the models' names as the server lists them
        self._habits = Habits()

    def look(self, backend: Backend, loaded_until: Mapping[str, str]) -> None:
        """`loaded_until` has what the server says of each loaded model: a text that changes with each use."""
        kind, now = backends.kind_named(backend.kind), time.monotonic()
        loaded = {kind.identity(name) or name: until for name, until in loaded_until.items()}
        self._listed = {kind.identity(name) or name: name for name in loaded_until}
        before, took_s = self._before, now - self._looked_at
        self._before, self._looked_at = loaded, now
        most_s = max(LOADED_S, settings.INTERACTIVE_HOLD_S)
        self._used_at = {name: at for name, at in self._used_at.items() if name in loaded and now < at + most_s}
        if not settings.NOTICE_OTHERS:
            self._used_at.clear()
        elif before is not None:  # the first look does not tell use from what only stayed loaded
            # Derived models are ours, or those of another server like ours.
            used = {name for name in loaded if before.get(name) != loaded[name] and kind.derived(name) is None}
            self._note(backend, used, took_s)
        self._hold(backend, now)

    def _note(self, backend: Backend, used: set[str], took_s: float) -> None:
        """We or others have used these models since the last look, `took_s` ago."""
        if not used:
            return
        by_us = model_uses.within(backend, timedelta(seconds=took_s + SLACK_S))
        now = time.monotonic()
        for name in used - by_us:
            self._habits.came(name, now)
            self._habits.left(name, now)
            self._used_at[name] = now

    def _until(self, backend: Backend, now: float) -> dict[str, float]:
        """By model: until when lines stand aside for those who use it."""
        if not self._used_at:
            return {}
        kind = backends.kind_named(backend.kind)
        # Nobody has to load a model anew after lines of it: for those who use it, lines wait as for a person.
        shared = model_uses.within(backend, model_uses.REMEMBERED) | {kind.identity(backend.loaded_model)}
        wanted = Part.objects.filter(batch__in=Batch.objects.all().runnable(), failure__isnull=True)
        shared |= {kind.identity(model) for model in wanted.values_list("model", flat=True).distinct()}
        most_s = settings.INTERACTIVE_HOLD_S
        until = {
            name: at + (self._habits.hold_s(name, most_s) if name in shared else LOADED_S)
            for name, at in self._used_at.items()
        }
        return {name: end for name, end in until.items() if end > now}

    def _hold(self, backend: Backend, now: float) -> None:
        """Write what `_until` says, if anything does, or did until now."""
        ends = self._until(backend, now)
        name = max(ends, key=ends.__getitem__, default="")
        if not name and not self._is_held:
            return
        if name:
            stand_aside(backend, self._listed[name], min(LIFETIME_S, ends[name] - now))
        else:
            Hold.objects.filter(backend=backend, reason=Hold.Reason.OTHERS).delete()
        self._is_held = bool(name)
