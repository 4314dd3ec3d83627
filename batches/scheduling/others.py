"""Whoever uses a model server without us is a person too: lines stand aside for them as for persons whom we serve.

Ollama's list of loaded models tells of them. Others are at work if a model appears there that we did not use, or if the
time at which a model is to be unloaded moves while we use it for nothing: each request that ends sets that time anew
(sched.go, processCompleted). While lines of ours run, other requests for the same model cannot be told from them.
"""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta

from django.conf import settings

from batches import backends
from batches.models import Backend, Hold
from batches.scheduling import model_uses
from batches.scheduling.habits import Habits
from common.database import from_now

logger = logging.getLogger(__name__)

# A hold is renewed by each probe of the backend, and ends by itself if its worker is killed.
LIFETIME_S = 15.0
# A model that others loaded keeps lines back while it is loaded. But it may stay loaded for ever, so for no longer than
# Ollama keeps a model as a rule.
LOADED_S = 300.0
# Within this time our own use is noted, and a request that we broke off ends.
SLACK_S = 5.0


def stand_aside(backend: Backend, model: str = "another model", seconds: float = LIFETIME_S) -> None:
    """Keep lines back for others, for so long from now. Safe to repeat."""
    holds = Hold.objects.filter(backend=backend, reason=Hold.Reason.OTHERS)
    until = from_now(timedelta(seconds=seconds))
    if not holds.update(until=until, model=model):
        Hold.objects.create(backend=backend, reason=Hold.Reason.OTHERS, until=until, model=model)
        logger.info("others use %s: lines stand aside", model)


class Others:
    """What one worker has seen of others at its backend. Call `look` with each answer of the health probe."""

    def __init__(self) -> None:
        self._before: dict[str, str] | None = None
        self._looked_at = 0.0
        self._until: dict[str, float] = {}  # by model: until when lines stand aside for those who use it
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
        self._until = {name: until for name, until in self._until.items() if name in loaded and until > now}
        if not settings.NOTICE_OTHERS:
            self._until.clear()
        elif before is not None:  # the first look does not tell use from what only stayed loaded
            # Derived models are ours, or those of another server like ours.
            used = {name for name in loaded if before.get(name) != loaded[name] and kind.derived(name) is None}
            self._note(backend, kind.identity(backend.loaded_model), used, took_s)
        self._hold(backend, now)

    def _note(self, backend: Backend, ours: str, used: set[str], took_s: float) -> None:
        """We or others have used these models since the last look, `took_s` ago. Drives send lines of `ours`."""
        if not used:
            return
        by_us = model_uses.within(backend, timedelta(seconds=took_s + SLACK_S))
        known = model_uses.within(backend, model_uses.REMEMBERED) | {ours}
        now = time.monotonic()
        for name in used - by_us:
            self._habits.came(name, now)
            self._habits.left(name, now)
            stays_s = self._habits.hold_s(name, settings.INTERACTIVE_HOLD_S) if name in known else LOADED_S
            if stays_s:
                self._until[name] = now + stays_s

    def _hold(self, backend: Backend, now: float) -> None:
        """Write what `_until` says, if anything does, or did until now."""
        name = max(self._until, key=self._until.__getitem__, default="")
        if not name and not self._is_held:
            return
        if name:
            stand_aside(backend, self._listed[name], min(LIFETIME_S, self._until[name] - now))
        else:
            Hold.objects.filter(backend=backend, reason=Hold.Reason.OTHERS).delete()
        self._is_held = bool(name)
