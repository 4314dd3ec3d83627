"""Locks of a DATA_DIR. The kernel frees them when their process ends, even by SIGKILL."""

import fcntl
import os
import time
from pathlib import Path
from typing import IO

SERVER = "serve.lock"
LOOK_S = 0.2


def take(path: Path) -> IO[str] | None:
    """The lock, which is held until it is closed; None if another process has it."""
    lock = path.open("w")
    # Whoever asks `is_taken` holds the lock for a moment.
    for wait_s in (LOOK_S, 0.0):
        if _flock(lock, fcntl.LOCK_EX):
            os.register_at_fork(after_in_child=lock.close)  # a fork would hold it too
            return lock
        time.sleep(wait_s)
    lock.close()
    return None


def is_taken(path: Path) -> bool:
    """Whether a process has the lock."""
    try:
        lock = path.open()
    except FileNotFoundError:
        return False
    with lock:
        return not _flock(lock, fcntl.LOCK_SH)


def _flock(lock: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
