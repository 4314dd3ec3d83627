"""Claim, send, record: the loop that keeps one backend busy.

One Drive runs in one process under one lease. Its thread alone touches the database and never waits for a model: calls
run in threads of their own (backends.calls), and once a second the loop renews its lease and looks for cancelled or
expired batches, a pause, and the order to stop.

    pending ── claim ──> running (ready, then in flight) ── store ──> succeeded | failed | pending again

The UPDATE that stores a result names the lease that claimed the line. If it changes no row, the lease was declared dead
meanwhile and somebody else has the line: the result is dropped.
"""

import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from batches import backends, jsonl, leases, lifecycle, ordering
from batches.backends.base import Reply, Verdict
from batches.backends.calls import Call
from batches.models import FINAL, Backend, Batch, Lease, Line, LineState, Status
from batchserver.database import from_now, relaxed_commits, retrying
from files_api.models import File

logger = logging.getLogger(__name__)

PURPOSE = "drive"
WINDOW = 1
LOOK_EVERY_S = 1.0
# A result is committed by itself while answers take longer than this, else with those that came in the meantime.
GROUP_S = 0.2
GROUP_LINES = 64
MOST_BACKEND_CRASHES = 3
LEAST_BACKOFF_S, MOST_BACKOFF_S = 1.0, 60.0


class LeaseLost(Exception):
    """We were declared dead: whatever we hold belongs to others now."""


