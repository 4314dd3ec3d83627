"""The loop that keeps one backend busy: claim lines, send them, store the answers.

    claimable lines ── claim ──> line buffer ── send ──> in flight ── wait ──> answer buffer ── store ──> rows

A drive is one run of the dispatcher, in one process under one lease. The drive's thread alone touches the database and
never waits for a model: calls run beside it (backends.calls). A question to the model server (load this
model, give it a trial) is a call like a line's: there is one loop, and nothing in the loop is entered twice.

Each piece of state has one owner:

    admission   whether anything may be sent now
    lines       the line buffer: what is sent next
    readiness   what is known of the models
    shared      our room at the backend, and whether we have it alone
    company     which lines may be in flight together
    answers     the answer buffer: what is not stored yet
    persons     room for persons, and the share of the time that lines have in spite of them
    own_use     which models are used by us
    gap         when nothing may be in flight for a moment
    tallies     what is counted for /metrics and the log
    checks      the periodic checks, which tell the others what has changed around them
"""

import logging
import time
from collections.abc import Callable
from typing import TypeGuard

from django.conf import settings

from batches import backends, leases, lifecycle
from batches.backends.calls import CallPool
from batches.backends.in_flight import Call
from batches.dispatch import claims
from batches.dispatch.admission import Admission
from batches.dispatch.answer_buffer import AnswerBuffer
from batches.dispatch.company import Company, Subject
from batches.dispatch.gap import LASTS_S, Gap
from batches.dispatch.line_buffer import LineBuffer
from batches.dispatch.line_calls import LineCalls
from batches.dispatch.own_use import OwnUse
from batches.dispatch.periodic_checks import PeriodicChecks
from batches.dispatch.persons_first import PersonsFirst
from batches.dispatch.questions import Purpose, Question
from batches.dispatch.readiness import Readiness
from batches.dispatch.sharing import SharedBackend
from batches.dispatch.tallies import Tallies
from batches.models import Backend, Lease, Line, Status
from common import failpoints, waits
from common.database import relaxed_commits, retrying
from files_api import storage_id

logger = logging.getLogger(__name__)

PURPOSE = "drive"
# How often to see whether the body of the next line has come from a storage that is no disk.
LOOK_FOR_BODY_EVERY_S = 0.02


