"""Whether lines may be sent now, as far as persons and the clock say: the one place that knows what keeps all back.

Failures do not close the gate: a failed request pauses the backend (`Backend.paused_at`) or one model of it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto

from django.conf import settings
from django.utils import timezone

from batches.models import Backend, Hold
from common import database

Reason = Hold.Reason


_ANY_HOLD = database.Asked(lambda: Hold.objects.all().active())


class By(Enum):
    """What closes a gate."""

    OPERATOR = auto()  # a pause, or quiet hours
    PERSON = auto()  # a person's request is at the server
    LINGERING = auto()  # a person may come back, or others use the server


@dataclass(frozen=True)
class Gate:
    """`reason` says why no new line may be sent, in a sentence for a person, and `by` what closes the gate; empty and
    None if lines may be sent. `newest_person` is the id of the newest hold of a person whose request is at the server,
    whether or not the gate is open; 0 if there is none."""

    reason: str = ""
    by: By | None = None
    newest_person: int = 0

    @property
    def is_for_persons(self) -> bool:
        """The lines wait for persons, so that they get their share of the time (scheduling.share)."""
        return self.by in (By.PERSON, By.LINGERING)


def look(backend: Backend) -> Gate:
    """The gate of this backend now. One query, or two while there is any hold: cheap enough to be made several times a
    second."""
    return _of(list(Hold.objects.all().of(backend).order_by("-pk")) if _ANY_HOLD.is_true() else [])


def looks(backends: Collection[Backend]) -> dict[int, Gate]:
    """The gate of each of these backends now, by the backend's id. One query for any number of them."""
    active = list(Hold.objects.all().active().order_by("-pk")) if backends else []
    return {each.pk: _of([hold for hold in active if hold.backend_id in (None, each.pk)]) for each in backends}


def _of(newest_first: Sequence[Hold]) -> Gate:
    """The gate of a backend that these active holds concern."""
    holds = {hold.reason: hold for hold in newest_first}  # the oldest of each: two pauses of one moment are one
    if (paused := holds.get(Reason.PAUSED)) and paused.backend_id is not None:
        return Gate("manage.py tune_backend measures on this server; batches go on after it.", By.OPERATOR)
    if paused:
        return Gate(
            f"A person paused all batches at {clock(paused.created_at)}. Resume them in the admin, by manage.py resume "
            "or by POST /v1/batches/resume.",
            By.OPERATOR,
        )
    if until := quiet_until():
        return Gate(f"Quiet hours until {clock(until)} (QUIET_HOURS={settings.QUIET_HOURS.text}).", By.OPERATOR)
    newest = next((hold.pk for hold in newest_first if hold.reason == Reason.PERSON), 0)
    if settings.BATCH_SHARE == 1 or Reason.SHARE in holds:
        return Gate(newest_person=newest)
    if newest:
        return Gate(
            f"A person's request is at the model server; the lines go on after it{_share()}.", By.PERSON, newest
        )
    if Reason.SHARE_BETWEEN in holds:
        return Gate()
    if Reason.AFTER_PERSON in holds:
        return Gate(f"A person's request has just been answered; the lines go on soon{_share()}.", By.LINGERING)
    if others := holds.get(Reason.OTHERS):
        return Gate(
            f"Somebody uses the model server directly ({others.model}, noticed at {clock(others.created_at)}); the "
            f"lines go on after that{_share()}. NOTICE_OTHERS=False ends such pauses.",
            By.LINGERING,
        )
    return Gate()


def quiet_until() -> datetime | None:
    """When the quiet hours that it is now end; None if there are none now."""
    until: datetime | None = settings.QUIET_HOURS.ends_at(database.now())
    return until


def clock(at: datetime) -> str:
    """A moment as the operator reads it, in TIME_ZONE."""
    return f"{timezone.localtime(at):%Y-%m-%d %H:%M} ({settings.TIME_ZONE})"


def _share() -> str:
    if not settings.BATCH_SHARE:
        return ""
    return f", and meanwhile have {settings.BATCH_SHARE:.0%} of the time (BATCH_SHARE={settings.BATCH_SHARE:g})"