class Drive:
    """Sends the claimable lines of all batches to `backend` until none is left, it pauses, or `should_stop()`.

    `on_closed` is told the ids of batches that have nothing left to send.
    """

    def __init__(
        self, backend: Backend, *, should_stop: Callable[[], bool], on_closed: Callable[[list[str]], None]
    ) -> None:
        self.backend = backend
        self.kind = backends.kind_named(backend.kind)
        self.should_stop = should_stop
        self.on_closed = on_closed
        self.ready: deque[Line] = deque()
        self.answered: list[Call] = []
        self.inputs = InputFiles()
        self.claim_size = WINDOW
        self.paused = False
        self.stops_at: float | None = None
        self.looked_at = self.renewed_at = self.stored_at = time.monotonic()

    def run(self) -> None:
        with relaxed_commits():
            self.lease = leases.acquire(PURPOSE)
            self.calls = backends.open_calls(self.backend.kind, WINDOW)
            try:
                self._loop()
            except LeaseLost:
                logger.warning("lease %s was lost; dropping what was in flight", self.lease.pk)
            finally:
                self.calls.close()
                self.inputs.close()
                leases.release(self.lease)

    def _loop(self) -> None:
        while True:
            if time.monotonic() >= self.looked_at + LOOK_EVERY_S:
                self._look()
            self._claim()
            self._send()
            if not self.calls.in_flight and not self.answered:
                break
            self.answered += self.calls.wait(self._patience_s())
            # The backend gets its next call before the database gets this one's answer.
            self._send()
            if self._group_is_due():
                self._store()
        self._close_finished_batches()

    def _patience_s(self) -> float:
        next_look = self.looked_at + LOOK_EVERY_S
        next_store = self.stored_at + GROUP_S if self.answered else next_look
        return max(0.0, min(next_look, next_store) - time.monotonic())

    # Looking around

    def _look(self) -> None:
        self.looked_at = time.monotonic()
        if self.looked_at >= self.renewed_at + leases.RENEW_EVERY_S:
            if not retrying(lambda: leases.renew(self.lease)):
                raise LeaseLost
            self.renewed_at = time.monotonic()
        self.paused = Backend.objects.filter(pk=self.backend.pk, paused_at__isnull=False).exists()
        self._close_finished_batches()
        self._drop_stopped_batches()
        if self.should_stop():
            self._stop()

    def _close_finished_batches(self) -> None:
        if closed := lifecycle.close_finished():
            self.on_closed(closed)

    def _drop_stopped_batches(self) -> None:
        """Cut the calls of batches that were cancelled or ran out of time; `output` settles their lines."""
        held = {line.batch_id for line in [*self.ready, *(call.key for call in self.calls.in_flight)]}
        running = set(Batch.objects.all().in_progress().filter(pk__in=held).values_list("pk", flat=True))
        if held <= running:
            return
        self.ready = deque(line for line in self.ready if line.batch_id in running)
        for call in self.calls.in_flight:
            if call.key.batch_id not in running:
                self.calls.cut(call)

    def _stop(self) -> None:
        """Send nothing more; what is in flight has SHUTDOWN_GRACE_S to finish. `run` hands back the rest."""
        self.ready.clear()
        if self.stops_at is None:
            self.stops_at = time.monotonic() + settings.SHUTDOWN_GRACE_S
        if time.monotonic() >= self.stops_at:
            for call in self.calls.in_flight:
                self.calls.cut(call)

    # Claim

    def _claim(self) -> None:
        if self.paused or self.stops_at is not None or len(self.ready) * 2 > self.claim_size:
            return
        lines = retrying(lambda: claim(self.lease, self.claim_size))
        self.ready.extend(lines)

    # Send

    def _send(self) -> None:
        while self.ready and len(self.calls.in_flight) < WINDOW and not self.paused:
            line = self.ready.popleft()
            try:
                body = self.kind.prepare(line.batch.endpoint, self.inputs.body(line), line.model)
            except (OSError, ValueError, LookupError) as error:
                # Validation read this very line: the file was damaged since.
                logger.error("%s: the input file cannot be read: %s", line.batch_id, type(error).__name__)
                reply = Reply(
                    Verdict.REFUSED, code="input_unreadable", message="The input file cannot be read any more."
                )
                self.answered.append(Call(line, line.batch.endpoint, {}, 0.0, reply=reply))
                continue
            self.calls.submit(Call(line, line.batch.endpoint, body, settings.LINE_TIMEOUT_S))

    # Record

    def _group_is_due(self) -> bool:
        return bool(self.answered) and (
            len(self.answered) >= GROUP_LINES
            or time.monotonic() >= self.stored_at + GROUP_S
            or not self.calls.in_flight
        )

    def _store(self) -> None:
        group, self.answered = self.answered, []
        retrying(lambda: store(self.lease, group))
        self.stored_at = time.monotonic()
        # Fast answers come in groups, and are claimed in groups as large.
        self.claim_size = min(GROUP_LINES, max(WINDOW, len(group)))
        for call in group:
            if call.reply is not None and call.reply.verdict in (Verdict.UNREACHABLE, Verdict.MISCONFIGURED):
                self._pause(call.reply)

    def _pause(self, reply: Reply) -> None:
        self.paused = True
        reason = reply.message if reply.verdict is Verdict.MISCONFIGURED else backends.unreachable_hint()
        self.backend.pause(reason)
        logger.warning("paused: %s", reason)


def claim(lease: Lease, most: int) -> list[Line]:
    """Up to `most` lines for `lease`, whose turn it is; none if the lease is not alive any more."""
    with transaction.atomic():
        # Postgres passes over lines that another claim has locked; on SQLite the transaction holds the only write lock.
        ids = list(
            ordering.next_lines().select_for_update(skip_locked=True, of=("self",)).values_list("pk", flat=True)[:most]
        )
        if not ids or not Lease.objects.filter(pk=lease.pk, expires_at__gt=Now()).exists():
            return []
        Line.objects.filter(pk__in=ids, state=LineState.PENDING).update(state=LineState.RUNNING, lease=lease)
    # Read again: only what we really got.
    return list(Line.objects.all().held_by(lease).filter(pk__in=ids).select_related("batch").order_by("number"))


