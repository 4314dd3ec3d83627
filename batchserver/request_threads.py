"""The threads that answer requests: few at work, and many that wait for a client."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from django.db import connections

from common import waits

logger = logging.getLogger(__name__)

Job = Callable[[], None]
# Threads that are kept for the next requests. Each of them may keep a connection to the database: on Postgres, to open
# one takes as long as some requests. With 16 threads kept, 200 clients opened one for each fourth request.
KEPT = 48
KEPT_S = 30.0
# A thread that waits for longer gives its connection to the database back.
SHORT_WAIT_S = 0.25


class RequestThreads:
    """A pool in which `places` threads at most are at work, and `most` threads exist.

    A thread that waits for its client, or for a storage of files that is no disk, stands aside: another one takes its
    place, so a client that is slow to send or to read costs a thread and no place. Whoever comes back goes before a new
    request. As many connections to the database as places are open at most: who stands aside has none
    (`close_connections`), and threads are kept for free places alone.

    The threads are daemons: one that hangs keeps no process from its end.
    """

    def __init__(self, places: int, most: int) -> None:
        # Reentrant: a signal may interrupt `submit`, and its handler shuts the pool.
        self._lock = threading.RLock()
        self._free = places
        self._most = most
        self._count = 0
        self._jobs: deque[Job] = deque()
        self._kept: list[SimpleQueue[Job | None]] = []
        self._returning: deque[threading.Event] = deque()
        self._is_shut = False

    @property
    def lacks_threads(self) -> bool:
        """There is work and a place for it, and all threads wait for clients."""
        with self._lock:
            return bool(self._jobs and self._free and self._count >= self._most)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """What `work` returns, once there is a place for it."""
        done: Future[Any] = Future()
        with self._lock:
            self._jobs.append(partial(_settle, done, work, arguments))
            self._give_places()
        return done

    def shutdown(self, wait: bool = False) -> None:
        """No thread is kept any more. Waits for none, whatever `wait` says."""
        with self._lock:
            self._is_shut = True
            while self._kept:
                self._dismiss()

    @contextmanager
    def standing_aside(self) -> Iterator[None]:
        """Give the place of the calling thread away, and wait for one at the end of the block."""
        with self._lock:
            self._free += 1
            self._give_places()
        try:
            yield
        finally:
            back = threading.Event()
            with self._lock:
                self._returning.append(back)
                self._give_places()
            back.wait()

    def _give_places(self) -> None:
        self._let_return()
        while self._free and self._jobs:
            if self._kept:
                self._free -= 1
                self._kept.pop().put(self._jobs.popleft())
            elif self._count >= self._most or not self._start():
                return

    def _let_return(self) -> None:
        while self._free and self._returning:
            self._free -= 1
            self._returning.popleft().set()
            if len(self._kept) > self._free:
                self._dismiss()

    def _dismiss(self) -> None:
        """End the thread that is kept for longest."""
        self._kept.pop(0).put(None)
        self._count -= 1

    def _start(self) -> bool:
        """Begin the next job in a new thread; False if the system has none left."""
        job = self._jobs.popleft()
        self._free -= 1
        self._count += 1
        try:
            threading.Thread(target=self._run, args=(job,), name="request", daemon=True).start()
        except RuntimeError as error:
            logger.error("no thread can be started: %s", error)
            self._jobs.appendleft(job)
            self._free += 1
            self._count -= 1
            self._most = max(1, self._count)  # the system's bound is lower than ours
            return False
        return True

    def _wait(self, done: "Future[Any]") -> None:
        """Wait for the network without a place, and after a moment without a connection to the database."""
        with self.standing_aside():
            if wait([done], timeout=SHORT_WAIT_S).not_done:
                close_connections()
                wait([done])

    def _run(self, first: Job) -> None:
        waits.wait_by(self._wait)
        inbox: SimpleQueue[Job | None] = SimpleQueue()
        job: Job | None = first
        while job is not None:
            job()
            job = self._next(inbox)
        close_connections()

    def _next(self, inbox: "SimpleQueue[Job | None]") -> Job | None:
        """The thread's next job, for which it has a place; None if the thread is to end."""
        with self._lock:
            self._free += 1
            self._let_return()
            if self._free and self._jobs:
                self._free -= 1
                return self._jobs.popleft()
            if self._is_shut or len(self._kept) >= min(KEPT, self._free):
                self._count -= 1
                return None
            self._kept.append(inbox)
        with suppress(Empty):
            return inbox.get(timeout=KEPT_S)
        with self._lock:
            if inbox in self._kept:
                self._kept.remove(inbox)
                self._count -= 1
                return None
        return inbox.get()  # it was given something just now


def close_connections() -> None:
    """Close this thread's connections to the database, but for one in a transaction. The next query opens one again."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


def _settle(done: "Future[Any]", work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        result = work(*arguments)
    except BaseException as error:  # noqa: BLE001  (whoever submitted the work gets it)
        done.set_exception(error)
    else:
        done.set_result(result)
