"""Whether a worker may take work, as its main process looks every few seconds.

A worker whose storage of files is not that of the database takes none until it is: it stops reading its queue, so that
other workers get the messages. A worker whose database is of a newer version than its code ends after its calls.
"""

import logging
import multiprocessing.sharedctypes
from collections.abc import Collection
from typing import Any

from celery.worker import state
from django.db import DatabaseError, connection

from batches import hosts
from common import schema
from common.bounded import Bounded
from files_api import storage_id

logger = logging.getLogger(__name__)

EVERY_S = 10.0
STORAGE_WITHIN_S = 2.0


class Fitness:
    """Lets a Celery worker read its `queues` or not. `hold` is what its children read: 1 while they have to end."""

    def __init__(self, worker: Any, queues: Collection[str], hold: "multiprocessing.sharedctypes.Synchronized[int]"):
        self._worker = worker
        self._queues = sorted(queues)
        self._hold = hold
        # A directory of another machine may hang for as long as that is away. No database: the pool forks meanwhile.
        self._storage = Bounded(storage_id.read, within_s=STORAGE_WITHIN_S)
        self.is_ending = False

    def look(self) -> None:
        """Take work or not, by what is found now. What cannot be found out now stays as it was."""
        if self.is_ending:
            return
        try:
            if newer := schema.newer():
                self._end(newer)
            elif reason := self._storage_trouble():
                self._take_none(reason)
            else:
                self._take()
                storage_id.note_seen()
        except (DatabaseError, OSError) as error:
            logger.debug("it is not known whether the worker may take work: %s", error)
            connection.close()  # it may be lost: the next look opens another one

    def _storage_trouble(self) -> str:
        """Why the storage is not that of the database; empty if it is. Raises DatabaseError, or OSError if the storage
        cannot be read now."""
        found, wanted = self._storage.ask(), storage_id.expected()
        if wanted is not None:
            return storage_id.advised(storage_id.compare(found, wanted))
        try:
            storage_id.settle()  # it was away when the worker started
        except storage_id.WrongStorage as error:
            return storage_id.advised(error.reason)
        return ""

    def _end(self, reason: str) -> None:
        """As by SIGTERM, but calls may take as long as they take. Celery's loop looks at `should_stop` at once."""
        logger.warning("the worker ends: %s", reason)
        self.is_ending = True
        self._hold.value = 1
        state.should_stop = 0  # type: ignore[assignment]  # the exit status

    def _take_none(self, reason: str) -> None:
        if not self._hold.value:
            logger.error("the worker takes no work: %s", reason)
        self._hold.value = 1
        # While the broker is away there is nothing to read from; each look tries again.
        if (consumer := self._worker.consumer) is not None and consumer.task_consumer is not None:
            for queue in self._queues:
                consumer.cancel_task_queue(queue)
        hosts.hold(reason)

    def _take(self) -> None:
        consumer = self._worker.consumer
        if not self._hold.value or consumer is None or consumer.task_consumer is None:
            return
        logger.warning("the worker takes work again")
        for queue in self._queues:
            consumer.add_task_queue(queue)
        self._hold.value = 0
        hosts.release()
