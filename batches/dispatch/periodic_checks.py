"""What a drive checks every second or more often: its lease, persons, the clock, other drives, stopped batches.

Each read is a small transaction of its own, tried again by itself if the database does not answer.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from batches import leases, lifecycle
from batches.backends.calls import CallPool
from batches.backends.in_flight import Call
from batches.dispatch.admission import Admission
from batches.dispatch.line_buffer import LineBuffer
from batches.dispatch.own_use import OwnUse
from batches.dispatch.persons_first import PersonsFirst
from batches.dispatch.readiness import Readiness
from batches.dispatch.sharing import SharedBackend
from batches.dispatch.tallies import Tallies
from batches.models import Backend, Batch, Line
from common.database import GIVEN, Asked, retrying

LOOK_EVERY_S = 1.0
# Shorter, so that a person who comes to the backend does not wait for LOOK_EVERY_S.
LOOK_AT_GATE_EVERY_S = 0.25


@dataclass
class PeriodicChecks:
    """Tells the objects of one drive what has changed around the drive."""

    backend: Backend
    keeper: leases.Keeper
    calls: CallPool[Any]
    shared: SharedBackend
    admission: Admission
    readiness: Readiness
    lines: LineBuffer
    persons_first: PersonsFirst
    own_use: OwnUse
    tallies: Tallies
    should_stop: Callable[[], bool]
    must_end: Callable[[], bool]
    wake_control: Callable[[str], None]
    # Batches of lines that were stored since the last look: one of these may have been its last.
    stored: set[str] = field(default_factory=set)
    looked_at: float = float("-inf")
    looked_at_gate: float = float("-inf")

    @property
    def due_at(self) -> float:
        """When `run` has something to do again, by time.monotonic()."""
        return min(self.looked_at + LOOK_EVERY_S, self.looked_at_gate + LOOK_AT_GATE_EVERY_S)

    def run(self, *, is_idle: bool) -> None:
        """Check what is due; cheap to call often. `is_idle`: nothing is in flight, and nothing is to be stored.

        Raises LeaseLost.
        """
        now = time.monotonic()
        if is_look_due := now >= self.looked_at + LOOK_EVERY_S:
            self.looked_at = now
            self._look(is_idle)
        # With each look, so that every fourth look at the gate does not wake the process again.
        if is_look_due or now >= self.looked_at_gate + LOOK_AT_GATE_EVERY_S:
            self.looked_at_gate = now
            self.persons_first.look()

    def _look(self, is_idle: bool) -> None:
        self.keeper.keep()
        self.own_use.note(call.subject.served_model for call in self.calls.in_flight.computing)
        retrying(self.backend.read_again)
        self.readiness.look()
        self.close_finished_batches()
        self._drop_stopped_batches()
        self.share_backend(is_idle=is_idle)
        self.lines.choose_turn(_lines(self.calls.in_flight))
        if self.should_stop():
            self.admission.stop()
        if self.must_end():
            self.admission.end("The worker takes no more work.")
        self.tallies.look(len(self.calls.in_flight.computing))
        if self.admission.grace_is_over:
            self.calls.cut_all(self.calls.in_flight)

    def close_finished_batches(self) -> None:
        """Of the batches that this drive has lines of or has just stored lines of, move those that have no open line,
        or are past their completion window, and have them finalized.

        All others are the tick's, and so are these if the drive dies before: with a thousand drives, each look at all
        batches would be a thousand a second.
        """
        retrying(lifecycle.close_finished, self.wake_control, self.stored | self._at_work)
        self.stored.clear()

    @property
    def _at_work(self) -> set[str]:
        """The batches of the lines that are in the buffer or in flight."""
        return {line.batch_id for line in [*self.lines, *_lines(self.calls.in_flight)]}

    def _drop_stopped_batches(self) -> None:
        """Cut the calls of batches that were cancelled or ran out of time: finalizing settles their lines. The calls of
        batches that an operator paused may finish."""
        at_work = self._at_work
        if all(retrying(_GOES_ON.is_true, batch_id) for batch_id in at_work):
            return  # as a rule, and each second
        batches = Batch.objects.all().in_progress().filter(pk__in=at_work)
        running = dict(retrying(list, batches.values_list("pk", "paused_at")))
        self.lines.keep_only({batch_id for batch_id, paused_at in running.items() if paused_at is None})
        for call in list(self.calls.in_flight):
            if isinstance(call.subject, Line) and call.subject.batch_id not in running:
                self.calls.cut(call)

    def share_backend(self, *, is_idle: bool) -> None:
        """Take our room and our lanes by what is known of the backend now. `is_idle` as for `run`."""
        if is_idle and not self.lines and not self.readiness.is_waiting:
            self.shared.give_backend_back()
        retrying(self.shared.look, is_idle=is_idle, in_flight=len(self.calls.in_flight.computing))
        if call := self.shared.call_beside(self.calls.in_flight):
            self.calls.submit(call)
        self.lines.use_lanes(self.shared.lanes)
        self.calls.serves(self.shared.limit.running, is_known=self.shared.limit.parallel is not None)


_GOES_ON = Asked(lambda: Batch.objects.in_progress().filter(pk=GIVEN, paused_at=None))


def _lines(calls: Iterable[Call[Any]]) -> list[Line]:
    return [call.subject for call in calls if isinstance(call.subject, Line)]
