"""Connections whose socket another thread may shut: that wakes a blocked reader, before any header came too, and tells
the server to stop computing."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

CONNECT_TIMEOUT_S = 5.0


def shut(sock: socket.socket) -> None:
    """Safe to call twice."""
    with suppress(OSError):  # it may be closed already
        sock.shutdown(socket.SHUT_RDWR)


class WatchedSocket:
    """The socket of one request, from any thread shut for good: one that is connected later is shut at once."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None
        self.is_shut = False

    @property
    def was_connected(self) -> bool:
        return self._socket is not None

    def connected(self, sock: socket.socket) -> None:
        with self._guard:
            self._socket = sock
            if self.is_shut:
                shut(sock)

    def shut(self) -> None:
        """Safe to call twice."""
        with self._guard:
            self.is_shut = True
            if self._socket is not None:
                shut(self._socket)


def watched_pools(on_connect: Callable[[socket.socket], None]) -> dict[str, Any]:
    """Pools of urllib3 by scheme, that tell `on_connect` of the socket of each new connection."""

    class Http(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            on_connect(self.sock)

    class Https(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            on_connect(self.sock)

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    return {"http": HttpPool, "https": HttpsPool}


class WatchedAdapter(HTTPAdapter):
    """Tells `on_connect` which socket is in use. There is one at a time: the pool holds one connection."""

    def __init__(self, on_connect: Callable[[socket.socket], None]) -> None:
        self.on_connect = on_connect
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = watched_pools(self.on_connect)
