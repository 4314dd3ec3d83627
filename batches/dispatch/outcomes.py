"""What becomes of a line's row, by the reply to its call: finished, or pending again with what it was charged."""

import logging
import random
import time
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings

from batches import registry
from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Verdict, reason_of
from batches.models import NO_ROOM, Backend, Line, LineState
from common.database import from_now

logger = logging.getLogger(__name__)

# More than a person or the system's memory killer would hit the same line by chance while others are sent as well.
MOST_BACKEND_CRASHES = 4
LEAST_BACKOFF_S, MOST_BACKOFF_S = 1.0, 60.0
# After two answers that nobody could check, the next one is probably lost too: a line whose answers take long leaves
# most of the server's time to others.
UNCHECKED_SHARE, MOST_UNCHECKED_S = 10, 200.0


def of(
    backend: Backend | None, line: Line, reply: Reply, call: Call[Line], *, busy_s: float, now: datetime
) -> dict[str, Any]:
    """The new values of a line's row. The reply came from `backend`, which has been busy for `busy_s`; it is stored
    `now`, by the database's clock."""
    values = _by_verdict(backend, line, reply, call, busy_s, now)
    if values["state"] is not LineState.PENDING:
        # When the answer came: it may have waited for others, to be stored with them.
        waited = timedelta(seconds=time.monotonic() - call.finished) if call.was_sent else timedelta()
        values |= {"finished_at": now - waited, "duration_ms": int(call.duration_s * 1000)}
    return values


def _by_verdict(
    backend: Backend | None, line: Line, reply: Reply, call: Call[Line], busy_s: float, now: datetime
) -> dict[str, Any]:
    match reply.verdict:
        case Verdict.ANSWERED:
            return _finished(LineState.SUCCEEDED, reply) | vars(reply.usage)
        case Verdict.ENDPOINT_MISSING if registry.is_elsewhere(backend, line.model):
            return _again(_jittered(Backend.FRESH.total_seconds()))  # until our list of the backend's models is fresh
        case Verdict.REFUSED | Verdict.ENDPOINT_MISSING:
            return _finished(LineState.FAILED, reply)
        case Verdict.FAILED | Verdict.CRASHED if call.is_charged:
            charge, tries_left = _charge(line, reply)
            backoff = _backoff(*charge.values())
            # No other try if it would end after the completion window: the line's own error says more than "expired".
            ends_at = now + backoff + timedelta(seconds=call.duration_s)
            if tries_left <= 0 or ends_at >= line.batch.expires_at:
                return _finished(LineState.FAILED, reply) | charge
            return _again(backoff) | charge | _suspicion(line, call)
        case Verdict.FAILED if reply.code == NO_ROOM:
            # Alone, after all others of its part: the server did not go away, and the others need not wait for this.
            return _again(_backoff(1)) | {"error_code": NO_ROOM} | _suspicion(line, call)
        case Verdict.FAILED | Verdict.CRASHED if call.most_together not in (None, line.most_together):
            # At once: no other line is sent before it is known which of these did it. The trial waits for the server.
            return {"state": LineState.PENDING, "not_before": None} | _suspicion(line, call)
        case Verdict.FAILED | Verdict.CRASHED:
            return _again(_backoff(1)) | _suspicion(line, call)
        case Verdict.UNCHECKED:
            return _unchecked(line, reply, call) | _suspicion(line, call)
        case Verdict.BUSY:
            return _again(_jittered(busy_wait_s(reply, busy_s)))
    return {"state": LineState.PENDING}


def _unchecked(line: Line, reply: Reply, call: Call[Line]) -> dict[str, Any]:
    """The answer is not used. The row keeps the reason while the line waits: the batch tells it, and the next such
    answer finds that it is not the first."""
    if line.error_code == reply.code:
        backoff = _jittered(min(MOST_UNCHECKED_S, max(MOST_BACKOFF_S, UNCHECKED_SHARE * call.duration_s)))
    else:
        logger.warning("%s line %s: its answer is not used: %s", line.batch_id, line.number, reply.message)
        backoff = _backoff(1)
    return _again(backoff) | {"error_code": reply.code, "error_message": reply.message}


def busy_wait_s(reply: Reply, busy_s: float) -> float:
    """How many seconds to send nothing to a server that has been busy for `busy_s`: as long again, or as long as the
    server asks, from LEAST_BACKOFF_S to MOST_BACKOFF_S."""
    return min(MOST_BACKOFF_S, max(LEAST_BACKOFF_S, busy_s, reply.retry_after_s))


def _suspicion(line: Line, call: Call[Line]) -> dict[str, Any]:
    return {"needs_trial": True, "most_together": call.most_together or line.most_together}


def _charge(line: Line, reply: Reply) -> tuple[dict[str, int], int]:
    """The new value of the counter that a failure charged to the line raises, and how many tries are left then."""
    if reply.verdict is Verdict.CRASHED:
        crashes = line.backend_crashes + 1
        return {"backend_crashes": crashes}, MOST_BACKEND_CRASHES - crashes
    attempts = line.attempts + 1
    if reply.code == "request_timeout":
        # The line took the time of many lines, so it gets only one more try.
        attempts = max(attempts, settings.LINE_MAX_ATTEMPTS - 1)
    return {"attempts": attempts}, settings.LINE_MAX_ATTEMPTS - attempts


def _backoff(times: int) -> timedelta:
    """The backoff after a failure that is the line's `times`-th: doubles each time, up to MOST_BACKOFF_S."""
    return _jittered(min(MOST_BACKOFF_S, LEAST_BACKOFF_S * 2 ** (times - 1)))


def _jittered(seconds: float) -> timedelta:
    """`seconds`, lengthened at random and never shortened, so that lines do not all come back at the same moment."""
    return timedelta(seconds=seconds * random.uniform(1.0, 1.5))


def _again(backoff: timedelta) -> dict[str, Any]:
    return {"state": LineState.PENDING, "not_before": from_now(backoff), "error_code": "", "error_message": ""}


def _finished(state: LineState, reply: Reply) -> dict[str, Any]:
    return {
        "state": state,
        "http_status": reply.status,
        **reason_of(reply),
    }
