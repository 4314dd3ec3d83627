"""Random texts that are made once and kept in DATA_DIR, readable by us alone: the key that signs admin sessions, and
the name by which a client knows again whose server this is."""

import os
import secrets
import tempfile
from pathlib import Path

SECRET_KEY = "secret_key"
# The client's checkout reads it under this name too.
INSTANCE_ID = "instance_id"


def text(directory: Path, name: str) -> str:
    """The text of this name, made if there is none. Safe to run in several processes at once: all get one text."""
    path = directory / name
    if not path.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
    return path.read_text().strip()


def _make(path: Path) -> None:
    # Written whole and then linked: if two processes start at once, one wins, and neither reads half a text.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(50))
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
