"""The flow of a batch, as messages. A message may be lost, doubled or late: the database says what is due and whose
turn it is. So however many messages of one owner wait, they keep no batch of another waiting.

create ─> validate ─> (again, slice by slice) ─> drive ─> finalize ─> tidy
                                                   │ ^ tick: reaps the dead, closes what is over, wakes what is stuck
                                                   │ ^ inference workers look every second: is there work for us
                                                   └── fail_lines: of a model that will never answer
"""

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from celery import shared_task
from django.conf import settings
from django.contrib.sessions.backends.db import SessionStore
from django.db import Error, connection
from django.db.models import Q, QuerySet
from kombu.exceptions import OperationalError as BrokerError

from batches import (
    cleanup,
    failing,
    forecasts,
    leases,
    lifecycle,
    registry,
    results,
    reuse,
    seeking,
    steps,
    validation,
    webhooks,
)
from batches.dispatch import dispatcher
from batches.lifecycle import Outcome
from batches.models import FINAL, Batch, Pulse, Status
from batches.scheduling import model_uses, persons
from batches.status import reasons
from common import database, signs_of_life, waits
from common.database import Asked, from_now
from common.models import RememberedAnswer
from files_api import retention, storage_id

logger = logging.getLogger(__name__)

# Set in a worker's main process by the order to shut down, read in its pool's children.
shutdown = multiprocessing.Value("b", 0, lock=False)
# Likewise, while the worker takes no work: a drive ends after its calls.
hold = multiprocessing.Value("b", 0, lock=False)
# Raised by the pool's children after each drive that stored an answer, read in the main process: there may be work for
# another. There is no lock, which a child that is killed would keep: two that raise it in one moment may count as one.
drives_over = multiprocessing.Value("L", 0, lock=False)


def begin_worker() -> None:
    """A worker begins in this process: the two flags are its own and its children's, and of no worker that was forked
    from the same process."""
    global shutdown, hold
    shutdown, hold = (multiprocessing.Value("b", 0, lock=False) for _ in range(2))


TICK_AT_MOST_EVERY = timedelta(seconds=1)
SWEEP_EVERY = timedelta(seconds=20)
NUDGE_AGAIN_AFTER = timedelta(seconds=10)
WAKE_AGAIN_AFTER = timedelta(seconds=5)
FORECAST_EVERY = timedelta(seconds=15)
RETENTION_EVERY = timedelta(minutes=1)
FORGET_EVERY = timedelta(hours=1)
MESSAGE_LIFE = timedelta(minutes=10)
MOST_TOLD = 5  # reasons in one line of the log


def wake(task: Any, *args: str) -> None:
    """Send a message. A message that cannot be sent is not an error: the next tick sees what is due."""
    try:
        # A tick has sent the message again long before it expires. Whoever reads it looks at the clock of its own host,
        # which may be minutes ahead of the database's.
        task.apply_async(args=args, expires=database.now() + MESSAGE_LIFE)
    except (BrokerError, OSError) as error:
        logger.warning("the broker does not answer: %s", error)


def wake_control(batch_id: str) -> None:
    """Ask the control worker for the step that this batch's status calls for, if any."""
    if step := _due_step(batch_id):
        wake(step, batch_id)


def _due_step(batch_id: str) -> Any:
    """The task of the step that this batch's status calls for; None if it needs none, or is deleted."""
    found = Batch.objects.filter(pk=batch_id).values_list("status", "tidied_at").first()
    if found is None:
        return None
    status, tidied_at = found
    if status == Status.VALIDATING:
        return validate
    if status in (Status.FINALIZING, Status.CANCELLING):
        return finalize
    if status in FINAL and tidied_at is None:
        return tidy
    return fail_lines if Batch.objects.filter(pk=batch_id).with_lines_to_fail().exists() else None


def _take_turn(asked_for: str, step: Any) -> None:
    """Do the step of the batch whose turn it is: a message says that a step is due, and not whose. If another worker is
    faster, the next one: that worker has a message of its own. If none waits, that of the message, which says why it is
    not done."""
    while (batch_id := steps.next_turn()) and (due := _due_step(batch_id)):
        if STEPS[due.name](batch_id) is not Outcome.HELD:
            return
    STEPS[step.name](asked_for)


def _pass_on(batch_id: str, step: Any, outcome: Outcome) -> None:
    """Wake the worker of the next step. After HELD another worker wakes it, after LATER the tick."""
    if outcome is Outcome.MORE:
        wake(step, batch_id)
    elif outcome is Outcome.DONE:
        webhooks.deliver_due()
        # Of a batch in progress, this step may have finished the last line.
        lifecycle.close_finished(lambda closed: None, [batch_id])
        wake_control(batch_id)


@shared_task
def validate(batch_id: str) -> None:
    _take_turn(batch_id, validate)


