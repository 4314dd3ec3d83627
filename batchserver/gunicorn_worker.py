"""gunicorn's worker with threads, whose loop waits for clients and gives signs of life."""

import errno
import json
import resource
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from batchserver.client_socket import END_OF_HEAD, MOST_HEAD_BYTES, ClientSocket, Patience
from batchserver.request_kinds import Kind
from batchserver.request_threads import Queue, RequestThreads
from common import signs_of_life
from common.addresses import ip_of, is_among, network_of
from common.errors import ApiError

# Threads that wait for clients, beside those at work. Beyond them, who has been waited for longest is cut off.
MOST_WAITING = 1024
# A client that is still sending when it is refused would see a broken connection instead of the answer, so what comes
# is thrown away for so long.
LINGER_S = 30.0
# For the client to close a connection when it has had the last answer, and, when the server stops, for a request that
# is on its way.
LAST_S, STOP_S = 2.0, 1.0
LOOK_EVERY_S = 0.25
# A new connection's first request comes within that time, or the client is a slow one.
PROMPT_S = 5.0
# What accept(2) reports of a connection that is lost already, or that the system has no room for now.
NOT_ACCEPTED = (
    *(errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPERM, errno.ENOBUFS, errno.ENOMEM, errno.EPROTO),
    *(errno.ENOPROTOOPT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EOPNOTSUPP),
)
# Of requests of one kind from one address so many begin at once, and of those that wait for a model as many as leave
# these places to all others. One process of Python has one core, which all that are at work share.
AT_ONCE = 8
SPARE_FILES = 512  # for files, databases and the model server, beside connections


class Connection(TConn):  # type: ignore[misc]
    """A client's connection. While the loop has it, it waits `until` then."""

    def __init__(self, cfg: Any, client: ClientSocket, address: Any, server: Any) -> None:
        super().__init__(cfg, client, address, server)
        self.until = 0.0
        self.since = 0.0  # when the loop got it, or the first byte of a request on it
        self.is_lingering = False
        self.data_ready = True  # a thread gets it when its request has begun
        self.ip = ip_of(address[0]) if address else None  # None: a Unix socket
        self.network = network_of(self.ip) if self.ip else ""
        self.counted_as = ""

    @property
    def has_begun(self) -> bool:
        return bool(self.sock.ahead)

    @property
    def awaits_head(self) -> bool:
        """A request is on its way, or is the first one: the connection is not only kept."""
        return self.has_begun or self.parser is None


