"""Whether a line may be sent to the backend now, and if not, why: the one answer for all reasons."""

import time

from django.conf import settings

from batches.backends.calls import Call
from batches.backends.replies import Verdict
from batches.dispatch import outcomes
from batches.dispatch.sharing import SharedBackend
from batches.models import Backend
from batches.scheduling import gate

# A drive before a closed gate ends after this time; the tick wakes another one once the gate is open.
LINGERS_S = 30.0


class Admission:
    """What one drive knows of the reasons to send nothing. It reads `backend` and `shared`, which others write."""

    def __init__(self, backend: Backend, shared: SharedBackend) -> None:
        self._backend = backend
        self._shared = shared
        self._gate_reason = ""
        self._gate_closed_at = 0.0
        self._busy_since: float | None = None
        self._nothing_new_until = float("-inf")
        self._stops_at: float | None = None

    def why_not(self) -> str:
        """The reason why nothing may be sent now, for a person to read; empty if lines and questions may be sent."""
        is_busy = time.monotonic() < self._nothing_new_until
        return self.why_closed() or ("The model server is busy." if is_busy else "")

    def why_closed(self) -> str:
        """The same, but for a server that is busy: its lines stay with this drive, which waits for it."""
        if self._stops_at is not None:
            return "The worker is being stopped."
        if self._backend.is_paused:
            return self._backend.pause_reason
        if self._gate_reason:
            return self._gate_reason
        if self._shared.stands_aside:
            return "Another worker needs the model server for itself."
        return ""

    @property
    def is_over(self) -> bool:
        """The reason will last: there is no point in waiting for its end."""
        if self._stops_at is not None or self._backend.is_paused:
            return True
        return bool(self._gate_reason) and time.monotonic() > self._gate_closed_at + LINGERS_S

    @property
    def gate_is_closed(self) -> bool:
        return bool(self._gate_reason)

    # What it learns

    def look_at_gate(self) -> None:
        """Read what persons and the clock say. One query."""
        reason = gate.closed_reason(self._backend)
        if reason and not self._gate_reason:
            self._gate_closed_at = time.monotonic()
        self._gate_reason = reason

    def note(self, call: Call[object]) -> None:
        """Take in what became of a call: a server that is busy gets nothing new for a while, an answer ends that."""
        if call.verdict is Verdict.ANSWERED:
            self._busy_since = None
        elif call.verdict is Verdict.BUSY and call.reply is not None:
            now = time.monotonic()
            self._busy_since = self._busy_since or now
            self._nothing_new_until = now + outcomes.busy_wait_s(call.reply, now - self._busy_since)

    @property
    def busy_s(self) -> float:
        """How long the server has refused lines for being busy."""
        return time.monotonic() - self._busy_since if self._busy_since is not None else 0.0

    def stop(self) -> None:
        """Admit nothing any more. Safe to call again: the grace runs from the first call."""
        if self._stops_at is None:
            self._stops_at = time.monotonic() + settings.SHUTDOWN_GRACE_S

    @property
    def grace_is_over(self) -> bool:
        """The worker is to stop, and what is in flight had SHUTDOWN_GRACE_S to finish."""
        return self._stops_at is not None and time.monotonic() >= self._stops_at
