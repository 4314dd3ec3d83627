"""What a worker's main process does again and again, how its children learn that they should stop, and how whoever
watches over the worker learns that it lives.

The tick comes from the control worker's main process, not from celery beat. An embedded beat outlives a
worker that is killed by SIGKILL, ticks beside its successor's beat, and keeps its schedule in a file that a kill can
damage.
"""

import gc
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from celery import bootsteps, signals
from celery.worker import consumer
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection, connections
from kombu import Queue
from kombu.exceptions import OperationalError

from batches import seeking, tasks
from batches.registry import report_backend
from batches.scheduling.others import Others
from batchserver import fitness, private
from batchserver.celery import app
from common import schema, signs_of_life
from files_api import storage_id

logger = logging.getLogger(__name__)
T = TypeVar("T")
private.from_now_on()

# A round has what is due: more than most of it costs that the loop wakes at all.
ROUND_S = 1.0
SLACK_S = 0.1
FALLBACK_S = 5.0
TICK_EVERY_S = 2.0
PROBE_EVERY_S = 3.0
LOOK_EVERY_S = 1.0
# After a message for drives, until it is clear whether they run; sooner once a drive is over.
ASK_AGAIN_AFTER_S = 3.0

LOOP_SILENT_AFTER_S = 60.0
# Objects, and collections of younger ones: Python's own are (700, 10, 10).
COLLECT_AFTER = (20_000, 20, 100)


class LoopWatch:
    """Gives signs of life for a worker's main process while its loop goes round.

    From a thread, since the loop stands still for good reasons too: it waits for the database, or for hours for a
    broker that is away, while the worker's child goes on with its lines.
    """

    def __init__(self, *, silent_after_s: float = LOOP_SILENT_AFTER_S) -> None:
        self._silent_after_s = silent_after_s
        self._went_round_at = time.monotonic()
        self._is_excused = False

    def start(self) -> None:
        self.go_round()
        signs_of_life.begin()
        threading.Thread(target=self._watch, name="signs of life", daemon=True).start()

    def go_round(self) -> None:
        """The loop is here: call it often."""
        self._went_round_at = time.monotonic()

    def excuse(self) -> None:
        """The loop does not go round any more, and the process ends by itself."""
        self._is_excused = True

    @contextmanager
    def excused(self) -> Iterator[None]:
        """The block may take any time, and is not deadlocked."""
        self._is_excused = True
        try:
            yield
        finally:
            self.go_round()
            self._is_excused = False

    @property
    def is_alive(self) -> bool:
        return self._is_excused or time.monotonic() < self._went_round_at + self._silent_after_s

    def _watch(self) -> None:
        while True:
            if self.is_alive:
                signs_of_life.alive()
            time.sleep(signs_of_life.EVERY_S)


loop = LoopWatch()


class Consumer(consumer.Consumer):
    """Celery's own, which blocks the loop while it connects to a broker that is away."""

    def ensure_connected(self, conn: Any) -> Any:
        with loop.excused():
            return super().ensure_connected(conn)


class OwnWork:
    """Asks this worker's own processes for the drives that there is work for."""

    def __init__(self) -> None:
        # Nobody else takes messages from it, on a host of the same name neither. Redis keeps a list for a queue while
        # there is a message in it; a queue that is declared leaves more behind.
        self.queue = Queue(f"inference.{uuid.uuid4().hex}", no_declare=True)
        self._seeker = seeking.Seeker()
        self._asked_at = float("-inf")
        self._over = 0  # drives, when it asked

    def look(self) -> None:
        wanted = 0 if tasks.shutdown.value or tasks.hold.value else _answer_of(self._seeker.look) or 0
        over = tasks.drives_over.value
        if over != self._over or time.monotonic() > self._asked_at + ASK_AGAIN_AFTER_S:
            for _ in range(wanted):
                self._asked_at, self._over = time.monotonic(), over
                _send(tasks.drive, queue=self.queue.name, expires=ASK_AGAIN_AFTER_S)


own_work = OwnWork()


class HealthProbe:
    """Asks this worker's backend what it is and has, for all who ask the database; every second time it is let off
    while no batch is at work."""

    def __init__(self) -> None:
        self._others = Others()
        self._was_let_off = True

    def look(self) -> None:
        if tasks.hold.value:
            return  # no line is sent to it from here
        self._was_let_off = not self._was_let_off and _answer_of(seeking.ANYTHING.is_true) is False
        if not self._was_let_off:
            _answer_of(lambda: report_backend(self._others.look))


health_probe = HealthProbe()


