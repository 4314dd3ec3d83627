"""Whether a line may be sent to the backend now, and if not, why: the one answer for all reasons."""

import time

from django.conf import settings

from batches.backends.in_flight import Call
from batches.backends.replies import Verdict
from batches.dispatch import outcomes
from batches.dispatch.sharing import SharedBackend
from batches.models import Backend
from batches.scheduling import gate
from batches.scheduling.gate import Gate
from batches.scheduling.share import CYCLE_S

# A drive ends once its gate has been closed for this time; the tick wakes another drive when the gate is open. Lines
# that wait for persons get a turn before that, which a drive has to give them.
LINGERS_S, LINGERS_FOR_SHARE_S = 30.0, CYCLE_S + 30.0


class Admission:
    """What one drive knows of the reasons to send nothing. Reads `backend` and `shared`, and never writes them."""

    def __init__(self, backend: Backend, shared: SharedBackend) -> None:
        self._backend = backend
        self._shared = shared
        self._gate = Gate()
        self._gate_closed_at = 0.0
        self._busy_since: float | None = None
        self._nothing_new_until = float("-inf")
        self._stops_at: float | None = None
        self._end = ""

    def why_not(self) -> str:
        """The reason why nothing may be sent now, for a person to read; empty if lines and questions may be sent."""
        is_busy = time.monotonic() < self._nothing_new_until
        return self.why_closed() or ("The model server is busy." if is_busy else "")

    def why_closed(self) -> str:
        """The same reason, but empty if the server is only busy: this drive then keeps its lines and waits."""
        if self._stops_at is not None:
            return "The worker is being stopped."
        if self._end:
            return self._end
        if self._backend.is_paused:
            return self._backend.pause_reason
        if self._gate.reason:
            return self._gate.reason
        if self._shared.stands_aside:
            return "Another worker needs the model server for itself."
        return ""

    @property
    def is_over(self) -> bool:
        """The reason will last, so it is of no use to wait for its end."""
        if self._stops_at is not None or self._end or self._backend.is_paused:
            return True
        for_share = self._gate.is_for_persons and settings.BATCH_SHARE > 0
        lingers_s = LINGERS_FOR_SHARE_S if for_share else LINGERS_S
        return bool(self._gate.reason) and time.monotonic() > self._gate_closed_at + lingers_s

    # What it learns

    def look_at_gate(self) -> Gate:
        """Read what persons and the clock say. One query."""
        now = gate.look(self._backend)
        if now.reason and not self._gate.reason:
            self._gate_closed_at = time.monotonic()
        self._gate = now
        return now

    def note(self, call: Call[object]) -> None:
        """Take in what became of a call. A busy server gets nothing new for a while; an answer ends its busy time."""
        if call.verdict is Verdict.ANSWERED:
            self._busy_since, self._nothing_new_until = None, float("-inf")
        elif call.verdict is Verdict.BUSY and call.reply is not None:
            now = time.monotonic()
            self._busy_since = self._busy_since or now
            self._nothing_new_until = now + outcomes.busy_wait_s(call.reply, now - self._busy_since)

    @property
    def busy_s(self) -> float:
        """For how many seconds the server has refused lines because it is busy."""
        return time.monotonic() - self._busy_since if self._busy_since is not None else 0.0

    def stop(self) -> None:
        """Admit nothing any more. Safe to call again: SHUTDOWN_GRACE_S counts from the first time."""
        if self._stops_at is None:
            self._stops_at = time.monotonic() + settings.SHUTDOWN_GRACE_S

    def end(self, reason: str) -> None:
        """Admit nothing any more for this `reason`, and let the calls in flight finish, however long they take."""
        self._end = self._end or reason

    @property
    def grace_is_over(self) -> bool:
        """The worker is being stopped, and the calls in flight have had SHUTDOWN_GRACE_S to finish."""
        return self._stops_at is not None and time.monotonic() >= self._stops_at