def _validate(batch_id: str) -> Outcome:
    with waits.meanwhile(tick_between()):
        outcome = validation.validate(batch_id)
    _pass_on(batch_id, validate, outcome)
    if outcome is Outcome.DONE and _has_work():
        wake(drive)
    # A message for the next tick waits behind the slices of all batches in validation, and may expire there.
    tick()
    return outcome


@shared_task
def drive() -> None:
    if _drive():
        drives_over.value += 1


def _drive() -> bool:
    """Whether an answer was stored."""
    if hold.value or storage_id.trouble():
        return False
    backend = registry.own_backend()
    if not backend.kind or not backend.is_fresh:
        backend = registry.report_backend()
    if backend.is_paused or not backend.kind:
        return False  # the backend's worker lifts the pause once the backend answers, and then looks for work
    parent = os.getppid()

    def should_stop() -> bool:
        # A worker killed by SIGKILL leaves its busy child behind; the child must not go on beside the next worker.
        return bool(shutdown.value) or os.getppid() != parent

    def must_end() -> bool:
        return bool(hold.value)

    most = settings.MAX_CONCURRENT_BATCHES
    has_stored = dispatcher.Dispatcher(
        backend, should_stop=should_stop, must_end=must_end, wake_control=wake_control, most_drives=most
    ).run()
    if not should_stop() and not must_end():
        # Deletes what was derived for batches that are over. A server that runs for one file is stopped in a moment.
        registry.report_backend()
    return has_stored


@shared_task
def fail_lines(batch_id: str) -> None:
    _take_turn(batch_id, fail_lines)


def _fail_lines(batch_id: str) -> Outcome:
    outcome = failing.fail_lines(batch_id)
    _pass_on(batch_id, fail_lines, outcome)
    tick()  # as after validation
    return outcome


@shared_task
def finalize(batch_id: str) -> None:
    _take_turn(batch_id, finalize)


def _finalize(batch_id: str) -> Outcome:
    breathe = tick_between()
    with waits.meanwhile(breathe):
        outcome = results.finalize(batch_id, breathe=breathe)
    if outcome is Outcome.DONE:
        _tell_end(batch_id)
    _pass_on(batch_id, finalize, outcome)
    return outcome


def _tell_end(batch_id: str) -> None:
    """A line in the log: how many lines have an answer, and why the others have none."""
    batch = Batch.objects.filter(pk=batch_id, status__in=FINAL, tidied_at=None).first()
    if batch is not None:
        why = ", ".join(f"{each.count} × {each.code}" for each in reasons.of(batch)[:MOST_TOLD])
        logger.info("%s: %d of %d lines answered%s", batch_id, batch.completed, batch.total, why and f"; {why}")


@shared_task
def tidy(batch_id: str) -> None:
    _take_turn(batch_id, tidy)


def _tidy(batch_id: str) -> Outcome:
    breathe = tick_between()
    with waits.meanwhile(breathe):
        outcome = cleanup.tidy(batch_id, breathe=breathe)
    _pass_on(batch_id, tidy, outcome)
    return outcome


@shared_task
def delete(batch_id: str) -> None:
    if cleanup.delete(batch_id, slice_s=cleanup.SLICE_S) is Outcome.MORE:
        Batch.objects.filter(pk=batch_id).update(nudged_at=database.now())  # or the tick would ask for it too
        wake(delete, batch_id)
    else:
        _delete_outlived_batches()  # so that as many go in a day as end in a day


_OPEN = Asked(
    lambda: Batch.objects.filter(tidied_at=None),
    lambda: Pulse.objects.filter(pk="ticked").exclude(error=""),
    *leases.HELD.queries,
    *webhooks.DUE.queries,
    *seeking.ANYTHING.queries,
)


def is_tick_due() -> bool:
    """Whether a tick may find anything to do: a batch that is not over, what a process has, an event to send, or a
    sweep. Two small queries."""
    return not Pulse.is_recent("sweep", SWEEP_EVERY) or _OPEN.is_true()


@shared_task
def tick() -> None:
    """Find work that a lost message, a dead process or the clock left behind, and wake its worker. Safe at any time.

    Each duty is done, whether or not the others fail. /health names the duties that fail; each is logged once. What
    nobody waits for is swept once in SWEEP_EVERY.
    """
    try:
        if Pulse.due("tick", TICK_AT_MOST_EVERY):
            _do(DUTIES, "ticked")
            if Pulse.due("sweep", SWEEP_EVERY):
                _do(SWEEPS, "swept")
    except Error as error:
        if not database.is_away(error):
            raise
        # /health is "failing" if no tick was done for TICK_MISSING_AFTER.
        logger.warning("no tick: the database does not answer: %s", error)


