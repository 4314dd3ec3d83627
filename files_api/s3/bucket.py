"""One bucket of an S3 server, and all requests to it: with an end, and with errors that are OSErrors."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError  # noqa: TID251  (botocore lets some of its errors through)

from common import waits
from files_api.s3 import errors

logger = logging.getLogger(__name__)
T = TypeVar("T")

# A request that hangs is given up after some 25 s, and one to a server that is away after a second or two.
CONFIG: dict[str, Any] = {
    "connect_timeout": 3,
    "read_timeout": 8,
    "retries": {"mode": "standard", "total_max_attempts": 3},
    "tcp_keepalive": True,
    "max_pool_connections": 64,
    "signature_version": "s3v4",
    # Of other servers than Amazon's, many do not know the checksums that botocore adds by itself. Each piece that we
    # send has its MD5, which all of them check.
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "user_agent_extra": "ollama-batch-server",
}
# For a person who waits: one try.
PROBE: dict[str, Any] = {
    "connect_timeout": 1.5,
    "read_timeout": 2.5,
    "retries": {"mode": "standard", "total_max_attempts": 1},
}


class Bucket:
    """`make_client` gives a client for a Config. One client serves all threads of a process; a child that was forked
    makes its own."""

    def __init__(self, name: str, endpoint: str, make_client: Callable[[Config], Any]) -> None:
        self.name = name
        # The user and the password of an address are refused by the settings.
        self.where = f"The S3 storage at {endpoint or 'Amazon'}, bucket '{name}',"
        self._make_client = make_client
        self._lock = threading.Lock()
        self._clients: dict[tuple[int, bool], Any] = {}

    def client(self, *, probe: bool = False) -> Any:
        key = (os.getpid(), probe)
        if key not in self._clients:
            with self._lock:  # sessions are not made for several threads
                if key not in self._clients:
                    self._clients[key] = self._make_client(Config(**CONFIG | (PROBE if probe else {})))
        return self._clients[key]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def ask(self, operation: str, *, probe: bool = False, **parameters: Any) -> Any:
        """What the server says to this operation of boto3's client. Raises OSError. `probe`: with one try."""
        client = self.client(probe=probe)
        return self.wait_for(partial(getattr(client, operation), Bucket=self.name, **parameters))

    def pages(self, operation: str, **parameters: Any) -> Iterator[Any]:
        """All pages of a list. Raises OSError."""
        pages = iter(self.client().get_paginator(operation).paginate(Bucket=self.name, **parameters))
        while (page := self.wait_for(lambda: next(pages, None))) is not None:
            yield page

    def wait_for(self, work: Callable[[], T]) -> T:
        """What `work` returns, which waits for the server. Raises OSError."""
        with self.translating():
            return waits.wait_for(work)

    @contextmanager
    def translating(self) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError, HTTPError, TimeoutError) as error:
            raise errors.translated(error, self.where) from error
