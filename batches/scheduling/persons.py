"""A person comes first: while a person's own request is at a backend, and for a while after it, no new line is sent
there. How long that while is depends on how soon the person usually comes back; INTERACTIVE_HOLD_S is the most.

Each such request has a hold that it renews. A hold of a killed process ends by itself, by the database's clock. Lines
have their share of the time all the same (scheduling.share).
"""

import logging
import time
from datetime import timedelta

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.db.models.functions import Now

from batches.models import Backend, Hold
from batches.models.backend import HoldQuerySet
from batches.scheduling import model_uses
from batches.scheduling.habits import Habits
from common.database import from_now, relaxed_commits

logger = logging.getLogger(__name__)

Reason = Hold.Reason
LIFETIME = timedelta(seconds=15)
RENEW_EVERY_S = 5.0

# Of the persons whose requests this process passes on; the one web process has them all.
_habits = Habits()


def active(backend: Backend) -> HoldQuerySet:
    """The holds that concern lines for this backend now, for whatever reason."""
    return Hold.objects.all().of(backend)


def person_is_at(backend: Backend) -> bool:
    """A person's own request is at this backend, or was a moment ago. One small query, which a loop may make often."""
    return active(backend).filter(reason__in=(Reason.PERSON, Reason.AFTER_PERSON)).exists()


class Person:
    """A person at a backend, from now until `leave`; in between, call `renew` at least every RENEW_EVERY_S.

    `who` tells this person from others: the API key, or the address. `model` is what the request asks for. A database
    that does not answer keeps no person from the model: the hold is then missing for a while.
    """

    def __init__(self, backend: Backend, who: str = "", model: str = "") -> None:
        self._backend, self._who, self._model = backend, who, model
        self._row = 0
        self._has_left = False
        self.was_answered = False  # the server did not refuse the request
        _habits.came(who, time.monotonic())
        self._renew()

    def renew(self) -> None:
        """Keep the hold alive. Cheap to call often."""
        if time.monotonic() >= self._renewed_at + RENEW_EVERY_S:
            self._renew()

    def leave(self) -> None:
        """Let lines go on: soon, or at once if the request was not answered. Safe to call twice."""
        if self._has_left:
            return
        self._has_left = True
        try:
            if self.was_answered and (after_s := _habits.hold_s(self._who, settings.INTERACTIVE_HOLD_S)):
                self._hold(Reason.AFTER_PERSON, timedelta(seconds=after_s))
            else:
                Hold.objects.filter(pk=self._row).delete()
        except (OperationalError, InterfaceError) as error:
            logger.warning("a hold ends by itself, the database did not answer: %s", error)
        if self.was_answered:
            _habits.left(self._who, time.monotonic())

    def _renew(self) -> None:
        self._renewed_at = time.monotonic()
        try:
            self._hold(Reason.PERSON, LIFETIME)
        except (OperationalError, InterfaceError) as error:
            logger.warning("a hold is not renewed, the database did not answer: %s", error)

    def _hold(self, reason: Hold.Reason, time_left: timedelta) -> None:
        with relaxed_commits():
            # A hold that ended meanwhile may have been removed: then make a new one.
            if not Hold.objects.filter(pk=self._row).update(reason=reason, until=from_now(time_left)):
                self._row = Hold.objects.create(backend=self._backend, reason=reason, until=from_now(time_left)).pk
            if self._model:
                model_uses.note(self._backend, self._model)


def give_share(backend: Backend, *, between: bool) -> None:
    """Let lines run in spite of persons: between their requests, or beside them. Call again every RENEW_EVERY_S."""
    reason = Reason.SHARE_BETWEEN if between else Reason.SHARE
    with relaxed_commits():
        if not Hold.objects.filter(backend=backend, reason=reason).update(until=from_now(LIFETIME)):
            Hold.objects.create(backend=backend, reason=reason, until=from_now(LIFETIME))


def end_share(backend: Backend) -> None:
    """Lines are owed nothing more. Safe to call at any time."""
    Hold.objects.filter(backend=backend, reason__in=(Reason.SHARE, Reason.SHARE_BETWEEN)).delete()


def forget_ended() -> int:
    """Remove the holds that ended; returns how many. Any process may call it at any time; safe to run twice."""
    # Holds that end later than any is made to end were written before the clock went back.
    longest = max(LIFETIME, timedelta(seconds=settings.INTERACTIVE_HOLD_S))
    passing = Hold.objects.exclude(reason=Reason.PAUSED)
    passing.filter(until__gt=from_now(2 * longest)).update(until=from_now(longest))
    forgotten, _ = Hold.objects.filter(until__lte=Now()).delete()
    return forgotten
