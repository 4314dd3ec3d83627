"""What a worker's main process does on a timer, and how its children learn that they should stop.

The tick comes from a timer in the control worker's main process, not from celery beat. An embedded beat outlives a
worker that is killed by SIGKILL, ticks beside its successor's beat, and keeps its schedule in a file that a kill can
damage.
"""

import logging
from typing import Any

from celery import bootsteps, signals
from django.db import DatabaseError, connection
from kombu.exceptions import OperationalError

from batches.registry import report_backend
from batches.scheduling.others import Others
from batches.tasks import shutdown, tick
from batchserver.celery import app
from common import schema

logger = logging.getLogger(__name__)

TICK_EVERY_S = 2.0
REPORT_EVERY_S = 3.0

others = Others()


class Timers(bootsteps.StartStopStep):
    """What a worker's main process does on a timer, idle or busy: ask for a tick, or probe its backend."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        self.timers: list[Any] = []

    def start(self, worker: Any) -> None:
        queues = set(worker.app.amqp.queues.consume_from)
        if "control" in queues:
            self._repeat(worker, TICK_EVERY_S, _ask_for_tick)
        if "inference" in queues:
            self._repeat(worker, REPORT_EVERY_S, _report_backend)

    def stop(self, worker: Any) -> None:
        for timer in self.timers:
            timer.cancel()

    def _repeat(self, worker: Any, every_s: float, action: Any) -> None:
        worker.timer.call_after(0, action)
        self.timers.append(worker.timer.call_repeatedly(every_s, action))


app.steps["worker"].add(Timers)


def _ask_for_tick() -> None:
    try:
        # A tick that waits for a busy worker may expire: the next tick does the same.
        tick.apply_async(expires=TICK_EVERY_S)
    except (OperationalError, OSError) as error:
        logger.warning("the broker does not answer: %s", error)


def _report_backend() -> None:
    try:
        report_backend(others.look)
    except DatabaseError as error:
        logger.warning("the backend's state could not be stored: %s", error)
    finally:
        # The pool forks from this process: no database connection may cross into a child.
        connection.close()


@signals.worker_init.connect
def _leave_another_schema_alone(**kwargs: Any) -> None:
    """End the worker, with what to do, if the database is of another version: each of its steps would fail."""
    try:
        reason = schema.trouble()
    except DatabaseError:
        return  # the database is busy or away: the worker waits for it
    finally:
        # As in `_report_backend`: the pool forks from this process.
        connection.close()
    if reason:
        raise SystemExit(reason)


@signals.worker_shutting_down.connect
def _stop_drives(**kwargs: Any) -> None:
    shutdown.value = 1
