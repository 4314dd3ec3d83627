"""A wait for the network that may be long, beside duties that may not wait, such as a lease that has to be renewed."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from django.db import connection

from common import signs_of_life

T = TypeVar("T")
Wait = Callable[["futures.Future[Any]"], object]

EVERY_S = 1.0

_local = threading.local()


class _Duty(NamedTuple):
    do: Callable[[], object]
    most_s: float


@contextmanager
def meanwhile(duty: Callable[[], object], *, most_s: float = float("inf"), alone: bool = False) -> Iterator[None]:
    """While `wait_for` waits in this thread and inside the block, do `duty` every second, beside those of outer blocks;
    `alone`: instead of them. An error of the duty ends the wait. `most_s` is how long one wait may take."""
    before = _duties()
    _local.duties = [*([] if alone else before), _Duty(duty, most_s)]
    try:
        yield
    finally:
        _local.duties = before


def wait_by(how: Wait) -> None:
    """Let this thread wait by `how` from now on, which returns once what it gets is done."""
    _local.how = how


def wait_for(work: Callable[[], T]) -> T:
    """What `work` returns, which waits for the network and asks no database.

    With duties it is done in a thread of its own, so that nothing that the network does keeps the duties from being
    done. Inside a transaction they are not done, since they could be lost with it. Raises TimeoutError if the wait
    takes too long; the thread ends by itself then, and what it returns is dropped.
    """
    duties, how = _duties(), getattr(_local, "how", None)
    # Whoever waits elsewhere for what a transaction has locked needs the place that this thread would give away.
    if not duties and (how is None or connection.in_atomic_block):
        return work()
    done: futures.Future[T] = futures.Future()
    threading.Thread(target=_settle, args=(done, work), name="network", daemon=True).start()
    if how is not None and not duties:
        how(done)
        return done.result()
    ends_at = time.monotonic() + min(duty.most_s for duty in duties)
    while not futures.wait([done], timeout=max(0.0, min(EVERY_S, ends_at - time.monotonic()))).done:
        signs_of_life.alive()
        if not connection.in_atomic_block:
            _do(duties)
        if time.monotonic() >= ends_at:
            raise TimeoutError(errno.ETIMEDOUT, "The answer takes too long")
    return done.result()


def _do(duties: list[_Duty]) -> None:
    _local.duties = []  # a duty that waits itself has none
    try:
        for duty in duties:
            duty.do()
    finally:
        _local.duties = duties


def _duties() -> list[_Duty]:
    duties: list[_Duty] = getattr(_local, "duties", [])
    return duties


def _settle(done: "futures.Future[Any]", work: Callable[[], Any]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001  (whoever waits gets it)
        done.set_exception(error)
    else:
        done.set_result(result)
