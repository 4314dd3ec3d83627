"""Ask something that may hang, and wait for the answer no longer than is bearable."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

from django.db import connections

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Bounded(Generic[T]):
    """What `work` returns, if it does so within `within_s` seconds. Safe to ask from many threads.

    One thread at most is at work, whoever asks: a database that hangs for a day keeps one thread, not one for each
    question of a monitor. While that thread hangs, nobody waits longer than `within_s`, counted from its start.
    """

    def __init__(self, work: Callable[[], T], *, within_s: float) -> None:
        self._work = work
        self._within_s = within_s
        self._lock = threading.Lock()
        self._answer: Future[T] | None = None
        self._asked_at = 0.0

    def ask(self) -> T:
        """Raises TimeoutError if there is no answer in time, or no thread to ask; and whatever `work` raises."""
        return self.begin()()

    def begin(self) -> Callable[[], T]:
        """Ask now, and return at once; what comes back waits for the answer as `ask` does."""
        with self._lock:
            if self._answer is None or self._answer.done():
                self._answer, self._asked_at = self._start(), time.monotonic()
            answer, until = self._answer, self._asked_at + self._within_s
        return lambda: answer.result(timeout=max(0.0, until - time.monotonic()))

    def _start(self) -> "Future[T]":
        answer: Future[T] = Future()
        try:
            # A daemon: a question that hangs must not keep the process from its end.
            threading.Thread(target=self._run, args=(answer,), name="bounded", daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            answer.set_exception(TimeoutError(str(error)))
        return answer

    def _run(self, answer: "Future[T]") -> None:
        """Settle the answer, whatever happens: nothing else is asked before."""
        settle: Callable[[], None]
        try:
            settle = partial(answer.set_result, self._work())
        except Exception as error:  # noqa: BLE001  (whoever asked gets it)
            settle = partial(answer.set_exception, error)
        except BaseException as error:  # noqa: BLE001  (raised again as it is, it would end the process that asks)
            settle = partial(answer.set_exception, RuntimeError(repr(error)))
        try:
            connections.close_all()
        except Exception as error:  # noqa: BLE001  (the connection is broken; the answer is known)
            logger.warning("a connection to the database could not be closed: %s", error)
        finally:
            settle()
