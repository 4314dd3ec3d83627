"""A person comes first: while a person's own request is at a backend, and for INTERACTIVE_HOLD_S after it, no new line
is sent there.

Each such request has a hold that it renews. A hold of a killed process ends by itself, by the database's clock.
"""

import logging
import time
from datetime import timedelta

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.db.models.functions import Now

from batches.models import Backend, Hold
from batches.models.backend import HoldQuerySet
from common.database import from_now, relaxed_commits

logger = logging.getLogger(__name__)

LIFETIME = timedelta(seconds=15)
RENEW_EVERY_S = 5.0


def active(backend: Backend) -> HoldQuerySet:
    """The holds that keep lines from this backend now, for whatever reason."""
    return Hold.objects.all().of(backend)


def person_is_at(backend: Backend) -> bool:
    """A person's own request is at this backend, or was a moment ago. One small query, which a loop may make often."""
    return active(backend).filter(reason=Hold.Reason.PERSON).exists()


class Person:
    """A person at a backend, from now until `leave`; in between, call `renew` at least every RENEW_EVERY_S.

    A database that does not answer keeps no person from the model: the hold is then missing for a while.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._row = 0
        self._has_left = False
        self._renew()

    def renew(self) -> None:
        """Keep the hold alive. Cheap to call often."""
        if time.monotonic() >= self._renewed_at + RENEW_EVERY_S:
            self._renew()

    def leave(self) -> None:
        """Let lines go on in INTERACTIVE_HOLD_S seconds. Safe to call twice."""
        if self._has_left:
            return
        self._has_left = True
        after = timedelta(seconds=settings.INTERACTIVE_HOLD_S)
        try:
            if after:
                self._hold_for(after)
            else:
                Hold.objects.filter(pk=self._row).delete()
        except (OperationalError, InterfaceError) as error:
            logger.warning("a hold ends by itself, the database did not answer: %s", error)

    def _renew(self) -> None:
        self._renewed_at = time.monotonic()
        try:
            self._hold_for(LIFETIME)
        except (OperationalError, InterfaceError) as error:
            logger.warning("a hold is not renewed, the database did not answer: %s", error)

    def _hold_for(self, time_left: timedelta) -> None:
        with relaxed_commits():
            # A hold that ended meanwhile may have been removed: then make a new one.
            if not Hold.objects.filter(pk=self._row).update(until=from_now(time_left)):
                row = Hold.objects.create(backend=self._backend, reason=Hold.Reason.PERSON, until=from_now(time_left))
                self._row = row.pk


def forget_ended() -> int:
    """Remove the holds that ended; returns how many. Any process may call it at any time; safe to run twice."""
    # Holds that end later than any is made to end were written before the clock went back.
    longest = max(LIFETIME, timedelta(seconds=settings.INTERACTIVE_HOLD_S))
    people = Hold.objects.filter(reason=Hold.Reason.PERSON)
    people.filter(until__gt=from_now(2 * longest)).update(until=from_now(longest))
    forgotten, _ = Hold.objects.filter(until__lte=Now()).delete()
    return forgotten
