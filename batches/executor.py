"""The loop that keeps one backend busy: claim lines, send them, store the answers.

One Drive runs in one process under one lease. Its thread alone touches the database and never waits for a model: calls
run in threads of their own (backends.calls), and once a second the loop renews its lease and looks for cancelled or
expired batches, a pause, and the order to stop.

    claimable lines ── claim ──> ready ── send ──> in flight ── wait ──> answered ── store ──> rows
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from django.conf import settings
from django.db.models.functions import Now

from batches import backends, claims, leases, lifecycle
from batches.backends.base import Reply, Verdict, refused
from batches.backends.calls import Call
from batches.inputs import UNREADABLE, InputFiles
from batches.models import Backend, Batch, Lease, Line, Status
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
BAD_NEWS = (Verdict.UNREACHABLE, Verdict.MISCONFIGURED, Verdict.MODEL_MISSING)
# Answers that do not wait for a trial: whatever it shows, they stay as they are.
BEYOND_DOUBT = (Verdict.ANSWERED, Verdict.REFUSED, Verdict.MODEL_MISSING, Verdict.BUSY, Verdict.CUT)
# A backend that refuses a trial is in order too; what the next line has to say is its own affair.
PASSES = (Verdict.ANSWERED, Verdict.REFUSED, Verdict.MODEL_MISSING)
# So many lines that fail in a row are the backend's fault until a trial request shows that it is in order.
SUSPICIOUS_LINES = 5


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
        self.failing: list[Call] = []  # without an answer in between
        self.busy = 0  # times in a row
        self.paused = False
        self.stops_at: float | None = None
        self.looked_at = self.renewed_at = self.group_ends_at = time.monotonic()

    def run(self) -> None:
        with relaxed_commits():
            self.lease = leases.acquire(PURPOSE)
            self.calls = backends.open_calls(self.backend.kind, WINDOW)
            try:
                if self._passes_pending_trial():
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
            if not self.calls.in_flight and not self.answered:
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
        self.ready.extend(retrying(claims.claim, self.lease, self.claim_size))

    def _hand_back(self) -> None:
        if self.ready:
            claims.hand_back(self.lease, list(self.ready))
            self.ready.clear()

    # Send

    def _send(self) -> None:
        while self.ready and len(self.calls.in_flight) < WINDOW and not self.paused:
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
            body = self.kind.prepare(endpoint, body, line.model)
            self.calls.submit(Call(line, endpoint, body, settings.LINE_TIMEOUT_S))

    def _answer_unsent(self, line: Line, reply: Reply) -> None:
        self.answered.append(Call(line, line.batch.endpoint, {}, 0.0, reply=reply))

    # Record

    def _note(self, call: Call) -> None:
        self.answered.append(call)
        match _verdict(call):
            case Verdict.ANSWERED | Verdict.REFUSED:
                self.failing.clear()
                self.busy = 0
            case Verdict.FAILED | Verdict.CRASHED:
                self.failing.append(call)
            case Verdict.BUSY:
                self.busy += 1

    def _group_is_due(self) -> bool:
        return bool(self.answered) and (
            len(self.answered) >= GROUP_LINES
            or time.monotonic() >= self.group_ends_at
            or not self.calls.in_flight
            or self._has_bad_news()
        )

    def _has_bad_news(self) -> bool:
        return self._suspect() is not None or any(_verdict(call) in BAD_NEWS for call in self.answered)

    def _suspect(self) -> Call | None:
        """A call whose answer puts the backend itself in doubt: it looks like a matter of configuration, it is one of
        many failures in a row, or it would end its line."""
        if self.failing:
            last = self.failing[-1]
            many = len({call.key.pk for call in self.failing}) >= SUSPICIOUS_LINES
            ends = last in self.answered and last.reply is not None and claims.is_last_try(last.key, last.reply)
            if many or ends:
                return last
        return next((call for call in self.answered if _verdict(call) is Verdict.MISCONFIGURED), None)

    def _store(self) -> None:
        if self._has_bad_news():
            # It may settle lines that are claimed already, or pause them.
            retrying(self._hand_back)
        if suspect := self._suspect():
            self._settle_doubt(suspect)
        group, self.answered = self.answered, []
        self._record(group)
        if any(_verdict(call) is Verdict.UNREACHABLE for call in group):
            self._pause(backends.unreachable_hint())

    def _record(self, group: list[Call]) -> None:
        started = time.monotonic()
        retrying(claims.store, self.lease, group, busy=self.busy)
        stored = time.monotonic()
        self.group_ends_at = stored + min(MOST_GROUP_S, GROUP_OVER_COST * (stored - started))
        # Fast answers come in groups, and are claimed in groups as large.
        self.claim_size = min(GROUP_LINES, max(WINDOW, len(group)))

    def _pause(self, reason: str) -> None:
        self.paused = True
        retrying(self.backend.pause, reason)
        logger.warning("paused: %s", reason)

    # Doubt

    def _settle_doubt(self, suspect: Call) -> None:
        """Find out by a trial whose fault it is: the lines pay for their own, and nobody for the backend's."""
        # A trial may take as long as a line: what needs none is stored before it.
        self._record([call for call in self.answered if _verdict(call) in BEYOND_DOUBT])
        self.answered = [call for call in self.answered if _verdict(call) not in BEYOND_DOUBT]
        trial = self._try(suspect.endpoint, suspect.body["model"])
        if trial.verdict in PASSES:
            # The backend is in order: what looked like its configuration is this line's affair.
            self._judge_again({Verdict.MISCONFIGURED: Verdict.REFUSED})
        else:
            charged = [(call.key.pk, _verdict(call)) for call in self.failing if call not in self.answered]
            again = Verdict.BUSY
            self._judge_again({Verdict.MISCONFIGURED: again, Verdict.FAILED: again, Verdict.CRASHED: again})
            self._record(self.answered)
            self.answered = []
            retrying(claims.refund, charged)
            self._pause_after(trial, suspect.endpoint, suspect.body["model"])
        self.failing.clear()

    def _judge_again(self, changes: dict[Verdict, Verdict]) -> None:
        for call in self.answered:
            if call.reply is not None and call.reply.verdict in changes:
                call.reply = replace(call.reply, verdict=changes[call.reply.verdict])

    def _try(self, endpoint: str, model: str) -> Reply:
        """The reply to a trial request; CUT if we are to stop first."""
        trial = Call(None, endpoint, self.kind.trial(endpoint, model), settings.LINE_TIMEOUT_S)
        self.calls.submit(trial)
        while trial in self.calls.in_flight:
            for call in self.calls.wait(LOOK_EVERY_S):
                if call is not trial:
                    self._note(call)
            retrying(self._look)
        return trial.reply or Reply(Verdict.CUT)

    def _pause_after(self, trial: Reply, endpoint: str, model: str) -> None:
        """Pause as a trial that went wrong demands; not at all if it was cut because we are to stop."""
        if trial.verdict is Verdict.CUT:
            return
        if trial.verdict is Verdict.UNREACHABLE:
            self._pause(backends.unreachable_hint())
            return
        what = f"HTTP {trial.status}" if trial.status else trial.code
        if trial.verdict is Verdict.MISCONFIGURED:
            reason = trial.message
        elif trial.verdict is Verdict.BUSY:
            reason = f"{self.kind.title} is too busy to answer for {model} ({what})."
        else:
            reason = f"{self.kind.title} fails every request of {model}, the plainest too ({what}). See its log."
        self.paused = True
        retrying(self.backend.pause_after_trial, reason, endpoint, model)
        logger.warning("paused: %s", reason)

    def _passes_pending_trial(self) -> bool:
        """False if the trial that the backend failed last time is still of interest and fails again."""
        endpoint, model = self.backend.trial_endpoint, self.backend.trial_model
        if not model:
            return True
        if retrying(claims.is_wanted, endpoint, model):
            trial = self._try(endpoint, model)
            if trial.verdict not in PASSES:
                self._pause_after(trial, endpoint, model)
                return False
        retrying(self.backend.passed_trial, endpoint, model)
        return True


def _verdict(call: Call) -> Verdict:
    return call.reply.verdict if call.reply is not None else Verdict.CUT


def has_work() -> bool:
    """A drive would find a line to send."""
    return Line.objects.all().claimable().filter(batch__status=Status.IN_PROGRESS).exists()


def drives_running() -> int:
    return Lease.objects.filter(purpose=PURPOSE, expires_at__gt=Now()).count()
