"""What a drive does for persons, and what its lines are owed for it.

A person who comes is served next: the calls that the server has not begun are cut, and their lines handed back
uncharged. Lines that wait for persons get their share of the time all the same: once they are owed a turn, a hold of
its own opens the gate for all drives of the backend.
"""

import time
from collections.abc import Iterator
from typing import Any

from django.conf import settings

from batches.backends.base import BackendKind
from batches.backends.calls import CallPool
from batches.backends.in_flight import Call
from batches.dispatch.admission import Admission
from batches.dispatch.questions import Purpose, Question
from batches.dispatch.readiness import Readiness
from batches.dispatch.sharing import SharedBackend
from batches.models import Backend
from batches.scheduling import persons
from batches.scheduling.gate import By, Gate
from batches.scheduling.share import STEP_S, Share
from common.database import retrying


class PersonsFirst:
    """Call `look` several times a second, and `close` at the end of the drive."""

    def __init__(
        self,
        backend: Backend,
        kind: BackendKind,
        calls: CallPool[Any],
        shared: SharedBackend,
        admission: Admission,
        readiness: Readiness,
    ) -> None:
        self._backend, self._kind = backend, kind
        self._calls, self._shared, self._admission, self._readiness = calls, shared, admission, readiness
        self._share = Share(settings.BATCH_SHARE)
        self._looked_at = float("-inf")
        self._newest_person = 0
        self._turn: By | None = None  # what lines run in spite of
        self._renewed_at = self._told_at = float("-inf")

    def look(self) -> None:
        """Read the gate, make room for persons, and take the turn that is owed."""
        now = time.monotonic()
        gate = retrying(self._admission.look_at_gate)
        if gate.newest_person or gate.is_for_persons:
            # The server computes their requests beside our calls, and may fail for it.
            self._calls.in_flight.mark_shared()
        is_new = gate.newest_person > self._newest_person
        if gate.is_for_persons:
            self._make_room(is_new=is_new)
        if gate.is_for_persons or is_new:
            # Their model may have taken the place of ours.
            self._readiness.doubt_loaded()
        self._newest_person = max(self._newest_person, gate.newest_person)
        runs = bool(self._calls.in_flight.computing) or not self._admission.why_closed()
        self._share.look(now, runs=runs, waits=gate.is_for_persons)
        self._looked_at = now
        if self._shared.is_oldest_drive:
            self._take_turn(gate, now)
            self._tell(now)

    def close(self) -> None:
        """The drive ends: lines are not sent in spite of persons any more."""
        if self._turn is not None:
            retrying(persons.end_share, self._backend)

    def _make_room(self, *, is_new: bool) -> None:
        self._calls.cut_all(call for call in self._calls.in_flight if _counts_slots(call))
        if not self._kind.begins_all:
            self._calls.cut_all(self._not_begun(is_new=is_new))

    def _not_begun(self, *, is_new: bool) -> Iterator[Call[Any]]:
        """The calls that wait at the server; and if a person has come since the last look, those that may have been
        begun after the person came: such a line was sent before, and would keep the person waiting for all of it."""
        for place, call in enumerate(self._calls.in_flight.computing):
            began_at = call.running_since
            if place >= self._shared.begun or (is_new and (began_at is None or began_at > self._looked_at)):
                yield call

    def _take_turn(self, gate: Gate, now: float) -> None:
        if self._turn is not None and self._share.owed_s <= 0:
            retrying(persons.end_share, self._backend)
            self._turn = None
        elif gate.is_for_persons and self._share.is_due(between=gate.by is By.LINGERING):
            self._turn, self._renewed_at = gate.by, float("-inf")
        if self._turn is not None and now >= self._renewed_at + persons.RENEW_EVERY_S:
            retrying(persons.give_share, self._backend, between=self._turn is By.LINGERING)
            self._renewed_at = now
            retrying(self._admission.look_at_gate)

    def _tell(self, now: float) -> None:
        if now >= self._told_at + STEP_S:
            self._told_at = now
            had = self._share.had
            retrying(self._backend.set_share_had, had if had is None else round(had, 2))


def _counts_slots(call: Call[Any]) -> bool:
    return isinstance(call.subject, Question) and call.subject.purpose is Purpose.COUNT_SLOTS