class Dispatcher:
    """Sends the claimable lines of all batches to `backend` until no line is left, it is paused, or `should_stop()`.

    After `must_end()` it ends too, once the calls in flight are answered. `wake_control` is called with the id of each
    batch that has work for the control worker now. If the backend has `most_drives` already, nothing is sent: the
    process stands by for one of them.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        should_stop: Callable[[], bool],
        wake_control: Callable[[str], None],
        must_end: Callable[[], bool] = lambda: False,
        most_drives: int | None = None,
    ) -> None:
        self.backend = backend
        self.should_stop = should_stop
        self.must_end = must_end
        self.wake_control = wake_control
        self.most_drives = most_drives
        self.has_stored = False

    def run(self) -> bool:
        """Whether an answer was stored."""
        with relaxed_commits(), leases.Keeper(PURPOSE, backend=self.backend) as keeper, waits.meanwhile(keeper.keep):
            # Asked once we have a lease: of several that begin at once the oldest stay.
            if keeper.lease.pk not in retrying(leases.at_work, self.backend.pk)[: self.most_drives]:
                return False
            self._open(keeper)
            try:
                self._loop()
            except leases.LeaseLost:
                logger.warning("lease %s was lost; dropping what was in flight", keeper.lease.pk)
                self.readiness.release()  # paused models that this drive was to try: another drive tries them
            finally:
                self.calls.close()
                self.line_calls.close()
            self.tallies.close()
            return self.has_stored

    def _open(self, keeper: leases.Keeper) -> None:
        backend, kind = self.backend, backends.kind_named(self.backend.kind)
        self.lease = keeper.lease
        self.calls: CallPool[Subject] = backends.open_calls(backend.kind)
        self.line_calls = LineCalls(kind)
        self.shared = retrying(SharedBackend, backend, keeper.lease, kind)
        self.admission = Admission(backend, self.shared)
        self.readiness = Readiness(backend, kind, was_unused=self.shared.was_unused)
        self.company = Company()
        self.lines = LineBuffer(backend, keeper.lease)
        self.answers = AnswerBuffer()
        self.persons = PersonsFirst(backend, kind, self.calls, self.shared, self.admission, self.readiness)
        self.own_use = OwnUse(backend)
        self.tallies = Tallies(backend, keeper.lease)
        self.gap = Gap(time.monotonic()) if kind.loads_on_demand and settings.NOTICE_OTHERS else None
        owners = (self.calls, self.shared, self.admission, self.readiness, self.lines, self.persons, self.own_use)
        around = (self.tallies, self.should_stop, self.must_end, self.wake_control)
        self.checks = PeriodicChecks(backend, keeper, *owners, *around)

    def _loop(self) -> None:
        while True:
            self.checks.run(is_idle=self._is_idle)
            self._stand_down()
            self._claim()
            self._send()
            # Claim the next lines before an answer comes, so that the backend does not wait for a claim.
            self._claim()
            if self._is_done():
                break
            for call in self.calls.wait(self._patience_s()):
                self._note(call)
            if not self.answers.is_urgent:
                # Send the next call before the answers are stored, so that the backend does not wait for the database.
                self._send()
            if self.answers.is_due(is_last=not self.calls.in_flight):
                self._store()
        self.persons.close()
        self.checks.close_finished_batches()

    @property
    def _is_idle(self) -> bool:
        return not self.calls.in_flight and not self.answers

    def _is_done(self) -> bool:
        if not self._is_idle:
            return False
        if self.admission.why_closed():
            return self.admission.is_over
        return not self.lines and not self.readiness.is_waiting

    def _patience_s(self) -> float:
        if self.gap is not None and self.gap.is_on:
            return LASTS_S / 2
        until = min(self.checks.due_at, self.answers.due_at) if self.answers else self.checks.due_at
        patience_s = max(0.0, until - time.monotonic())
        is_waiting = self.line_calls.is_waiting and self.lines.head is not None
        return min(patience_s, LOOK_FOR_BODY_EVERY_S) if is_waiting else patience_s

    def _stand_down(self) -> None:
        """If nothing may be sent, hand the lines back for other drives to claim, and wait for no trial."""
        if self.admission.why_closed():
            self.lines.hand_back()
            for call in self.readiness.release():
                self.answers.add(call)

    # Claim and send

    def _claim(self) -> None:
        if self.lines.is_low(self.shared.room) and not self.admission.why_closed():
            in_flight = [call.subject for call in self.calls.in_flight if is_line(call)]
            self.lines.refill(self.shared.room, in_flight)

    def _send(self) -> None:
        """Send what may be sent now: questions that have to be answered first, then lines."""
        if self._is_in_gap():
            return
        while not self.admission.why_not():
            line = self.lines.head
            if line is not None and (self.readiness.is_paused(line) or self.readiness.refit(line)):
                self.lines.end_turn()
                continue
            question = self.readiness.next_question(line)
            if question is not None and self._has_place_for(question):
                if not question.is_light:
                    self.own_use.note([question.served_model])
                self.calls.submit(self.readiness.call(question))
            elif question is None and line is not None and self._is_ready(line):
                self._send_line(self.lines.take())
            else:
                return

    def _is_ready(self, line: Line) -> bool:
        return self.line_calls.is_at_hand(line, self.lines) and self._has_place_for(line)

    def _is_in_gap(self) -> bool:
        now = time.monotonic()
        if self.gap is None:
            return False
        if self.gap.keeps_back(now, is_idle=not self.calls.in_flight):
            return True
        if self.gap.is_over(now):
            self.readiness.doubt_loaded(after_gap=not self.admission.why_closed())
        return False

    def _has_place_for(self, subject: Subject) -> bool:
        """`subject` may be sent beside the calls in flight. What needs the backend alone waits for the end of all."""
        at_work = self.calls.in_flight.computing
        if isinstance(subject, Question) and not subject.needs_alone:
            is_free = all(call.subject.most_together != 1 for call in at_work)
            return is_free and all(call.subject != subject for call in self.calls.in_flight)
        if not self.company.has_place_for(subject, at_work, self.shared.room):
            return False
        if subject.most_together is not None:
            return retrying(self.shared.take_backend_alone)
        self.shared.give_backend_back()
        return True

    def _send_line(self, line: Line) -> None:
        try:
            call = self.line_calls.make(line)
        except OSError as error:
            self._wait_for_input(line, error)
            return
        if line.batch.stalls:
            retrying(lifecycle.unstall, line.batch_id)
            line.batch.stalls = 0
        if call.reply is not None:
            self.lines.done(line)
            self.answers.add(call)
            return
        self.own_use.note([line.served_model])
        failpoints.reach("before_send")
        self.calls.submit(call)
        if question := self.readiness.question_beside(line):
            self.calls.submit(self.readiness.call(question))

    def _wait_for_input(self, line: Line, error: OSError) -> None:
        """The input file of a batch cannot be read now: the lines of this batch wait, and other batches go on. If this
        host has another storage than the database, it takes no line at all; other hosts go on."""
        if reason := retrying(storage_id.trouble):
            logger.error("the drive ends: %s", reason)
            self.admission.end(reason)
        else:
            reason = (
                f"Its input file cannot be read now ({error.strerror or type(error).__name__}). Look at the storage."
            )
            retrying(lifecycle.stall, line.batch_id, reason, only_in=Status.IN_PROGRESS)
        retrying(claims.hand_back, self.lease, [line])
        self.lines.done(line)
        self.lines.end_turn()

    # Record

    def _note(self, call: Call[Subject]) -> None:
        self.lines.look_again()
        if is_question(call):
            self.shared.note_answer(call)
            self.tallies.note_answer(call)
            for settled in self.readiness.note_answer(call):
                self._note_judged(settled)
            self._claim_anew_if_refitted()
            if call.subject.purpose is Purpose.COUNT_SLOTS:
                self.checks.share_backend(is_idle=self._is_idle)
            if call.subject.purpose is Purpose.LIST_LOADED:
                self.persons.look()  # if others have the server now, no load may be sent
                if not self.backend.loaded_model and self.readiness.wakes(call.subject):
                    # A person's request put their server to sleep: they hang, and keep the load that wakes it waiting.
                    self.calls.cut_all(each for each in self.calls.in_flight if is_line(each))
            return
        assert is_line(call)
        self.lines.done(call.subject)
        self.shared.note(call)
        self.admission.note(call)
        self.line_calls.note(call)
        if self.readiness.note_line(call):
            self._note_judged(call)
        self._claim_anew_if_refitted()

    def _claim_anew_if_refitted(self) -> None:
        if self.readiness.take_refitted():
            self.lines.end_turn()

    def _note_judged(self, call: Call[Line]) -> None:
        """It is known whether the line is charged, and among how many others it is sent again."""
        self.company.note(call)
        if call.most_together is not None:
            self.lines.end_turn()  # the lines that were in flight go first
        self.answers.add(call)

    def _store(self) -> None:
        group = self.answers.take()
        started = time.monotonic()
        failpoints.reach("after_answer")
        failed = retrying(claims.store, self.lease, group, busy_s=self.admission.busy_s, note=self.tallies.note)
        failpoints.reach("after_store")
        self.has_stored = True
        self.answers.stored(time.monotonic() - started)
        self.checks.stored.update(call.subject.batch_id for call in group)
        self.lines.answered(len(group))
        if failed:
            self.lines.end_turn()  # lines in the buffer may be among the lines that fail
        for batch_id in failed:
            retrying(self.wake_control, batch_id)


def is_line(call: Call[Subject]) -> TypeGuard[Call[Line]]:
    return isinstance(call.subject, Line)


def is_question(call: Call[Subject]) -> TypeGuard[Call[Question]]:
    return isinstance(call.subject, Question)


def drives_running() -> int:
    """How many drives work now, on any backend."""
    return Lease.objects.alive().filter(purpose=PURPOSE).count()