class Rounds:
    """What is to be done again and again, each in every so many rounds. Begins with all of it."""

    def __init__(self) -> None:
        self._duties: list[tuple[int, Callable[[], object]]] = []
        self._gone = 0
        self._due_at = 0.0
        self._get_off: Callable[[], None] = lambda: None

    def add(self, every_s: float, duty: Callable[[], object]) -> None:
        self._duties.append((round(every_s / ROUND_S), duty))

    def ride_on(self, hub: Any) -> None:
        """Go with this loop, which goes round each second by itself: kombu's Redis has a timer. One of our own each
        second would wake it once more, which costs as much as a round. With a kombu that has none, a round comes with
        the end of each read from the broker, every second or two, and every FALLBACK_S at least."""
        fallback = hub.call_repeatedly(FALLBACK_S, self.go_if_due)
        hub.on_tick.add(self.go_if_due)

        def get_off() -> None:
            hub.on_tick.discard(self.go_if_due)
            fallback.cancel()

        self._get_off = get_off

    def stop(self) -> None:
        """Get off the loop. Safe to call at any time."""
        self._get_off()

    def go_if_due(self) -> None:
        """Call at least as often as a round is due."""
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + ROUND_S - SLACK_S
            self.go()

    def go(self) -> None:
        for every, duty in self._duties:
            if self._gone % every == 0:
                try:
                    duty()
                except Exception:
                    logger.exception("a worker's duty failed")  # and the next one is done
        self._gone += 1


class Duties(bootsteps.StartStopStep):
    """What a worker's main process does again and again, idle or busy: show that it lives, see whether it may take
    work, ask for a tick, probe its backend, look for work for it."""

    requires = ("celery.worker.components:Timer", "celery.worker.components:Hub")

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        self.rounds = Rounds()

    def start(self, worker: Any) -> None:
        loop.start()
        # The pool forks from this process, and its thread that is here now: no connection may cross into a child.
        os.register_at_fork(before=connections.close_all)
        self.rounds.add(ROUND_S, loop.go_round)
        queues = set(worker.app.amqp.queues.consume_from)
        self.fitness = fitness.Fitness(worker, queues, tasks.hold)
        self.rounds.add(fitness.EVERY_S, self.fitness.look)
        if "control" in queues:
            self.rounds.add(TICK_EVERY_S, _ask_for_tick)
        if "inference" in queues:
            self.rounds.add(PROBE_EVERY_S, health_probe.look)
            worker.app.amqp.queues.select_add(own_work.queue)
            self.rounds.add(LOOK_EVERY_S, own_work.look)
        self.rounds.ride_on(worker.hub)

    def close(self, worker: Any) -> None:
        """The worker is to end, whoever says so: a signal, `celery control shutdown`, a page of Flower."""
        loop.excuse()
        if not self.fitness.is_ending:
            tasks.shutdown.value = 1

    def stop(self, worker: Any) -> None:
        self.rounds.stop()


app.steps["worker"].add(Duties)


def _ask_for_tick() -> None:
    # If the database is away, the tick says so.
    if _answer_of(tasks.is_tick_due) is False:
        return
    # A tick that waits for a busy worker may expire: the next tick does the same. By the clock of this host, whose
    # worker reads it, or that of another host, which has ticks of its own.
    _send(tasks.tick, expires=TICK_EVERY_S)


def _send(task: Any, **options: Any) -> None:
    try:
        task.apply_async(**options)
    except (OperationalError, OSError) as error:
        logger.warning("the broker does not answer: %s", error)


def _answer_of(question: Callable[[], T]) -> T | None:
    """What the database answers over the connection that this process keeps; None if it does not."""
    try:
        return question()
    except (DatabaseError, InterfaceError) as error:
        logger.warning("the database does not answer: %s", error)
        connection.close()  # the next question opens another one
        return None


@signals.worker_init.connect
def _be_one_of_its_own(**kwargs: Any) -> None:
    """What was imported may have been so by the process that this one was forked from, for several workers."""
    tasks.begin_worker()
    signs_of_life.give_to(settings.SIGNS_OF_LIFE_FD)


@signals.worker_init.connect
def _leave_what_is_anothers_alone(**kwargs: Any) -> None:
    """End the worker, with what to do, if the database is of another version, or lies with another storage: each of its
    steps would fail."""
    try:
        reason = schema.trouble()
        if not reason:
            storage_id.settle()
    except storage_id.WrongStorage as error:
        reason = storage_id.at_start(error)
    except (DatabaseError, OSError):
        return  # the database or the storage is busy or away: the worker waits for it
    finally:
        connection.close()  # the pool forks from this process next
    if reason:
        raise SystemExit(reason)


@signals.worker_before_create_process.connect
def _share_memory(**kwargs: Any) -> None:
    """A process of the pool has the memory of this one until either writes to it, and Python's collector writes to each
    object that it looks at: it leaves those alone that are there now, in both. What comes are lines and answers by the
    thousand, which hold no circles: it looks at them seldom, or it takes a twentieth of a drive's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


@signals.worker_shutting_down.connect
def _stop_drives(**kwargs: Any) -> None:
    """By a signal, at once: the loop, which comes to `Duties.close`, may be waiting for the broker."""
    loop.excuse()
    tasks.shutdown.value = 1


@signals.task_prerun.connect
def _begin(**kwargs: Any) -> None:
    signs_of_life.begin()


@signals.task_postrun.connect
def _done(**kwargs: Any) -> None:
    signs_of_life.done()
