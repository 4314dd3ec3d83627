"""Requests to the model server, many at once: one thread with many sockets, by libcurl.

A thread a request would fight the drive's thread for Python's lock: with 64 in flight, a statement to the database
waits 0.7 ms for the lock alone.
"""

import logging
import selectors
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

import pycurl

from batches.backends import names
from batches.backends.connection import Cut, ReplyTooLarge, Server
from batches.backends.handles import Handles
from common.sockets import CONNECT_TIMEOUT_S

logger = logging.getLogger(__name__)

# Errors of a request that the server never saw; after any other error, the server may have seen it.
NEVER_SENT = {
    pycurl.E_COULDNT_RESOLVE_PROXY,
    pycurl.E_COULDNT_RESOLVE_HOST,
    pycurl.E_COULDNT_CONNECT,
    pycurl.E_OPERATION_TIMEDOUT,  # of connecting: no other time is limited
    pycurl.E_SSL_CONNECT_ERROR,
    pycurl.E_PEER_FAILED_VERIFICATION,
    pycurl.E_SSL_CERTPROBLEM,
    pycurl.E_SSL_CIPHER,
    pycurl.E_SSL_CACERT_BADFILE,
}


class NeverSent(Exception):
    """The server did not take the connection."""


class Broken(Exception):
    """The server broke the connection, or sent what is no HTTP. The text says which, and holds nothing of the body."""


class Answer(NamedTuple):
    status: int
    content: bytes
    retry_after_s: float  # 0 if the server did not ask for a wait


Outcome = Answer | Cut | ReplyTooLarge | NeverSent | Broken


class Doubtful(NamedTuple):
    """What may be the answer to an earlier request over the same connection."""

    outcome: Answer | ReplyTooLarge


class _Order(NamedTuple):
    request: object
    url: str
    content: bytes
    done: Callable[[Outcome | Doubtful], None]
    echoes_id: bool  # the answer bears the X-Request-Id
    given_up_at: float  # by the monotonic clock, unless its server's name is found before

    @property
    def host(self) -> tuple[str, int]:
        url = urlsplit(self.url)
        return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


@dataclass(eq=False)
class _Transfer:
    order: _Order
    handle: pycurl.Curl
    content: bytearray  # of the answer
    request_id: str  # its X-Request-Id; empty: it has a connection of its own
    is_too_large: bool = False

    @property
    def has_its_id(self) -> bool:
        """What was answered bears the request's id, if it was sent with one."""
        return self.request_id.encode() in self.content

    @property
    def has_reused_a_connection(self) -> bool:
        return bool(self.handle.getinfo(pycurl.NUM_CONNECTS) == 0)


