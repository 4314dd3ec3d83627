"""Connections whose socket another thread may shut. Shutting wakes a blocked reader, even before any header came, and
tells the server to stop computing."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Url

CONNECT_TIMEOUT_S = 5.0


def shut(sock: socket.socket) -> None:
    """Safe to call twice."""
    with suppress(OSError):  # it may be closed already
        sock.shutdown(socket.SHUT_RDWR)


class WatchedSocket:
    """The socket of one request, which any thread may shut for good: a socket connected later is shut at once."""

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


def watched_pools(on_connect: Callable[[socket.socket], None]) -> dict[str, type[HTTPConnectionPool]]:
    """urllib3's classes of pools by scheme, which give `on_connect` the socket of each new connection."""

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


def watched_pool(url: Url, on_connect: Callable[[socket.socket], None]) -> HTTPConnectionPool:
    """A pool for one connection at a time to the server of this address, which tries nothing again."""
    pool_class = watched_pools(on_connect)[url.scheme or "http"]
    return pool_class(url.host or "", url.port, maxsize=1, retries=False)
