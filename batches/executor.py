"""The loop that keeps one backend busy: claim lines, send them, store the answers.

One Drive runs in one process under one lease. Its thread alone touches the database and never waits for a model: calls
run in threads of their own (backends.calls), and once a second the loop renews its lease and looks for cancelled or
expired batches, a pause, and the order to stop.

    claimable lines ── claim ──> ready ── send ──> in flight ── wait ──> answered ── store ──> rows
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from django.conf import settings
from django.db.models.functions import Now

from batches import answers, backends, claims, leases, lifecycle, pauses
from batches.backends.base import Reply, Verdict, refused
from batches.backends.calls import Call
from batches.doubt import Doubt
from batches.inputs import UNREADABLE, InputFiles
from batches.models import Backend, Batch, Lease, Line, PausedModel
from batches.pace import Pace
from batchserver import failpoints
from batchserver.database import relaxed_commits, retrying

logger = logging.getLogger(__name__)

PURPOSE = "drive"
WINDOW = 1
LOOK_EVERY_S = 1.0
# Answers that come fast are stored in groups: as many as come in ten times the time that storing takes, within bounds.
# So storing costs a tenth of the time at most, and a crash asks again what came in some milliseconds.
GROUP_OVER_COST = 10
MOST_GROUP_S = 0.2
GROUP_LINES = 64
# Answers that speak for other lines too: they are stored before another line is sent.
BAD_NEWS = (Verdict.UNREACHABLE, Verdict.MISCONFIGURED, Verdict.MODEL_MISSING, Verdict.UNLOADABLE)
# What speaks against the backend or the model, unless a trial goes well: then it is the line's own affair, as this.
SUSPECT = {Verdict.MISCONFIGURED: Verdict.REFUSED, Verdict.UNLOADABLE: Verdict.FAILED}
# Replies to a question of ours that let lines be sent: what the next one has to say to a refusal is its own affair.
PASSES = (Verdict.ANSWERED, Verdict.REFUSED, Verdict.MODEL_MISSING)
# A loaded model answers a trial within this time, or the server is stuck.
TRIAL_TIMEOUT_S = 120.0


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
        self.doubts: defaultdict[tuple[str, str], Doubt] = defaultdict(Doubt)  # by endpoint and model
        self.paces: defaultdict[str, Pace] = defaultdict(Pace)  # by model
        self.loaded_model = ""  # as far as this drive knows
        self.to_retry: list[PausedModel] = []
        self.busy_since: float | None = None
        self.paused = False
        self.stops_at: float | None = None
        self.renewed_at = self.group_ends_at = time.monotonic()
        self.looked_at = self.renewed_at - LOOK_EVERY_S

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
                retrying(leases.release, self.lease)

    def _loop(self) -> None:
        while True:
            if time.monotonic() >= self.looked_at + LOOK_EVERY_S:
                retrying(self._look)
            self._claim()
            self._send()
            # The next lines are at hand before an answer comes: the backend does not wait for a claim.
            self._claim()
            if not self.calls.in_flight and not self.answered and not (self.ready and self._has_room()):
                break
            for call in self.calls.wait(self._patience_s()):
                self._note(call)
            if not self._has_bad_news():
                # The backend gets its next call before the database gets this one's answer.
                self._send()
            if self._group_is_due():
                self._store()
        retrying(self._close_finished_batches)

    def _patience_s(self) -> float:
        next_look = self.looked_at + LOOK_EVERY_S
        next_store = self.group_ends_at if self.answered else next_look
        return max(0.0, min(next_look, next_store) - time.monotonic())

    # Looking around

    def _look(self) -> None:
        self.looked_at = time.monotonic()
        if self.looked_at >= self.renewed_at + leases.RENEW_EVERY_S:
            if not leases.renew(self.lease):
                raise LeaseLost
            self.renewed_at = self.looked_at
        self.paused = Backend.objects.filter(pk=self.backend.pk, paused_at__isnull=False).exists()
        self.to_retry = list(self.backend.paused_models.all().due())
        self._close_finished_batches()
        self._drop_stopped_batches()
        if self.should_stop():
            self._stop()

    def _close_finished_batches(self) -> None:
        if closed := lifecycle.close_finished():
            self.on_closed(closed)

    def _drop_stopped_batches(self) -> None:
        """Cut the calls of batches that were cancelled or ran out of time; `output` settles their lines."""
        in_flight = [call for call in self.calls.in_flight if call.key is not None]  # not a trial
        held = {line.batch_id for line in [*self.ready, *(call.key for call in in_flight)]}
        running = set(Batch.objects.all().in_progress().filter(pk__in=held).values_list("pk", flat=True))
        if held <= running:
            return
        self.ready = deque(line for line in self.ready if line.batch_id in running)
        for call in in_flight:
            if call.key.batch_id not in running:
                self.calls.cut(call)

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
        if self.paused or self.stops_at is not None or len(self.ready) * 2 > self.claim_size:
            return
        self.ready.extend(retrying(claims.claim, self.lease, self.backend, self.claim_size))

    def _hand_back(self) -> None:
        if self.ready:
            claims.hand_back(self.lease, list(self.ready))
            self.ready.clear()

    # Send

    def _send(self) -> None:
        while self._has_room() and (self.to_retry or self.ready):
            if self.to_retry or not self._is_ready_for(self.ready[0]):
                # A question may take as long as a line, and change what is ready: answers are stored before it, and
                # all is looked at again after it.
                if self.answered:
                    self._store()
                elif self.to_retry:
                    self._retry(self.to_retry.pop())
                else:
                    self._make_ready_for(self.ready[0])
                continue
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
            if problem:
                self._answer_unsent(line, refused("unsupported_parameter", problem))
                continue
            if known := retrying(answers.recall, line):
                self._answer_unsent(line, Reply(Verdict.ANSWERED, 200, known))
                continue
            sent = self.kind.prepare(endpoint, body, line.model)
            failpoints.reach("before_send")
            deadline_s = self.paces[line.model].deadline_s(sent, is_retry=line.attempts > 0)
            self.calls.submit(Call(line, endpoint, sent, deadline_s))

    def _has_room(self) -> bool:
        return len(self.calls.in_flight) < WINDOW and not self.paused and self.stops_at is None

    def _answer_unsent(self, line: Line, reply: Reply) -> None:
        self.answered.append(Call(line, line.batch.endpoint, {}, 0.0, reply=reply))

    # Record

    def _note(self, call: Call) -> None:
        self.answered.append(call)
        self._doubt(call.key).note(call)
        if call.verdict is Verdict.ANSWERED:
            self.paces[call.key.model].note(call)
            self.busy_since = None
        elif call.verdict is Verdict.BUSY and self.busy_since is None:
            self.busy_since = time.monotonic()

    def _doubt(self, line: Line) -> Doubt:
        return self.doubts[line.batch.endpoint, line.model]

    def _group_is_due(self) -> bool:
        return bool(self.answered) and (
            len(self.answered) >= GROUP_LINES
            or time.monotonic() >= self.group_ends_at
            or not self.calls.in_flight
            or self._has_bad_news()
        )

    def _has_bad_news(self) -> bool:
        return any(self._is_bad_news(call) for call in self.answered)

    def _is_bad_news(self, call: Call) -> bool:
        return call.verdict in BAD_NEWS or self._doubt(call.key).is_grave

    def _store(self) -> None:
        group, self.answered = self.answered, []
        bad_news = [call for call in group if self._is_bad_news(call)]
        if bad_news:
            # It may settle lines that are claimed already, or pause them.
            retrying(self._hand_back)
        self._record([call for call in group if call.verdict not in SUSPECT])
        for call in bad_news:
            self._react(call)

    def _record(self, group: list[Call]) -> None:
        started = time.monotonic()
        failpoints.reach("after_answer")
        busy_s = started - self.busy_since if self.busy_since is not None else 0.0
        retrying(claims.store, self.lease, group, busy_s=busy_s)
        failpoints.reach("after_store")
        stored = time.monotonic()
        self.group_ends_at = stored + min(MOST_GROUP_S, GROUP_OVER_COST * (stored - started))
        # Fast answers come in groups, and are claimed in groups as large.
        self.claim_size = min(GROUP_LINES, max(WINDOW, len(group)))

    def _react(self, call: Call) -> None:
        """Find out what a failure says of the model or the whole backend, and act on it."""
        line: Line = call.key
        endpoint, model = line.batch.endpoint, line.model
        if call.verdict in SUSPECT:
            if self._passes_trial(endpoint, model) and call.reply is not None:
                call.reply, call.is_charged = replace(call.reply, verdict=SUSPECT[call.verdict]), True
            self._record([call])
        elif call.verdict is Verdict.UNREACHABLE and not self.paused:
            self._pause_after(endpoint, model, call)
        elif self._doubt(line).is_grave:
            self._passes_trial(endpoint, model)

    # Questions to the backend

    def _is_ready_for(self, line: Line) -> bool:
        """Its model is loaded, and known to be in order if the line failed before."""
        return line.model == self.loaded_model and (self._doubt(line).is_proven or not line.needs_trial)

    def _make_ready_for(self, line: Line) -> None:
        """Load its model or give it a trial; if that fails, what the line needs is paused and the line handed back."""
        endpoint, model = line.batch.endpoint, line.model
        if model == self.loaded_model:
            self._passes_trial(endpoint, model)
            return
        if loading := self.kind.load(endpoint, model):
            question = self._ask(*loading, timeout_s=settings.MODEL_LOAD_TIMEOUT_S)
            if question.verdict not in PASSES:
                self._pause_after(endpoint, model, question)
                return
        self.loaded_model = model

    def _passes_trial(self, endpoint: str, model: str) -> bool:
        """Whether a request is answered that any server in order answers. If not, what it shows to be out of order
        pauses."""
        timeout_s = TRIAL_TIMEOUT_S if model == self.loaded_model else settings.MODEL_LOAD_TIMEOUT_S
        question = self._ask(endpoint, self.kind.trial(endpoint, model), timeout_s=timeout_s)
        if question.verdict in PASSES:
            self.doubts[endpoint, model].prove()
            self.loaded_model = model
            return True
        self.doubts.pop((endpoint, model), None)  # it is settled
        self._pause_after(endpoint, model, question)
        return False

    def _ask(self, endpoint: str, body: dict[str, Any], *, timeout_s: float) -> Call:
        """A request of our own, replied to; CUT if we are to stop first."""
        question = Call(None, endpoint, body, timeout_s)
        self.calls.submit(question)
        while question in self.calls.in_flight:
            for call in self.calls.wait(LOOK_EVERY_S):
                if call is not question:
                    self._note(call)
            retrying(self._look)
        return question

    def _retry(self, paused: PausedModel) -> None:
        endpoint, model = paused.endpoint, paused.model
        if not retrying(paused.take):
            return  # another drive has just tried
        if not retrying(claims.is_wanted, endpoint, model) or self._passes_trial(endpoint, model):
            retrying(paused.delete)
            self.to_retry.clear()  # the looks during the trial saw it still due

    def _pause_after(self, endpoint: str, model: str, failed: Call) -> None:
        if failed.verdict is Verdict.CUT:
            return  # we are to stop
        retrying(self._hand_back)
        self.loaded_model = ""
        self.to_retry.clear()  # the next look knows what is still due
        retrying(pauses.pause_after, self.backend, endpoint, model, failed)
        self.paused = self.backend.is_paused


def drives_running() -> int:
    return Lease.objects.filter(purpose=PURPOSE, expires_at__gt=Now()).count()
