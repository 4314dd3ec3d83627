"""Connections whose socket another thread may shut. Shutting wakes a blocked reader, even before any header came, and
tells the server to stop computing."""

import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util import Url

CONNECT_TIMEOUT_S = 5.0
MOST_TRIED = 3  # addresses of one name


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


class NotPublic(OSError):
    """A name stands for an address of this machine or of a network that is not the internet."""


def public_addresses(host: str, port: int) -> list[str]:
    """The addresses that the name stands for now. Raises NotPublic if one of them is none of the internet, and OSError
    if there is none. What is connected to is one of these: asked again, the name may stand for another."""
    found = [str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found or not all(map(_is_public, found)):
        raise NotPublic("the address is not one of the internet")
    return found


# The internet has its IPv6 addresses here alone (IANA's registry), without those of documents, which Python's list
# lacks before 3.13. What Python calls global has site-local addresses too, and those that translators hand on to IPv4.
_INTERNET = ipaddress.IPv6Network("2000::/3")
_OF_DOCUMENTS = ipaddress.IPv6Network("3fff::/20")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return _is_global(address)
    # What reaches an address of IPv4 is as public as that.
    within = address.ipv4_mapped or address.sixtofour
    if address in _NAT64:
        within = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if within is not None:
        return _is_global(within)
    return address in _INTERNET and address not in _OF_DOCUMENTS and _is_global(address)


def _is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_global and not address.is_multicast


def watched_pools(
    on_connect: Callable[[socket.socket], None], *, addresses: Sequence[str] = ()
) -> dict[str, type[HTTPConnectionPool]]:
    """urllib3's classes of pools by scheme, which give `on_connect` the socket of each new connection. With `addresses`
    it goes to the first of them that can be reached, of MOST_TRIED, whatever the name in the URL stands for now;
    certificates are still those of the name."""
    tried = addresses[:MOST_TRIED]

    class Http(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            if not tried:
                return super()._new_conn()
            for address in tried[:-1]:
                with suppress(NewConnectionError, ConnectTimeoutError):
                    return self._connect_to(address)
            return self._connect_to(tried[-1])

        def _connect_to(self, address: str) -> socket.socket:
            name, self._dns_host = self._dns_host, address
            try:
                return super()._new_conn()
            finally:
                self._dns_host = name

        def connect(self) -> None:
            super().connect()
            on_connect(self.sock)

    class Https(Http, HTTPSConnection):
        pass

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    return {"http": HttpPool, "https": HttpsPool}


def watched_pool(url: Url, on_connect: Callable[[socket.socket], None]) -> HTTPConnectionPool:
    """A pool for one connection at a time to the server of this address, which tries nothing again."""
    pool_class = watched_pools(on_connect)[url.scheme or "http"]
    return pool_class(url.host or "", url.port, maxsize=1, retries=False)
