"""The threads that answer requests: few at work, and many that wait for a client."""

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

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


class Queue(NamedTuple):
    """Requests that wait for each other, such as those of one kind from one address. `at_once` of them are at work at
    most: more would only share the cores, and whoever comes with another request would share them with all of these."""

    name: Hashable
    at_once: int


Inbox = SimpleQueue[tuple[Queue, Job] | None]


class Queues:
    """Jobs that wait, in queues that take turns: who brings many at once keeps no other queue waiting for more than
    `at_once` of them."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Queue, deque[Job]] = OrderedDict()  # the one whose turn comes next is first
        self._at_work: Counter[Queue] = Counter()

    def add(self, queue: Queue, job: Job) -> None:
        self._waiting.setdefault(queue, deque()).append(job)

    def next(self) -> Queue | None:
        """The queue whose turn it is; None if no job may begin."""
        return next((queue for queue in self._waiting if self._at_work[queue] < queue.at_once), None)

    def take(self, queue: Queue) -> Job:
        jobs = self._waiting.pop(queue)
        job = jobs.popleft()
        if jobs:
            self._waiting[queue] = jobs
        return job

    def begin(self, queue: Queue) -> None:
        self._at_work[queue] += 1

    def end(self, queue: Queue) -> None:
        self._at_work[queue] -= 1
        if not self._at_work[queue]:
            del self._at_work[queue]


class RequestThreads:
    """A pool in which `places` threads at most are at work, and `most` threads exist. Requests wait in `Queues`.

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
        self._queues = Queues()
        self._kept: list[Inbox] = []
        self._returning: deque[tuple[Queue, threading.Event]] = deque()
        self._is_shut = False
        self._mine = threading.local()  # `queue`: of the job that a thread is at

    @property
    def lacks_threads(self) -> bool:
        """There is work and a place for it, and all threads wait for clients."""
        with self._lock:
            return bool(self._free and self._queues.next() and self._count >= self._most)

    def submit(self, queue: Queue, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """What `work` returns, once there is a place for it and it is the turn of its queue."""
        done: Future[Any] = Future()
        with self._lock:
            self._queues.add(queue, partial(_settle, done, work, arguments))
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
        queue = self._mine.queue
        with self._lock:
            self._leave_place(queue)
            self._give_places()
        try:
            yield
        finally:
            back = threading.Event()
            with self._lock:
                self._returning.append((queue, back))
                self._give_places()
            back.wait()

    def _give_places(self) -> None:
        self._let_return()
        while self._free and (queue := self._queues.next()):
            inbox = self._kept.pop() if self._kept else self._start()
            if inbox is None:
                return
            inbox.put(self._begin(queue))

    def _let_return(self) -> None:
        while self._free and self._returning:
            queue, back = self._returning.popleft()
            self._take_place(queue)
            back.set()
            if len(self._kept) > self._free:
                self._dismiss()

    def _begin(self, queue: Queue) -> tuple[Queue, Job]:
        self._take_place(queue)
        return queue, self._queues.take(queue)

    def _take_place(self, queue: Queue) -> None:
        self._free -= 1
        self._queues.begin(queue)

    def _leave_place(self, queue: Queue) -> None:
        self._free += 1
        self._queues.end(queue)

    def _dismiss(self) -> None:
        """End the thread that is kept for longest."""
        self._kept.pop(0).put(None)
        self._count -= 1

    def _start(self) -> Inbox | None:
        """The inbox of a new thread; None if there are as many as may be, or the system has none left."""
        if self._count >= self._most:
            return None
        inbox: Inbox = SimpleQueue()
        try:
            threading.Thread(target=self._run, args=(inbox,), name="request", daemon=True).start()
        except RuntimeError as error:
            logger.error("no thread can be started: %s", error)
            self._most = max(1, self._count)  # the system's bound is lower than ours
            return None
        self._count += 1
        return inbox

    def _wait(self, done: "Future[Any]") -> None:
        """Wait for the network without a place, and after a moment without a connection to the database."""
        with self.standing_aside():
            if wait([done], timeout=SHORT_WAIT_S).not_done:
                close_connections()
                wait([done])

    def _run(self, inbox: Inbox) -> None:
        waits.wait_by(self._wait)
        begun = inbox.get()
        while begun is not None:
            self._mine.queue, job = begun
            job()
            begun = self._next(inbox)
        close_connections()

    def _next(self, inbox: Inbox) -> tuple[Queue, Job] | None:
        """The thread's next job, for which it has a place; None if the thread is to end."""
        with self._lock:
            self._leave_place(self._mine.queue)
            self._let_return()
            if self._free and (queue := self._queues.next()):
                return self._begin(queue)
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
