"""Lines in and out of a lease's hands: claimed for it, and stored by it with what became of them.

    pending ── claim ──> running ── store ──> succeeded | failed | pending again

The UPDATE that stores a result names the lease that claimed the line. If it changes no row, the lease was declared dead
meanwhile and somebody else has the line: the result is dropped.
"""

import logging
import random
from collections import Counter
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from batches import failing, reuse
from batches.backends.base import Reply, Verdict
from batches.backends.calls import Call
from batches.dispatch import fault_attribution
from batches.models import FINAL, Backend, Batch, Lease, Line, LineState, Part, PausedModel
from batches.scheduling import turns
from common import failpoints
from common.database import from_now

logger = logging.getLogger(__name__)

MOST_BACKEND_CRASHES = 2
LEAST_BACKOFF_S, MOST_BACKOFF_S = 1.0, 60.0


def has_work(backend: Backend) -> bool:
    """A drive of this backend would find a line to send, or a paused model to try again."""
    return turns.has_work(backend) or any(_is_to_retry(paused) for paused in backend.paused_models.all().due())


def _is_to_retry(paused: PausedModel) -> bool:
    """It is wanted, or nobody waits for it any more and the pause can go."""
    endpoint, model = paused.endpoint, paused.model
    return is_wanted(endpoint, model) or not is_wanted(endpoint, model, now=False)


def is_wanted(endpoint: str, model: str, *, now: bool = True) -> bool:
    """Some line of a batch in progress is still to be answered by this model at this endpoint; `now`, of a batch that
    no person paused."""
    batches = Batch.objects.all().runnable() if now else Batch.objects.all().in_progress()
    parts = Part.objects.filter(batch__in=batches.filter(endpoint=endpoint), model=model, failure__isnull=True)
    return Line.objects.all().open().filter(part__in=parts).exists()


def claim(lease: Lease, turn: turns.Turn, most: int) -> list[Line]:
    """Up to `most` lines for `lease`, of the part whose turn it is; none if the lease is not alive any more, or the
    batch stopped meanwhile. A line that may kill its worker comes by itself, and is to be sent so."""
    if turn.is_suspicious:
        most = 1
    with transaction.atomic():
        # Postgres passes over lines that another claim has locked; on SQLite the transaction holds the only write lock.
        ids = list(
            turn.lines()
            .filter(batch__in=Batch.objects.all().runnable(), part__failure__isnull=True)
            .select_for_update(skip_locked=True, of=("self",))
            .values_list("pk", flat=True)[:most]
        )
        if not ids or not Lease.objects.filter(pk=lease.pk, expires_at__gt=Now()).exists():
            return []
        Line.objects.filter(pk__in=ids, state=LineState.PENDING).update(state=LineState.RUNNING, lease=lease)
        # Read again: only what we really got. In the same transaction, so that a claim tried again leaves none.
        held = Line.objects.all().held_by(lease).in_bulk(ids)
        lines = [held[each] for each in ids if each in held]
        if lines:
            turn.claimed(lines[-1])
    failpoints.reach("after_claim")
    for line in lines:
        line.part, line.batch = turn.part, turn.part.batch
        line.needs_alone = line.needs_alone or turn.is_suspicious
    return lines


def hand_back(lease: Lease, lines: list[Line]) -> None:
    """Make claimed lines that were not answered claimable again, uncharged."""
    if not lines:
        return
    held = Line.objects.all().held_by(lease)
    held.filter(pk__in=[line.pk for line in lines]).update(state=LineState.PENDING, lease=None)


def store(lease: Lease, calls: list[Call[Line]], *, busy_s: float = 0.0) -> list[str]:
    """Record what became of the calls, in one transaction. Results of lines that `lease` lost are dropped.

    `busy_s` is how long the backend has been busy: the next try waits as long again. A missing model fails the lines
    that wait for it too: the ids of their batches, for which to wake the control worker.
    """
    tallies: dict[str, Counter[str]] = {}
    cut: list[Line] = []
    finished: dict[int, tuple[Line, str]] = {}  # of lines that other lines may repeat, with the counter that moves
    answered: list[tuple[Line, str]] = []
    missing: dict[Part, Reply] = {}
    with transaction.atomic():
        for call in calls:
            line, reply = call.subject, call.reply
            if reply is None or reply.verdict is Verdict.CUT:
                cut.append(line)
                continue
            values = _outcome(lease, line, reply, call, busy_s=busy_s)
            if values["state"] is not LineState.PENDING:
                values |= {"finished_at": timezone.now(), "duration_ms": int(call.duration_s * 1000)}
            if not _write(lease, line, values):
                logger.warning("%s line %s: the result came too late and was dropped", line.batch_id, line.number)
                continue
            tally = tallies.setdefault(line.batch_id, Counter())
            if values["state"] is LineState.SUCCEEDED:
                tally["completed"] += 1
                tally.update(vars(reply.usage))
                answered.append((line, reply.body))
            elif values["state"] is LineState.FAILED:
                tally["failed"] += 1
            if line.digest is not None and values["state"] is not LineState.PENDING:
                finished[line.pk] = line, "completed" if values["state"] is LineState.SUCCEEDED else "failed"
            if reply.verdict is Verdict.MODEL_MISSING and values["state"] is LineState.FAILED:
                missing[line.part] = reply
        for pk, count in reuse.counts(finished).items():
            line, counter = finished[pk]
            tallies[line.batch_id].update({counter: count, "repeated_finished": count})
        reuse.remember(answered)
        # Unless it was settled by whoever stopped its batch.
        hand_back(lease, cut)
        failpoints.reach("mid_store")
        for batch_id, tally in tallies.items():
            changes = {name: F(name) + count for name, count in tally.items() if count}
            if changes:
                Batch.objects.filter(pk=batch_id).exclude(status__in=FINAL).update(**changes)
        for part, reply in missing.items():
            failing.mark([part.pk], reply)
    return sorted({part.batch_id for part in missing})


