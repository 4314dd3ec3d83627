"""The loop that keeps one backend busy: claim lines, send them, store the answers.

One Drive runs in one process under one lease. Its thread alone touches the database and never waits for a model: calls
run in threads of their own (backends.calls), and once a second the loop renews its lease and looks for cancelled or
expired batches, a pause, and the order to stop. Several drives may share a backend: its window of calls in flight, the
model that is loaded and its pause are on its row.

    claimable lines ── claim ──> ready ── send ──> in flight ── wait ──> answered ── store ──> rows
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db.models.functions import Now

from batches import answers, backends, claims, gate, holds, leases, lifecycle, ordering
from batches.backends.base import Exchange, Reply, Verdict, refused
from batches.backends.calls import Call
from batches.inputs import UNREADABLE, InputFiles
from batches.models import Backend, Batch, Lease, Line
from batches.pace import Pace
from batches.readiness import SUSPECT, Readiness
from batches.share import Share
from batchserver import failpoints
from batchserver.database import relaxed_commits, retrying

logger = logging.getLogger(__name__)

PURPOSE = "drive"
LOOK_EVERY_S = 1.0
# A person who comes to the backend is not to wait for a whole look.
LOOK_AT_GATE_EVERY_S = 0.25
# A drive before a closed gate goes away after so long; the tick wakes another once it is open.
LINGERS_S = 30.0
# Answers that come fast are stored in groups: as many as come in ten times the time that storing takes, within bounds.
# So storing costs a tenth of the time at most, and a crash asks again what came in some milliseconds.
GROUP_OVER_COST = 10
MOST_GROUP_S = 0.2
GROUP_LINES = 64


class LeaseLost(Exception):
    """We were declared dead: whatever we hold belongs to others now."""


class Drive:
    """Sends the claimable lines of all batches to `backend` until none is left, it pauses, or `should_stop()`.

    `wake_control` is told each batch for which the control worker may have a step to do now.
    """

    def __init__(
        self, backend: Backend, *, should_stop: Callable[[], bool], wake_control: Callable[[str], None]
    ) -> None:
        self.backend = backend
        self.kind = backends.kind_named(backend.kind)
        self.should_stop = should_stop
        self.wake_control = wake_control
        self.turn: ordering.Turn | None = None
        self.ready: deque[Line] = deque()
        self.answered: list[Call] = []
        self.bad_news: list[Call] = []  # those of the answered that may speak for other lines too
        self.inputs = InputFiles()
        self.readiness = Readiness(
            backend, self.kind, ask=self._ask, may_ask=self._may_send, before_pause=self._end_turn
        )
        self.paces: defaultdict[str, Pace] = defaultdict(Pace)  # by model
        self.claim_size = 1
        self.model = ""  # of the line that was sent last
        self.model_since = float("-inf")  # no other was sent since then
        self.busy_since: float | None = None
        self.busy_until = float("-inf")
        self.gate_closed = ""  # why nothing is sent, as `gate` says it
        self.gate_closed_at = 0.0
        self.is_preparing = False  # questions are asked that belong together
        self.stops_at: float | None = None
        self.renewed_at = self.group_ends_at = time.monotonic()
        self.looked_at = self.looked_at_gate = self.renewed_at - LOOK_EVERY_S

    def run(self) -> None:
        with relaxed_commits():
            self.lease = leases.acquire(PURPOSE, backend=self.backend)
            self.calls = backends.open_calls(self.backend.kind)
            try:
                self.share = retrying(Share, self.backend, self.lease, self.calls, most=self.kind.most_in_flight)
                self._loop()
            except LeaseLost:
                logger.warning("lease %s was lost; dropping what was in flight", self.lease.pk)
            finally:
                self.calls.close()
                self.inputs.close()
                retrying(leases.release, self.lease)

    def _loop(self) -> None:
        while True:
            self._look_around()
            self._claim()
            self._send()
            # The next lines are at hand before an answer comes: the backend does not wait for a claim.
            self._claim()
            if self._is_done():
                break
            for call in self.calls.wait(self._patience_s()):
                self._note(call)
            if not self._has_bad_news():
                # The backend gets its next call before the database gets this one's answer.
                self._send()
            if self._group_is_due():
                self._store()
        retrying(self._close_finished_batches)

    def _is_done(self) -> bool:
        if self.calls.in_flight or self.answered:
            return False
        if self.paused or self.stops_at is not None:
            return True
        if self.gate_closed:
            return time.monotonic() > self.gate_closed_at + LINGERS_S
        return not self.ready and not self.readiness.to_retry and not self.share.stands_aside

    def _patience_s(self) -> float:
        until = min(self.looked_at + LOOK_EVERY_S, self.looked_at_gate + LOOK_AT_GATE_EVERY_S)
        if self.answered:
            until = min(until, self.group_ends_at)
        return max(0.0, until - time.monotonic())

    # Looking around

    @property
    def paused(self) -> bool:
        return self.backend.is_paused

    def _look_around(self) -> None:
        now = time.monotonic()
        if now >= self.looked_at + LOOK_EVERY_S:
            retrying(self._look)
        if now >= self.looked_at_gate + LOOK_AT_GATE_EVERY_S:
            retrying(self._look_at_gate)

    def _look(self) -> None:
        self.looked_at = time.monotonic()
        if self.looked_at >= self.renewed_at + leases.RENEW_EVERY_S:
            if not leases.renew(self.lease):
                raise LeaseLost
            self.renewed_at = self.looked_at
        self.backend.refresh_from_db()
        self.readiness.to_retry = list(self.backend.paused_models.all().due())
        self._close_finished_batches()
        self._drop_stopped_batches()
        self._share_backend()
        self._choose_turn()
        if self.should_stop():
            self._stop()

    def _look_at_gate(self) -> None:
        self.looked_at_gate = time.monotonic()
        was_closed, self.gate_closed = self.gate_closed, gate.closed_reason(self.backend)
        if not self.gate_closed:
            return
        if not was_closed:
            self.gate_closed_at = self.looked_at_gate
            self._hand_back()
        if holds.person_is_at(self.backend):
            # Theirs may be what brings the server down, and it is the next that is served.
            for call in self.calls.in_flight:
                call.was_shared = True
            for call in self.calls.waiting:
                self.calls.cut(call)
            self.backend.now_has_loaded("")  # theirs may have taken the place of ours

    def _close_finished_batches(self) -> None:
        lifecycle.close_finished(self.wake_control)

    def _drop_stopped_batches(self) -> None:
        """Cut the calls of batches that were cancelled or ran out of time; `output` settles their lines. Of those that
        a person paused, what is in flight may finish."""
        in_flight = [call for call in self.calls.in_flight if call.key is not None]  # not a question of ours
        held = {line.batch_id for line in [*self.ready, *(call.key for call in in_flight)]}
        running = dict(Batch.objects.all().in_progress().filter(pk__in=held).values_list("pk", "paused_at"))
        paused = [line for line in self.ready if running.get(line.batch_id) is not None]
        claims.hand_back(self.lease, paused)
        self.ready = deque(line for line in self.ready if line.batch_id in running and line not in paused)
        for call in in_flight:
            if call.key.batch_id not in running:
                self.calls.cut(call)

    def _share_backend(self) -> None:
        is_idle = not self.calls.in_flight and not self.answered
        if is_idle and not self.ready and not self.is_preparing:
            self.share.give_backend_back()
        self.share.look(is_idle=is_idle)
        if self.share.stands_aside:
            self._hand_back()

    def _choose_turn(self) -> None:
        lines = [*(call.key for call in self.calls.in_flight if call.key is not None), *self.ready]
        stayed_s = time.monotonic() - self.model_since
        turn = ordering.next_turn(self.backend, self.turn, at_work=lines[-1].model if lines else "", stayed_s=stayed_s)
        if turn is not None and self.ready and ordering.yields(self.ready[-1].part, turn):
            self._hand_back()
        if turn is not None and self.turn is not None and turn.part.pk != self.turn.part.pk:
            self.claim_size = 1  # these may take longer
            if turn.part.model != self.turn.part.model:
                self.share.window.forget()
        self.turn = turn

    def _stop(self) -> None:
        """Send nothing more; what is in flight has SHUTDOWN_GRACE_S to finish."""
        self._hand_back()
        if self.stops_at is None:
            self.stops_at = time.monotonic() + settings.SHUTDOWN_GRACE_S
        if time.monotonic() >= self.stops_at:
            for call in self.calls.in_flight:
                self.calls.cut(call)

    # Claim

    def _claim(self) -> None:
        size = max(self.claim_size, self.share.room)
        if not self._may_send() or len(self.ready) * 2 > size:
            return
        if self.turn is None and not self.ready:
            retrying(self._choose_turn)
        # Lines of another model wait until the last one of this is on its way, in case that there will be more of them.
        while self.turn is not None and not (self.ready and self.ready[-1].model != self.turn.part.model):
            if self.turn.is_suspicious and (self.ready or self.calls.in_flight):
                return  # what is claimed beside it would be lost with it
            if lines := retrying(claims.claim, self.lease, self.turn, size):
                self.ready.extend(lines)
                return
            ended, self.turn = self.turn, None
            retrying(self._choose_turn)
            if self.turn is not None and self.turn.part.pk == ended.part.pk:
                return  # its lines have just been taken by another drive, or its batch stopped: the next look knows

    def _end_turn(self) -> None:
        self._hand_back()
        self.turn = None

    def _hand_back(self) -> None:
        if self.ready:
            retrying(claims.hand_back, self.lease, list(self.ready))
            self.ready.clear()

    # Send

    def _may_send(self) -> bool:
        return not (self.paused or self.gate_closed or self.share.stands_aside or self.stops_at is not None)

    def _has_room(self) -> bool:
        if not self._may_send() or len(self.calls.in_flight) >= self.share.room:
            return False
        if not self.calls.in_flight and time.monotonic() < self.busy_until:
            return False  # it is busy with others, and would refuse one line after the other
        return not any(call.key is not None and call.key.needs_alone for call in self.calls.in_flight)

    def _send(self) -> None:
        while self._has_room() and (self.readiness.to_retry or self.ready):
            if not self._is_prepared():
                if not self._prepare():
                    return
                continue
            if not self.ready[0].needs_alone:
                retrying(self.share.give_backend_back)
            line = self.ready.popleft()
            endpoint = line.batch.endpoint
            try:
                body = retrying(self.inputs.body, line)
                problem = self.kind.unsupported(endpoint, body)
            except UNREADABLE as error:
                # Validation read this very line: the file was damaged since.
                logger.error("%s: the input file cannot be read: %s", line.batch_id, type(error).__name__)
                message = "The input file cannot be read any more."
                self._answer_unsent(line, Reply(Verdict.REFUSED, code="input_unreadable", message=message))
                continue
            except OSError as error:
                logger.error("%s: the input file cannot be read now: %s", line.batch_id, error.strerror)
                self.inputs.reopen(line)
                self._answer_unsent(line, Reply(Verdict.BUSY))
                self.busy_until = time.monotonic() + claims.LEAST_BACKOFF_S
                continue
            if problem:
                self._answer_unsent(line, refused("unsupported_parameter", problem))
                continue
            if known := retrying(answers.recall, line):
                self._answer_unsent(line, Reply(Verdict.ANSWERED, 200, known))
                continue
            if line.model != self.model:
                self.model, self.model_since = line.model, time.monotonic()
            sent = self.kind.prepare(endpoint, body, line.model)
            failpoints.reach("before_send")
            deadline_s = self.paces[line.model].deadline_s(sent, is_retry=line.attempts > 0)
            self.calls.submit(Call(line, endpoint, sent, deadline_s))

    def _is_prepared(self) -> bool:
        """The first ready line may be sent now, and there is nothing else to do before."""
        if self.readiness.to_retry or not self.ready or not self.readiness.is_ready_for(self.ready[0]):
            return False
        is_alone = self.share.has_backend_alone and not self.calls.in_flight
        return is_alone or not self.ready[0].needs_alone

    def _prepare(self) -> bool:
        """Do what the first ready line, or a paused model, needs now. False: something has to finish first.

        A question may take as long as a line, and change what is ready: answers are stored before it, and all is looked
        at again after it.
        """
        if self.answered:
            self._store()
            return True
        if self.calls.in_flight:
            return False
        if not retrying(self.share.take_backend_alone):
            return False
        self.is_preparing = True
        if self.readiness.to_retry:
            self.readiness.retry(self.readiness.to_retry.pop())
        elif not self.readiness.is_ready_for(self.ready[0]):
            self.readiness.make_ready_for(self.ready[0])
        self.is_preparing = False
        return True

    def _answer_unsent(self, line: Line, reply: Reply) -> None:
        self.answered.append(Call(line, line.batch.endpoint, {}, 0.0, reply=reply))

    def _ask(
        self, endpoint: str, body: dict[str, Any], timeout_s: float, question: Callable[[Exchange], Any] | None = None
    ) -> Call:
        """A request of our own, or what `question` asks, replied to; CUT if we are to stop first."""
        asked = Call(None, endpoint, body, timeout_s, question)
        self.calls.submit(asked)
        while asked in self.calls.in_flight:
            for call in self.calls.wait(LOOK_EVERY_S):
                if call is not asked:
                    self._note(call)
            self._look_around()
        return asked

    # Record

    def _note(self, call: Call) -> None:
        self.answered.append(call)
        self.readiness.doubt(call.key).note(call)
        if self.readiness.is_bad_news(call):
            self.bad_news.append(call)
        self.share.note(call)
        if call.verdict is Verdict.ANSWERED:
            self.paces[call.key.model].note(call)
            self.busy_since = None
        elif call.verdict is Verdict.BUSY and call.reply is not None:
            now = time.monotonic()
            self.busy_since = self.busy_since or now
            self.busy_until = now + claims.busy_wait_s(call.reply, now - self.busy_since)

    def _group_is_due(self) -> bool:
        return bool(self.answered) and (
            len(self.answered) >= GROUP_LINES
            or time.monotonic() >= self.group_ends_at
            or not self.calls.in_flight
            or self._has_bad_news()
        )

    def _has_bad_news(self) -> bool:
        return any(map(self.readiness.is_bad_news, self.bad_news))

    def _store(self) -> None:
        group, self.answered, noted, self.bad_news = self.answered, [], self.bad_news, []
        bad_news = list(filter(self.readiness.is_bad_news, noted))
        if bad_news:
            # It may settle lines that are claimed already, or pause them.
            self._hand_back()
        self._record([call for call in group if call.verdict not in SUSPECT])
        for call in bad_news:
            if self.readiness.judge(call):
                self._record([call])

    def _record(self, group: list[Call]) -> None:
        started = time.monotonic()
        failpoints.reach("after_answer")
        busy_s = started - self.busy_since if self.busy_since is not None else 0.0
        for batch_id in retrying(claims.store, self.lease, group, busy_s=busy_s):
            retrying(self.wake_control, batch_id)
        failpoints.reach("after_store")
        stored = time.monotonic()
        self.group_ends_at = stored + min(MOST_GROUP_S, GROUP_OVER_COST * (stored - started))
        # Fast answers come in groups, and are claimed in groups as large.
        self.claim_size = min(GROUP_LINES, max(1, len(group)))


def drives_running() -> int:
    return Lease.objects.filter(purpose=PURPOSE, expires_at__gt=Now()).count()
