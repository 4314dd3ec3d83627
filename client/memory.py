"""What this client remembers of earlier runs: which batch it made for which file, one state file for each server.

It saves looking through the server's list, and nothing more. A batch carries the digest of its input file in its
metadata, so a client without this memory, or on another machine, finds it there.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from client.api import Server
from client.trouble import Refused

DIGEST_KEY = "input_sha256"  # in the metadata of a batch
MOST_REMEMBERED = 1000
MOST_LISTED = 2000  # batches of the server's list that are looked through


class Memory:
    """The batches that were made for files at one server, which is known by its instance or else by its address."""

    def __init__(self, directory: Path, server_key: str) -> None:
        self.path = directory / f"{hashlib.sha256(server_key.encode()).hexdigest()[:32]}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Two commands for one file at once: the second waits, and finds the batch of the first. Where no state can be
        kept there is no lock either."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self.path.with_suffix(".lock").open("w")
        except OSError:
            yield
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def batch_of(self, digest: str) -> str | None:
        return self._read().get(digest)

    def remember(self, digest: str, batch_id: str) -> None:
        """Safe to repeat. A state file that cannot be written is left out: the server's list has the same."""
        known = {name: value for name, value in self._read().items() if name != digest} | {digest: batch_id}
        kept = dict(list(known.items())[-MOST_REMEMBERED:])
        with suppress(OSError):
            temporary = self.path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(kept))
            temporary.replace(self.path)

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return {str(name): str(value) for name, value in known.items()} if isinstance(known, dict) else {}


def find(server: Server, memory: Memory, digest: str) -> dict[str, Any] | None:
    """The newest batch of a file with this digest, as the server has it now; None if there is none that sent lines.

    A batch that failed in validation sent nothing, so it does not count: the models may be there by now.
    """
    remembered = memory.batch_of(digest)
    if remembered is not None:
        try:
            batch = server.batch(remembered)
        except Refused as error:
            if error.status != 404:
                raise
        else:
            if batch["status"] != "failed":
                return batch
    for batch in server.objects("batches", most=MOST_LISTED):
        # A retry has some of the lines alone, whatever its metadata says.
        is_whole = batch["status"] != "failed" and not batch.get("retry_of")
        if is_whole and (batch.get("metadata") or {}).get(DIGEST_KEY) == digest:
            return batch
    return None
