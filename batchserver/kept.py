"""Random texts that are made once and kept in DATA_DIR, readable by us alone: the key that signs admin sessions, and
the name by which a client knows again whose server this is."""

import fcntl
import logging
import os
import secrets
import tempfile
from pathlib import Path

from common.disk import sync_directory

logger = logging.getLogger(__name__)

SECRET_KEY = "secret_key"
# The client's checkout reads it under this name too.
INSTANCE_ID = "instance_id"
# What Django's check of a deployment asks of a key. Ours have 67 characters.
LEAST_CHARACTERS, LEAST_DIFFERENT = 50, 5


def text(directory: Path, name: str) -> str:
    """The text of this name, made if there is none. Safe to run in several processes at once: all get one text.

    A file that cannot hold a text of ours (empty, short, or NUL bytes, as a power cut or a full disk leaves them) is
    replaced, which ends sessions and no more. Raises OSError, with what to do, if the file cannot be read or made.
    """
    path = directory / name
    try:
        while not _is_good(found := _read(path)):
            if found is None:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                _make(path)
            else:
                _replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OSError(
            error.errno, f"{path} cannot be used: {reason}. Let this user read and write it, or remove it"
        ) from error
    return str(found)


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None


def _is_good(found: str | None) -> bool:
    return (
        found is not None
        and len(found) >= LEAST_CHARACTERS
        and len(set(found)) >= LEAST_DIFFERENT
        and found.isprintable()
        and found.isascii()
    )


def _make(path: Path) -> None:
    # Written whole and then linked: if two processes start at once, one wins, and neither reads half a text.
    temporary = _written(path)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
    sync_directory(path.parent)


def _replace(path: Path) -> None:
    """Put a text in the place of a file that holds none, once, whoever else finds it so at the same time."""
    with path.open("r+b") as bad:
        fcntl.flock(bad, fcntl.LOCK_EX)
        if path.stat().st_ino != os.fstat(bad.fileno()).st_ino or _is_good(_read(path)):
            return  # another process was faster
        logger.warning("%s was damaged, and is made anew", path.name)
        os.replace(_written(path), path)
        sync_directory(path.parent)


def _written(path: Path) -> str:
    """A file beside `path` with a new text, on the disk. Nothing may be signed with a key that a power cut takes."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(50))
        file.flush()
        os.fsync(file.fileno())
    return temporary
