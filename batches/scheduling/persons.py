"""A person first: while somebody's own request is at a backend, and for a while after it, no new line is sent there.

Each such request has a row that it renews. What a killed process held ends by itself, by the database's clock.
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
    """What keeps lines from this backend now, for whatever reason."""
    return Hold.objects.all().of(backend)


def person_is_at(backend: Backend) -> bool:
    """Somebody's own request is there, or was a moment ago. One small query, for a loop to ask."""
    return active(backend).filter(reason=Hold.Reason.PERSON).exists()


class Person:
    """Somebody at a backend from now until `leave`; call `renew` at least every few seconds in between.

    A database that does not answer keeps nobody from the model: the hold is then missing for a while.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._row = 0
        self._has_left = False
        self._renew()

    def renew(self) -> None:
        """Stay. Cheap to call often."""
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
            # One that lapsed meanwhile may be gone: then there is a new one.
            if not Hold.objects.filter(pk=self._row).update(until=from_now(time_left)):
                row = Hold.objects.create(backend=self._backend, reason=Hold.Reason.PERSON, until=from_now(time_left))
                self._row = row.pk


def forget_ended() -> int:
    """Remove what ended; the number of rows. Any process, any time, safe to run twice."""
    # The clock went back since these were written: nobody holds so long at once.
    longest = max(LIFETIME, timedelta(seconds=settings.INTERACTIVE_HOLD_S))
    people = Hold.objects.filter(reason=Hold.Reason.PERSON)
    people.filter(until__gt=from_now(2 * longest)).update(until=from_now(longest))
    forgotten, _ = Hold.objects.filter(until__lte=Now()).delete()
    return forgotten
