"""A disk: what is on it for good, and what it says when it fails, of files and of a database that lies on it; and what
a storage of files says that is no disk."""

import errno
import os
from pathlib import Path

from django.db import DatabaseError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP, errno.ENXIO)
OUT_OF_ORDER = (errno.EIO, errno.ENOENT, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EUCLEAN)
# Any other error of the system is one of a connection, or a bug.
OF_FILES = (*NO_ROOM, *FORBIDDEN, *IN_THE_WAY, *OUT_OF_ORDER)

# SQLite has messages for these, and Python's errors no class. Postgres has codes (disk_full, read_only_sql_transaction,
# io_error).
_SQLITE_MESSAGES = {
    "database or disk is full": "Make room on the disk of DATA_DIR",
    "attempt to write a readonly database": "Let the user that runs the server write in DATA_DIR",
    "unable to open database file": "Let the user that runs the server write in DATA_DIR",
    "disk I/O error": "See that the disk of DATA_DIR is there and in order",
}
_POSTGRES_CODES = {
    "53100": ("The disk of Postgres is full", "Make room there"),
    "25006": ("Postgres takes no changes", "Let DATABASE_URL name a server that does"),
    "58030": ("The disk of Postgres fails", "See that it is in order"),
}


class RemoteError(OSError):
    """An error of a storage of files that is no disk of this machine. `strerror` names the storage and says what is
    wrong with it, `advice` what to do; neither has a full stop, or a key. `code` is what the storage calls it."""

    def __init__(self, number: int, reason: str, advice: str, code: str = "") -> None:
        super().__init__(number, reason)
        self.advice, self.code = advice, code

    @property
    def is_of_settings(self) -> bool:
        """A person has to change something, here or there; anything else may pass by itself."""
        return self.errno in (errno.EACCES, errno.ENODEV)


class RemoteFileMissing(RemoteError, FileNotFoundError):
    """A file is not in a storage that answers."""


def sync_directory(directory: Path) -> None:
    """Let the names in the directory survive a power cut. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def trouble(error: OSError) -> str:
    """Why bytes cannot be read or written now, and what to do, in sentences for a person; the text names no file."""
    reason = error.strerror or type(error).__name__
    if isinstance(error, RemoteError):
        advice = error.advice
    elif error.errno in NO_ROOM:
        advice = "Make room on the disk of DATA_DIR"
    elif error.errno in FORBIDDEN:
        advice = "Let the user that runs the server read and write in DATA_DIR/files"
    elif error.errno in IN_THE_WAY:
        advice = "Something else lies in its place in DATA_DIR/files: move that away"
    else:
        advice = "See that the disk of DATA_DIR/files is there and in order"
    return f"{reason}. {advice}; it is tried again by itself."


def database_trouble(error: DatabaseError) -> str:
    """Why the disk of the database takes nothing now, and what to do; empty if the error is another one."""
    code = getattr(error.__cause__, "sqlstate", None)
    if code in _POSTGRES_CODES:
        reason, advice = _POSTGRES_CODES[code]
        return f"{reason}. {advice}."
    message = next((each for each in _SQLITE_MESSAGES if str(error).startswith(each)), None)
    return f"The database cannot be written: {message}. {_SQLITE_MESSAGES[message]}." if message else ""