def store(lease: Lease, calls: list[Call]) -> None:
    """Record what became of the calls, in one transaction. Results of lines that `lease` lost are dropped."""
    tallies: dict[str, Counter[str]] = {}
    with transaction.atomic():
        for call in calls:
            line, reply = call.key, call.reply
            if reply is None or reply.verdict is Verdict.CUT:
                continue  # the line was settled by whoever stopped the batch, or goes back with the lease
            values = outcome(line, reply)
            if values["state"] is not LineState.PENDING:
                values |= {"finished_at": timezone.now(), "duration_ms": int(call.duration_s * 1000)}
            if not Line.objects.all().held_by(lease).filter(pk=line.pk).update(lease=None, **values):
                logger.warning("%s line %s: the result came too late and was dropped", line.batch_id, line.number)
                continue
            tally = tallies.setdefault(line.batch_id, Counter())
            if values["state"] is LineState.SUCCEEDED:
                tally["completed"] += 1
                tally.update(vars(reply.usage))
            elif values["state"] is LineState.FAILED:
                tally["failed"] += 1
            if reply.verdict is Verdict.MODEL_MISSING:
                tally["failed"] += fail_model(line, reply)
        for batch_id, tally in tallies.items():
            changes = {name: F(name) + count for name, count in tally.items() if count}
            if changes:
                Batch.objects.filter(pk=batch_id).exclude(status__in=FINAL).update(**changes)


def outcome(line: Line, reply: Reply) -> dict[str, Any]:
    """The new values of a line's row: finished, or pending again with what was charged."""
    match reply.verdict:
        case Verdict.ANSWERED:
            return _finished(LineState.SUCCEEDED, reply) | vars(reply.usage)
        case Verdict.REFUSED | Verdict.MODEL_MISSING:
            return _finished(LineState.FAILED, reply)
        case Verdict.FAILED:
            attempts = line.attempts + 1
            if attempts >= settings.LINE_MAX_ATTEMPTS:
                return _finished(LineState.FAILED, reply) | {"attempts": attempts}
            return _again(attempts) | {"attempts": attempts}
        case Verdict.CRASHED:
            crashes = line.backend_crashes + 1
            if crashes >= MOST_BACKEND_CRASHES:
                return _finished(LineState.FAILED, reply) | {"backend_crashes": crashes}
            return _again(crashes) | {"backend_crashes": crashes}
        case Verdict.BUSY:
            return _again(3)
    return {"state": LineState.PENDING}


def _finished(state: LineState, reply: Reply) -> dict[str, Any]:
    return {
        "state": state,
        "http_status": reply.status,
        "response": reply.body,
        "error_code": reply.code,
        "error_message": reply.message,
    }


def _again(times: int) -> dict[str, Any]:
    """Pending, not before a while that doubles with each time; jittered, so that lines do not come back in step."""
    backoff_s = min(MOST_BACKOFF_S, LEAST_BACKOFF_S * 2 ** (times - 1)) * random.uniform(0.75, 1.25)
    return {"state": LineState.PENDING, "not_before": from_now(timedelta(seconds=backoff_s))}


def fail_model(line: Line, reply: Reply) -> int:
    """Fail the pending lines of this line's batch that want the same missing model; how many."""
    waiting = Line.objects.filter(batch=line.batch_id, model=line.model, state=LineState.PENDING)
    return waiting.update(finished_at=timezone.now(), **_finished(LineState.FAILED, reply))


class InputFiles:
    """The bodies of claimed lines, read from the input files at the lines' offsets. A few files stay open."""

    MOST_OPEN = 8

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}

    def body(self, line: Line) -> dict[str, Any]:
        """Raises OSError, ValueError or LookupError if the file is gone or is not what was validated."""
        if line.batch_id not in self._open:
            while len(self._open) >= self.MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            file = File.objects.all().held(line.batch.input_file_id, line.batch_id)
            if file is None:
                raise FileNotFoundError(line.batch.input_file_id)
            self._open[line.batch_id] = file.content.open("rb")
        stream = self._open[line.batch_id]
        stream.seek(line.offset)
        return jsonl.parse_body(stream.read(line.length))

    def close(self) -> None:
        for stream in self._open.values():
            stream.close()


def has_work() -> bool:
    """A drive would find a line to send."""
    return Line.objects.all().claimable().filter(batch__status=Status.IN_PROGRESS).exists()


def is_idle() -> bool:
    """No drive is running."""
    return not Lease.objects.filter(purpose=PURPOSE, expires_at__gt=Now()).exists()