class Worker(ThreadWorker):  # type: ignore[misc]
    """Waits for clients itself: the loop has each connection until the head of a request is whole, and after a refusal
    until the client has had the answer. A thread has a request only then, and stands aside while its client is slow
    (`RequestThreads`). So no number of slow clients keeps another from being answered.

    Gives signs of life while its loop goes round, however long requests take, and when all places are taken. The signs
    are those of gunicorn's main process, which has to start a worker that ended again: if it does not, there are none.
    """

    def run(self) -> None:
        from django.conf import settings  # of the application, which is loaded by now

        self.worker_connections = self.max_keepalived = _allow_files(settings.MAX_CONNECTIONS)
        self._patience = Patience(settings.CLIENT_TIMEOUT_S, settings.CLIENT_LEAST_BYTES_PER_S)
        self._keep_alive_s = settings.KEEP_ALIVE_S
        self._most_of_one = settings.MAX_CONNECTIONS_PER_ADDRESS
        self._proxies = settings.TRUSTED_PROXIES
        signs_of_life.give_to(settings.SIGNS_OF_LIFE_FD, of=self.ppid)
        signs_of_life.begin()
        super().run()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._held: dict[Connection, None] = {}  # by the loop, in the order in which they came to it
        self._in_threads: set[Connection] = set()
        self._of_address: Counter[str] = Counter()
        self._looks_at = 0.0
        self._stops_at = float("inf")

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.wsgi: Callable[..., Any] = partial(_answer, self.wsgi)

    def get_thread_pool(self) -> RequestThreads:
        return RequestThreads(self.cfg.threads, self.cfg.threads + MOST_WAITING)

    def notify(self) -> None:
        """Called by the loop, each second at least."""
        super().notify()
        signs_of_life.alive()

    # In the loop

    def accept(self, listener: socket.socket) -> None:
        try:
            accepted, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._make_room()
            elif error.errno not in NOT_ACCEPTED:
                raise
            return
        client = ClientSocket(accepted, self._patience, self.tpool.standing_aside)
        connection = Connection(self.cfg, client, address, listener.getsockname())
        self.nr_conns += 1
        connection.counted_as = connection.network if self._is_bounded(connection) else ""
        self._of_address[connection.counted_as] += 1
        if connection.counted_as and self._of_address[connection.counted_as] > self._most_of_one:
            self._refuse(connection, 429, "Too many connections from this address (MAX_CONNECTIONS_PER_ADDRESS).")
        elif self.nr_conns >= self.worker_connections and not self._make_room():
            self._refuse(connection, 503, "Too many connections (MAX_CONNECTIONS). Try again.")
        else:
            self._await_head(connection, self._patience.standstill_s)

    def finish_request(self, conn: Connection, fs: "Future[Any]") -> None:
        """A thread is done with the connection: it is kept for the next request if the result says so."""
        self._in_threads.discard(conn)
        try:
            is_kept = fs.result()
        except Exception:  # noqa: BLE001  (logged by the thread; nothing is known of the connection)
            is_kept = False
        try:
            if is_kept:
                conn.sock.ahead = conn.parser.unreader.take_buffered() + conn.sock.ahead
                self._await_head(conn, self._keep_alive_s)
            elif conn.sock.is_given_up:
                conn.sock.abort()
                self._end(conn)
            else:
                self._linger(conn, LINGER_S if conn.sock.has_rest else LAST_S)
        except OSError:
            self._end(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close what has waited long enough; everything if forced."""
        now = time.monotonic()
        if now < self._looks_at and not force:
            return
        self._looks_at = now + LOOK_EVERY_S
        if not self.alive:
            self._stops_at = min(self._stops_at, now + STOP_S)
        for connection in list(self._held):
            if force or now >= min(connection.until, self._stops_at):
                if connection.has_begun and not connection.is_lingering:
                    _say(connection.sock, 408, "The request did not come in time (CLIENT_TIMEOUT_S).")
                self._release(connection)
                self._end(connection)
        if self.tpool.lacks_threads:
            self._cut_who_waits_longest()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(timeout if self.alive else min(timeout, LOOK_EVERY_S))

    def _await_head(self, connection: Connection, for_s: float) -> None:
        if END_OF_HEAD in connection.sock.ahead:
            self._hand_over(connection)
        else:
            self._hold(connection, for_s, self._on_head)

    def _on_head(self, connection: Connection) -> None:
        had_begun = connection.has_begun
        try:
            is_whole = connection.sock.read_head()
        except BlockingIOError:
            return
        except OSError:
            self._release(connection)
            self._end(connection)
            return
        if is_whole:
            self._release(connection)
            self._hand_over(connection)
        elif len(connection.sock.ahead) > MOST_HEAD_BYTES:
            self._release(connection)
            self._refuse(connection, 431, "The head of the request is too large.")
        elif not had_begun:
            connection.since = time.monotonic()
            connection.until = connection.since + self._patience.standstill_s

    def _hand_over(self, connection: Connection) -> None:
        self._in_threads.add(connection)
        kind = Kind.of(connection.sock.ahead)
        at_once = max(AT_ONCE, self.cfg.threads - AT_ONCE) if kind is Kind.MODEL else AT_ONCE
        queue = Queue((connection.network, kind), at_once)
        done = self.tpool.submit(queue, self.handle, connection)
        done.add_done_callback(partial(self.method_queue.defer, self.finish_request, connection))

    def _linger(self, connection: Connection, for_s: float) -> None:
        """The answer was the last one: let the client have it before the connection is closed."""
        connection.sock.shutdown(socket.SHUT_WR)
        connection.is_lingering = True
        self._hold(connection, for_s, self._on_rest)

    def _on_rest(self, connection: Connection) -> None:
        if not connection.sock.discard():
            self._release(connection)
            self._end(connection)

    def _hold(self, connection: Connection, for_s: float, on_bytes: Callable[[Connection], None]) -> None:
        connection.since = time.monotonic()
        connection.until = connection.since + for_s

        def on_event(_: Any) -> None:
            # A connection that was accepted in the same round may have had this one closed.
            if connection in self._held:
                on_bytes(connection)

        self.poller.register(connection.sock, selectors.EVENT_READ, on_event)
        self._held[connection] = None

    def _release(self, connection: Connection) -> None:
        del self._held[connection]
        self.poller.unregister(connection.sock)

    def _end(self, connection: Connection) -> None:
        self.nr_conns -= 1
        self._of_address[connection.counted_as] -= 1
        if not self._of_address[connection.counted_as]:
            del self._of_address[connection.counted_as]
        connection.close()

    def _refuse(self, connection: Connection, status: int, reason: str) -> None:
        _say(connection.sock, status, reason)
        try:
            self._linger(connection, LAST_S)
        except OSError:
            self._end(connection)

    def _make_room(self) -> bool:
        """Close the connection that is missed least: one that lingers, one whose head comes slowly, one that is kept
        for a next request, one that is new; else cut a client that is waited for, which ends a moment later. False if
        there is none."""
        slow_before = time.monotonic() - PROMPT_S

        def order(each: Connection) -> tuple[int, float]:
            if each.is_lingering:
                return 0, each.until
            if each.awaits_head and each.since < slow_before:
                return 1, each.until
            return (3 if each.awaits_head else 2), each.until

        found = min(self._held, key=order, default=None)
        if found is None:
            return self._cut_who_waits_longest()
        self._release(found)
        self._end(found)
        return True

    def _cut_who_waits_longest(self) -> bool:
        waiting = [(since, each) for each in self._in_threads if (since := each.sock.waits_since) is not None]
        if not waiting:
            return False
        _, connection = min(waiting, key=lambda pair: pair[0])
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
        return True

    def _is_bounded(self, connection: Connection) -> bool:
        """So many connections and no more: not for those of this machine and of trusted proxies, which bring those of
        many clients."""
        if not self._most_of_one or connection.ip is None:
            return False
        return not connection.ip.is_loopback and not is_among(connection.ip, self._proxies)

    # In a thread

    def handle_request(self, req: Any, conn: Connection) -> bool:
        conn.sock.begin(req)
        return bool(super().handle_request(req, conn))

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:
        """The body was read to its end before the answer, or the answer said that the connection is closed."""
        return keepalive and not conn.sock.has_rest


def _answer(
    application: Callable[..., Iterable[bytes]], environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    response = application(environ, start_response)
    environ["gunicorn.socket"].end_body()
    return response


_TYPES = {429: "rate_limit_error", 503: "server_error"}


def _say(client: ClientSocket, status: int, reason: str) -> None:
    """Send a whole answer if the client can take it now."""
    body = json.dumps(ApiError(reason, type=_TYPES.get(status, "invalid_request_error")).envelope)
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    again = "Retry-After: 5\r\n" if status in _TYPES else ""
    with suppress(OSError):
        socket.socket.send(client, f"{head}{again}Content-Length: {len(body)}\r\n\r\n{body}".encode())


def _allow_files(connections: int) -> int:
    """Let this process open a file for each connection; how many connections that makes, if the system allows fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return min(connections, allowed - min(SPARE_FILES, allowed // 2))