ANSWER = (
    *("state", "http_status", "response", "error_code", "error_message"),
    *("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "finished_at", "duration_ms"),
)
# What the ORM would make of it, once instead of for each line: composing it takes longer than the database's own work.
WRITE_ANSWER = (
    "UPDATE batches_line SET state = %s, lease_id = NULL, http_status = %s, response = %s, error_code = %s, "
    "error_message = %s, input_tokens = %s, cached_tokens = %s, output_tokens = %s, reasoning_tokens = %s, "
    "finished_at = %s, duration_ms = %s WHERE id = %s AND lease_id = %s AND state = %s"
)


def _write(lease: Lease, line: Line, values: dict[str, Any]) -> bool:
    """Store what became of a line, if `lease` has it still."""
    if values["state"] is not LineState.SUCCEEDED:
        return Line.objects.all().held_by(lease).filter(pk=line.pk).update(lease=None, **values) == 1
    row = values | {"finished_at": connection.ops.adapt_datetimefield_value(values["finished_at"])}
    with connection.cursor() as cursor:
        cursor.execute(WRITE_ANSWER, [*(row[name] for name in ANSWER), line.pk, lease.pk, LineState.RUNNING])
        return bool(cursor.rowcount == 1)


def _outcome(lease: Lease, line: Line, reply: Reply, call: Call[Line], *, busy_s: float) -> dict[str, Any]:
    """The new values of a line's row: finished, or pending again with what was charged."""
    match reply.verdict:
        case Verdict.ANSWERED:
            return _finished(LineState.SUCCEEDED, reply) | vars(reply.usage)
        case Verdict.MODEL_MISSING if is_elsewhere(lease.backend, line.model):
            return _again(_jittered(Backend.FRESH.total_seconds()))  # until our list of its models is fresh
        case Verdict.REFUSED | Verdict.MODEL_MISSING:
            return _finished(LineState.FAILED, reply)
        case Verdict.FAILED | Verdict.CRASHED if call.is_charged:
            charge, tries_left = _charge(line, reply)
            backoff = _backoff(*charge.values())
            # Another try that would end after the window is none: the line's own error says more than "expired".
            ends_at = timezone.now() + backoff + timedelta(seconds=call.duration_s)
            if tries_left <= 0 or ends_at >= line.batch.expires_at:
                return _finished(LineState.FAILED, reply) | charge
            return _again(backoff) | charge | _suspicion(line, call)
        case Verdict.FAILED | Verdict.CRASHED:
            return _again(_backoff(1)) | _suspicion(line, call)
        case Verdict.BUSY:
            return _again(_jittered(busy_wait_s(reply, busy_s)))
    return {"state": LineState.PENDING}


def busy_wait_s(reply: Reply, busy_s: float) -> float:
    """How long to leave a server alone that has been busy for `busy_s`: as long again, or as it asks, within bounds."""
    return min(MOST_BACKOFF_S, max(LEAST_BACKOFF_S, busy_s, reply.retry_after_s))


def _suspicion(line: Line, call: Call[Line]) -> dict[str, bool]:
    return {"needs_trial": True, "needs_alone": line.needs_alone or fault_attribution.is_breakdown(call)}


def _charge(line: Line, reply: Reply) -> tuple[dict[str, int], int]:
    """The counter that a failure of the line's own moves, and how many tries are left then."""
    if reply.verdict is Verdict.CRASHED:
        crashes = line.backend_crashes + 1
        return {"backend_crashes": crashes}, MOST_BACKEND_CRASHES - crashes
    attempts = line.attempts + 1
    if reply.code == "request_timeout":
        # It took the time of many lines: one more try is all it gets.
        attempts = max(attempts, settings.LINE_MAX_ATTEMPTS - 1)
    return {"attempts": attempts}, settings.LINE_MAX_ATTEMPTS - attempts


def _backoff(times: int) -> timedelta:
    """Doubles with each time."""
    return _jittered(min(MOST_BACKOFF_S, LEAST_BACKOFF_S * 2 ** (times - 1)))


def _jittered(seconds: float) -> timedelta:
    """So that lines do not come back in step; never sooner."""
    return timedelta(seconds=seconds * random.uniform(1.0, 1.5))


def _again(backoff: timedelta) -> dict[str, Any]:
    return {"state": LineState.PENDING, "not_before": from_now(backoff)}


def _finished(state: LineState, reply: Reply) -> dict[str, Any]:
    return {
        "state": state,
        "http_status": reply.status,
        "response": reply.body,
        "error_code": reply.code,
        "error_message": reply.message,
    }


def is_elsewhere(backend: Backend | None, model: str) -> bool:
    """Another backend that is live has this model."""
    own = backend.pk if backend is not None else None
    return any(each.has_model(model) for each in Backend.objects.all().live() if each.pk != own)