def _do(duties: dict[str, Callable[[], object]], pulse: str) -> None:
    failed: dict[str, Exception] = {}
    for name, duty in duties.items():
        signs_of_life.alive()
        try:
            duty()
        except Exception as error:  # noqa: BLE001  # any error is told, and the next duty is done
            reason = getattr(error, "strerror", None)
            what = type(error).__name__ + (f": {reason}" if reason else "")
            failed[f"{name} ({what})"] = error
            connection.close_if_unusable_or_obsolete()
    before = Pulse.stamp(pulse, error=", ".join(failed))
    for what in failed:
        if what not in before:
            logger.error("the tick cannot %s", what, exc_info=failed[what])


def _reap() -> None:
    if dead := leases.reap():
        logger.warning("took back the work of processes that died: %s", dead)


def _close_finished() -> None:
    lifecycle.close_finished(wake_control)


def tick_between() -> Callable[[], None]:
    """For long steps: a function to call often, which ticks if a tick is due."""
    last = time.monotonic()

    def breathe() -> None:
        nonlocal last
        if time.monotonic() > last + TICK_AT_MOST_EVERY.total_seconds():
            tick()
            last = time.monotonic()

    return breathe


def _nudge_control() -> None:
    if not _TO_NUDGE.is_true():
        return
    for batch_id in _to_nudge().order_by("created_at").values_list("pk", flat=True)[:100]:
        if _is_to_nudge(batch_id):
            wake_control(batch_id)


def _to_nudge() -> QuerySet[Batch]:
    return Batch.objects.all().waiting_for_control().filter(_long_ago())


def _is_to_nudge(batch_id: str) -> bool:
    """True once in NUDGE_AGAIN_AFTER for a batch, however many ticks see it, or messages would multiply."""
    nudged = 0
    with database.passing_by_locks():
        nudged = Batch.objects.filter(_long_ago(), pk=batch_id).update(nudged_at=database.now())
    return nudged == 1


def _long_ago() -> Q:
    return Q(nudged_at=None) | Q(nudged_at__lte=from_now(-NUDGE_AGAIN_AFTER))


_TO_NUDGE = Asked(_to_nudge)


def _compare_windows() -> None:
    if Pulse.due("forecasts", FORECAST_EVERY):
        forecasts.review()


def _delete_outlived() -> None:
    if Pulse.due("retention", RETENTION_EVERY):
        cleanup.delete_outlived_files()
        _delete_outlived_batches()


def _delete_outlived_batches() -> None:
    """Ask for the deletion of the oldest batches that RETENTION_DAYS is over for, and whose deletion is not asked for
    already. Each deletion asks for the next."""
    for batch_id in cleanup.outlived():
        if _is_to_nudge(batch_id):
            wake(delete, batch_id)


def _forget_what_is_over() -> None:
    if Pulse.due("forget", FORGET_EVERY):
        webhooks.forget_old()
        cleanup.correct_owners()
        SessionStore.clear_expired()


def _wake_drives() -> None:
    """Send one message in WAKE_AGAIN_AFTER while fewer drives run than can: each worker process can run one.

    Any worker may get it, also one that lacks the model. Workers find their own work (`batches/seeking.py`), and need
    no message of the tick; those of earlier versions do.
    """
    if not seeking.ANYTHING.is_true():
        return
    most_drives = settings.MAX_CONCURRENT_BATCHES * max(1, len(registry.live_backends()))
    if dispatcher.drives_running() < most_drives and _has_work() and Pulse.due("drive", WAKE_AGAIN_AFTER):
        wake(drive)


def _has_work() -> bool:
    if not seeking.ANYTHING.is_true():
        return False  # on an idle server, without a look at its backends
    return bool(seeking.with_work([each for each in registry.live_backends() if not each.is_paused]))


STEPS: dict[str, Callable[[str], Outcome]] = {
    each.name: do
    for each, do in ((validate, _validate), (fail_lines, _fail_lines), (finalize, _finalize), (tidy, _tidy))
}
# The duties of a tick, and of a sweep; /health says "The control worker cannot", and the name.
DUTIES: dict[str, Callable[[], object]] = {
    "take back the work of dead processes": _reap,
    "close finished batches": _close_finished,
    "ask for steps that are due": _nudge_control,
    "wake drives": _wake_drives,
    "compare windows with forecasts": _compare_windows,
    "send webhooks": webhooks.deliver_due,
}
SWEEPS: dict[str, Callable[[], object]] = {
    "forget old idempotency keys": RememberedAnswer.forget_old,
    "forget holds that ended": persons.forget_ended,
    "forget old uses of models": model_uses.forget_old,
    "forget old answers": reuse.forget_old,
    "forget old events and sessions": _forget_what_is_over,
    "delete what RETENTION_DAYS is over for": _delete_outlived,
    "remove files that are not needed": retention.sweep,
}