class Transfers:
    """POSTs to one server or to those of one card. Uses neither proxies nor .netrc of the environment, and follows no
    redirect.

    Each has a connection of its own: Connection says why. Only where an answer bears the id of its request are
    connections kept, which spares a server of short answers a part of its work. An answer without the id that came over
    a connection of earlier requests is doubtful.

    The thread starts with the first `post`. `close` ends it; what was in flight is cut.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._handles = Handles(server)
        self._orders: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._is_awake = False
        self._is_closed = False
        # For the thread alone, from here on.
        self._keeps_connections = True
        self._running: dict[object, _Transfer] = {}  # by request
        self._by_handle: dict[pycurl.Curl, _Transfer] = {}
        self._watched: set[int] = set()
        self._due: float | None = None  # when libcurl wants to be called without an event
        self._names = names.Names(lambda *found: self._order(lambda: self._name_found(*found)))
        self._nameless: dict[object, _Order] = {}  # by request, in the order in which they are given up

    def post(
        self,
        request: object,
        url: str,
        content: bytes,
        done: Callable[[Outcome | Doubtful], None],
        *,
        echoes_id: bool = False,
    ) -> None:
        """Send `content`, and call `done` with what became of it, in the thread of the transfers, which has to go on at
        once. `request` names the transfer for `cut`; `echoes_id`: its answer bears the X-Request-Id that it is sent
        with, so that it may go over a kept connection. There is no deadline but that of connecting."""
        if self._thread is None:
            self._reader, self._writer = socket.socketpair()
            self._reader.setblocking(False)
            self._writer.setblocking(False)
            # A daemon: a transfer that cannot be ended must not keep the process from exiting.
            self._thread = threading.Thread(target=self._run, name="transfers", daemon=True)
            self._thread.start()
        order = _Order(request, url, content, done, echoes_id, time.monotonic() + CONNECT_TIMEOUT_S)
        self._order(lambda: self._begin(order))

    def cut(self, request: object) -> None:
        """End the transfer of `request`, and its connection with it. Does nothing if there is none."""
        if self._thread is not None:
            self._order(lambda: self._cut(request))

    def close(self) -> None:
        """Safe to call twice."""
        if self._thread is not None:
            self._order(self._stop)

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        if self._is_closed:
            self._carry_out()  # the thread has ended
        elif not self._is_awake:
            self._is_awake = True
            with suppress(OSError):  # full: it is awake; closed: it has ended
                self._writer.send(b"\0")

    # In the thread

    def _run(self) -> None:
        try:
            self._loop()
        except Exception as error:  # noqa: BLE001  (the drive waits for the end of every transfer)
            logger.error("the thread of the transfers ended with %s", type(error).__name__)
            self._is_closed = True
            ended = list(self._running.values())
            self._running.clear()
            for order in [*(transfer.order for transfer in ended), *self._take_nameless()]:
                order.done(Broken(f"internal error: {type(error).__name__}"))
            self._carry_out()

    def _loop(self) -> None:
        self._multi = pycurl.CurlMulti()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._reader, selectors.EVENT_READ)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        while not self._is_closed:
            for key, events in self._selector.select(self._patience_s()):
                if key.fileobj is self._reader:
                    self._take_orders()
                else:
                    self._multi.socket_action(key.fd, events)  # EVENT_READ and EVENT_WRITE are CSELECT_IN and _OUT
            if self._due is not None and self._due <= time.monotonic():
                self._due = None
                self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
            self._collect()
            self._give_up()
        for transfer in list(self._running.values()):
            self._end(transfer, Cut())
        for order in self._take_nameless():
            order.done(Cut())
        self._multi.close()
        self._selector.close()
        self._reader.close()
        self._writer.close()

    def _patience_s(self) -> float | None:
        due = [order.given_up_at for order in self._nameless.values()][:1]
        if self._due is not None:
            due.append(self._due)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _take_orders(self) -> None:
        with suppress(BlockingIOError):
            self._reader.recv(2**12)
        # Before the orders are read: another thread that orders now wakes this one again.
        self._is_awake = False
        self._carry_out()

    def _carry_out(self) -> None:
        """Once the thread has ended, whoever orders calls this too: one of them gets each order."""
        while True:
            try:
                order = self._orders.popleft()
            except IndexError:
                return
            order()

    def _stop(self) -> None:
        self._is_closed = True

    def _watch(self, event: int, fd: int, _multi: object, _data: object) -> None:
        if event == pycurl.POLL_REMOVE:
            self._watched.discard(fd)
            with suppress(KeyError, ValueError):
                self._selector.unregister(fd)
            return
        events = (event & pycurl.POLL_IN and selectors.EVENT_READ) | (event & pycurl.POLL_OUT and selectors.EVENT_WRITE)
        if fd in self._watched:
            self._selector.modify(fd, events)
        else:
            self._watched.add(fd)
            self._selector.register(fd, events)

    def _set_timer(self, timeout_ms: int) -> None:
        self._due = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1000

    def _begin(self, order: _Order) -> None:
        if self._is_closed:
            order.done(Broken("no request can be sent any more"))
            return
        try:
            host, port = order.host
            addresses: list[str] | None = []
            if not names.is_address(host):
                addresses = self._names.addresses(host, port)
            if addresses is None:
                self._nameless[order.request] = order
                return
            is_kept = order.echoes_id and self._keeps_connections
            where = [_at(host, port, addresses)] if addresses else []
            transfer = self._prepared(order, where, uuid.uuid4().hex if is_kept else "")
        except (pycurl.error, ValueError) as error:
            # Such as a letter in the address or in the key that HTTP cannot carry.
            order.done(NeverSent(type(error).__name__))
            return
        self._running[order.request] = self._by_handle[transfer.handle] = transfer
        self._multi.add_handle(transfer.handle)

    def _name_found(self, host: str, port: int, addresses: list[str]) -> None:
        self._names.learn(host, port, addresses)
        for order in [each for each in self._nameless.values() if each.host == (host, port)]:
            del self._nameless[order.request]
            if addresses:
                self._begin(order)
            else:
                order.done(NeverSent("the name of the server stands for no address"))

    def _give_up(self) -> None:
        """What waits for a name for too long."""
        for order in list(self._nameless.values()):
            if order.given_up_at > time.monotonic():
                return
            del self._nameless[order.request]
            order.done(NeverSent("the name of the server was not told in time"))

    def _take_nameless(self) -> list[_Order]:
        orders = list(self._nameless.values())
        self._nameless.clear()
        return orders

    def _prepared(self, order: _Order, where: list[str], request_id: str) -> _Transfer:
        content = bytearray()
        most_bytes = self._server.max_reply_bytes

        def write(chunk: bytes) -> int:
            # Counted after decompression: a small reply may unpack into a huge one.
            if len(content) + len(chunk) > most_bytes:
                transfer.is_too_large = True
                return 0
            content.extend(chunk)
            return len(chunk)

        handle = self._handles.take(order.url, where, order.content, write, request_id)
        transfer = _Transfer(order, handle, content, request_id)
        return transfer

    def _cut(self, request: object) -> None:
        if transfer := self._running.get(request):
            self._end(transfer, Cut())
        elif order := self._nameless.pop(request, None):
            order.done(Cut())

    def _collect(self) -> None:
        more = 1
        while more:
            more, whole, failed = self._multi.info_read()
            for handle in whole:
                transfer = self._by_handle[handle]
                status, retry_after_s = handle.getinfo(pycurl.RESPONSE_CODE), float(handle.getinfo(pycurl.RETRY_AFTER))
                if status < 300 and not transfer.has_its_id:
                    self._keeps_connections = False  # an earlier version, or a proxy that puts an id of its own in
                self._end(transfer, Answer(status, bytes(transfer.content), retry_after_s))
            for handle, code, text in failed:
                transfer = self._by_handle[handle]
                if code == pycurl.E_SEND_FAIL_REWIND:
                    self._keeps_connections = False  # the server died, or ends kept connections sooner than we do
                self._end(transfer, _error(transfer, code, text))

    def _end(self, transfer: _Transfer, outcome: Outcome) -> None:
        handle = transfer.handle
        is_doubtful = not transfer.has_its_id and transfer.has_reused_a_connection
        del self._running[transfer.order.request], self._by_handle[handle]
        self._multi.remove_handle(handle)  # closes its connection, unless that is kept and the answer is whole
        self._handles.put_back(handle, transfer.request_id)
        if isinstance(outcome, NeverSent):
            self._names.forget(*transfer.order.host)
        if is_doubtful and isinstance(outcome, Answer | ReplyTooLarge):
            transfer.order.done(Doubtful(outcome))
        else:
            transfer.order.done(outcome)


def _at(host: str, port: int, addresses: list[str]) -> str:
    """In the words of libcurl: a name, and where it is meanwhile."""
    return f"{host}:{port}:" + ",".join(f"[{each}]" if ":" in each else each for each in addresses)


def _error(transfer: _Transfer, code: int, text: str) -> Outcome:
    if transfer.is_too_large:
        return ReplyTooLarge()
    if code == pycurl.E_SEND_FAIL_REWIND:
        text = "it closed a kept connection without an answer"
    return NeverSent(text) if code in NEVER_SENT else Broken(text)
