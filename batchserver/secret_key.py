"""The key that signs admin sessions, if SECRET_KEY is not set: made once, kept in DATA_DIR, readable by us alone."""

import os
import secrets
import tempfile
from pathlib import Path

NAME = "secret_key"


def kept_in(directory: Path) -> str:
    """The key of this directory, made if there is none. Safe to run in several processes at once: all get one key."""
    path = directory / NAME
    if not path.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
    return path.read_text().strip()


def _make(path: Path) -> None:
    # Written whole and then linked: if two processes start at once, one wins, and neither reads half a key.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{NAME}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(50))
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
