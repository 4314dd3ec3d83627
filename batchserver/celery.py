"""The Celery app and its two workers' own wiring: what they do on a timer, and how they learn that they should stop.

    control worker    celery -A batchserver worker -Q control -c 1      validate, finalize, tidy, tick
    inference worker  celery -A batchserver worker -Q inference -c MAX_CONCURRENT_BATCHES      drive

The tick comes from a timer in the control worker's main process and not from celery beat: an embedded beat outlives a
worker that is killed with -9, then ticks beside its successor's, and keeps its schedule in a file that a kill can harm.
"""

import logging
import os
import warnings
from typing import Any

from celery import Celery, bootsteps, signals
from celery.exceptions import SecurityWarning
from django.db import DatabaseError, connection
from kombu.exceptions import OperationalError

from common import schema

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "batchserver.settings")

logger = logging.getLogger(__name__)

# Messages are JSON with ids alone, so a worker that runs as root (in a container, say) is no news worth ten lines.
warnings.filterwarnings("ignore", category=SecurityWarning)

TICK_EVERY_S = 2.0
REPORT_EVERY_S = 3.0

app = Celery("batchserver")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


class Timers(bootsteps.StartStopStep):
    """What a worker's main process does every few seconds, idle or busy: ask for a tick, or report on its backend."""

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
    from batches.tasks import tick

    try:
        # A tick that waited for a busy worker is as good as the next one.
        tick.apply_async(expires=TICK_EVERY_S)
    except (OperationalError, OSError) as error:
        logger.warning("the broker does not answer: %s", error)


def _report_backend() -> None:
    from batches.presence import report_backend

    try:
        report_backend()
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
        return  # busy or away: the worker waits for it
    finally:
        # As for the backend's report: the pool forks from this process.
        connection.close()
    if reason:
        raise SystemExit(reason)


@signals.setup_logging.connect
def _use_django_logging(**kwargs: Any) -> None:
    """Settings.LOGGING is in place already; having a receiver keeps Celery from adding its own."""


@signals.worker_shutting_down.connect
def _stop_drives(**kwargs: Any) -> None:
    from batches.tasks import shutdown

    shutdown.value = 1
