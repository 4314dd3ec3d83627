"""The signs that a process gives to whoever watches over it, through a pipe that it was started with.

A process that is stopped or deadlocked gives none. One that waits for a lock of the database gives them: the wait has
an end on each database (`batchserver.env.POSTGRES`), and then `common.database.retrying` tries again. Through a pipe,
because a file's time is that of a clock that can jump, and cannot be changed on a disk that has become read-only.
Without a watcher nothing is done.
"""

import os
import stat
import time
from contextlib import suppress

EVERY_S = 2.0

_pipe: int | None = None
_of: int | None = None
_is_at_work = False
_given_at = float("-inf")


def give_to(descriptor: int, *, of: int | None = None) -> None:
    """Give signs there from now on, in children that are forked too; nowhere if it is 0 or no pipe.

    The signs are those of the process `of`; of each process its own if it is None.
    """
    global _pipe, _of
    _pipe, _of = None, of
    with suppress(OSError):
        if descriptor and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.set_inheritable(descriptor, False)
            _pipe = descriptor


def begin() -> None:
    """This process is at work from now on, and calls `alive` until it is `done`: silence means that it hangs."""
    global _is_at_work
    _is_at_work = True
    _tell("alive")


def alive() -> None:
    """Cheap to call often, and of no effect in a process that is not at work."""
    if _is_at_work and time.monotonic() >= _given_at + EVERY_S:
        _tell("alive")


def done() -> None:
    """This process is idle from now on, and its silence means nothing."""
    global _is_at_work
    _is_at_work = False
    _tell("done")


def _tell(what: str) -> None:
    global _given_at
    _given_at = time.monotonic()
    if _pipe is not None:
        # The watcher is gone, or has stood still for so long that the pipe is full.
        with suppress(OSError):
            os.write(_pipe, f"{_of or os.getpid()} {what}\n".encode())
