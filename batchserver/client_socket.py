"""A client's connection: how long the server waits for it, and who waits."""

import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from batchserver.request_threads import SHORT_WAIT_S, close_connections

END_OF_HEAD = b"\r\n\r\n"
MOST_HEAD_BYTES = 2**16
# Of a body that nobody has read: so much is thrown away for the sake of keeping the connection.
MOST_REST_BYTES = 2**18
# What the kernel takes of an answer beside what is on its way to the client. Left alone it takes megabytes for each
# client that reads nothing: 256 of them had 960 MB.
MOST_UNSENT_BYTES = 2**18
LOOK_EVERY_S = 1.0
# The file system of the file cannot do it: the bytes are read and sent instead.
NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class Patience:
    """A client may stand still for `standstill_s`. Who has been waited for longer, all waits of a request together, has
    to have moved `least_bytes_per_s` in that time. Time in which nobody waits for the client does not count."""

    standstill_s: float
    least_bytes_per_s: int

    def is_over(self, stood_still_s: float, waited_s: float, moved_bytes: int) -> bool:
        if stood_still_s >= self.standstill_s:
            return True
        return waited_s > self.standstill_s and moved_bytes < waited_s * self.least_bytes_per_s


class ClientSocket(socket.socket):
    """The socket of one connection, which never blocks the loop. In a thread, a call that has to wait for the client
    stands aside, and ends with an OSError once the patience is over: TimeoutError for a client that does not send,
    BrokenPipeError for one that does not read.

    `ahead` are bytes of the connection that were read and are not used yet; `has_rest`: a body was not read to its end;
    `is_given_up`: the client did not take its answer; `waits_since`: when a thread began to wait for the client.
    """

    def __init__(
        self, accepted: socket.socket, patience: Patience, aside: Callable[[], AbstractContextManager[None]]
    ) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        super().setblocking(False)
        if self.family != socket.AF_UNIX and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MOST_UNSENT_BYTES)
        self.ahead = b""
        self.waits_since: float | None = None
        self.has_rest = False
        self.is_given_up = False
        self._patience = patience
        self._aside = aside
        self._request: Any = None
        self._may_wait = True
        self._owes_continue = False
        self._received = self._sent = 0
        self._waited_s = 0.0

    def setblocking(self, flag: bool) -> None:
        """Always without blocking, whatever gunicorn says."""

    def settimeout(self, value: float | None) -> None:
        """The patience is the timeout."""

    # In the loop

    def read_head(self) -> bool:
        """Read what has come; whether the head is whole. Raises OSError, also if the client is gone."""
        piece = super().recv(2**16)
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, "The client is gone.")
        searched = max(0, len(self.ahead) - len(END_OF_HEAD) + 1)
        self.ahead += piece
        return self.ahead.find(END_OF_HEAD, searched) >= 0

    def abort(self) -> None:
        """Close the connection, and throw away what the client has not taken, which may be megabytes."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def discard(self) -> bool:
        """Throw away what has come; whether there may be more."""
        # Linux does not even copy it.
        flags = socket.MSG_TRUNC if sys.platform == "linux" and self.family != socket.AF_UNIX else 0
        try:
            return self.recv_into(bytearray(2**16), 2**16, flags) > 0
        except BlockingIOError:
            return True
        except OSError:
            return False

    # In a thread

    def begin(self, request: Any) -> None:
        """A request begins. The client is told to go on with a body that it keeps back once somebody reads the body."""
        self._request = request
        self._owes_continue = bool(request._expected_100_continue)
        request._expected_100_continue = False  # or gunicorn tells it at once, before a refusal
        self._received, self._sent = 0, self._queued()  # of the answer before
        self._waited_s = 0.0

    def end_body(self) -> None:
        """The answer begins: what has come of the rest of the body is thrown away. If that is not all of it, the answer
        is the last one over this connection."""
        self._may_wait = False
        try:
            self.has_rest = not self._takes_rest()
        finally:
            self._may_wait = True
            self._owes_continue = False
        if self.has_rest:
            self._request.force_close()

    def _takes_rest(self) -> bool:
        body, taken = self._request.body, 0
        if body.failed:
            return False
        while taken <= MOST_REST_BYTES:
            try:
                piece = body.read(2**14)
            except Exception:  # noqa: BLE001  (of the parser's own classes too: the body is broken)
                return False
            if not piece:
                return True
            taken += len(piece)
        return False

    def recv(self, size: int, flags: int = 0) -> bytes:
        if flags:
            return super().recv(size, flags)
        if self.ahead:
            piece, self.ahead = self.ahead[:size], self.ahead[size:]
            return piece
        if self._owes_continue and self._may_wait:
            self._owes_continue = False
            self.sendall(CONTINUE)
        while True:
            try:
                piece = super().recv(size)
            except BlockingIOError:
                if not self._may_wait:
                    raise
            else:
                self._received += len(piece)
                return piece
            if not self._wait(select.POLLIN):
                raise TimeoutError(errno.ETIMEDOUT, "The client sent its request too slowly.")

    def send(self, data: Any, flags: int = 0) -> int:
        self.sendall(data, flags)
        return len(data)

    def sendall(self, data: Any, flags: int = 0) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self._sending(partial(super().send, rest, flags)) :]

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        end = os.fstat(file.fileno()).st_size if count is None else offset + count
        begin = offset
        while offset < end:
            piece = min(end - offset, 2**24)
            try:
                sent = self._sending(partial(os.sendfile, self.fileno(), file.fileno(), offset, piece))
            except OSError as error:
                if error.errno not in NO_SENDFILE:
                    raise
                content = os.pread(file.fileno(), min(piece, 2**18), offset)
                sent = len(content)
                self.sendall(content)
            if not sent:
                break  # the file became shorter
            offset += sent
        return offset - begin

    def _sending(self, send: Callable[[], int]) -> int:
        while True:
            try:
                sent = send()
            except BlockingIOError:
                if not self._wait(select.POLLOUT):
                    self.is_given_up = True
                    raise BrokenPipeError(errno.EPIPE, "The client takes the answer too slowly.") from None
            else:
                self._sent += sent
                return sent

    def _moved(self) -> int:
        """Bytes of the request and its answer that the client has sent and taken."""
        return self._received + self._sent - self._queued()

    def _queued(self) -> int:
        """Bytes that the client's system has not taken. The kernel here may hold megabytes, and calls that sent."""
        try:
            [queued] = struct.unpack("i", fcntl.ioctl(self, termios.TIOCOUTQ, b"\0" * 4))
        except (OSError, AttributeError):
            return 0
        return int(queued)

    def _wait(self, event: int) -> bool:
        """Wait for the client; False once the patience is over."""
        poll = select.poll()
        poll.register(self, event)
        started = stood_since = time.monotonic()
        before, now = self._moved(), started
        with self._aside():
            self.waits_since = started
            try:
                ready = poll.poll(SHORT_WAIT_S * 1000)
                if not ready:
                    close_connections()
                while not ready:
                    step_s = min(LOOK_EVERY_S, self._patience.standstill_s / 4)
                    ready, now = poll.poll(step_s * 1000), time.monotonic()
                    if (moved := self._moved()) > before:
                        before, stood_since = moved, now
                    if not ready and self._patience.is_over(now - stood_since, self._waited_s + now - started, before):
                        return False
            finally:
                self.waits_since = None
                self._waited_s += time.monotonic() - started
        return not self._patience.is_over(0.0, self._waited_s, before)
