"""A call for a client who waits: the answer is handed on as it comes, and ended at once if the client is gone."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from urllib3 import Timeout
from urllib3.util import parse_url

from batches.backends.connection import own_headers
from common.sockets import CONNECT_TIMEOUT_S, WatchedSocket, watched_pool

LOOK_EVERY_S = 0.5
READ_AHEAD = 64  # pieces; beyond these, the model server waits for a client that reads slowly


class NotConnected(Exception):
    """The server did not take the connection, so it saw no byte of the request."""


class Broken(Exception):
    """The server broke the connection, or said nothing for too long. The text says which, for the client."""


@dataclass(frozen=True)
class Head:
    """What comes before the body of an answer; `content_type` and `retry_after` as they were sent."""

    status: int
    content_type: str
    retry_after: str

    @property
    def media_type(self) -> str:
        """The content type without its parameters, in lower case."""
        return self.content_type.partition(";")[0].strip().lower()


class Relay:
    """One request, sent by a thread of its own, so that the thread that hands on the answer is never stuck in a read.

    `find` tells the address, in that thread: it may have to load the model first. It raises NotConnected or Broken.
    `look` is called every LOOK_EVERY_S while there is nothing to hand on, and once for each piece; what `look` raises
    ends the call. Uses neither proxies nor .netrc of the environment, and follows no redirect. The thread that reads
    the relay has to close it.
    """

    def __init__(
        self,
        find: Callable[[], str],
        body: dict[str, Any] | None,
        *,
        method: str = "POST",
        api_key: str,
        silence_s: float,
        look: Callable[[], None],
    ) -> None:
        self._find = find
        self._socket = WatchedSocket()
        self._method = method
        self._content = None if body is None else json.dumps(body).encode("ascii")
        self._headers = {"Accept-Encoding": "identity"} | own_headers(api_key)
        if body is not None:
            self._headers["Content-Type"] = "application/json"
        self._silence_s = silence_s
        self._look = look
        self._pieces: queue.Queue[Head | bytes | Exception | None] = queue.Queue(READ_AHEAD)
        # A daemon: a call that cannot be ended must not keep the process from exiting.
        threading.Thread(target=self._run, name="relay", daemon=True).start()

    def head(self) -> Head:
        """The head of the answer; call once, before the body. Raises NotConnected, Broken, or what `look` raises."""
        head = self._next()
        assert isinstance(head, Head)
        return head

    def __iter__(self) -> Iterator[bytes]:
        """The body, each piece when it arrives. Raises Broken, or what `look` raises."""
        while (piece := self._next()) is not None:
            assert isinstance(piece, bytes)
            yield piece

    def close(self) -> None:
        """End the call. Safe to call twice."""
        self._socket.shut()

    def _next(self) -> Head | bytes | None:
        ends_at = time.monotonic() + self._silence_s
        while True:
            self._look()
            try:
                piece = self._pieces.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                if time.monotonic() > ends_at:
                    raise Broken(f"The model server said nothing for {self._silence_s:g} seconds.") from None
                continue
            if isinstance(piece, Exception):
                raise piece
            return piece

    def _run(self) -> None:
        try:
            url = parse_url(self._find())
        except (NotConnected, Broken) as error:
            self._put(error)
            return
        except Exception as error:  # noqa: BLE001  (a client would wait for ever)
            self._put(Broken(f"The model server could not be asked ({type(error).__name__})."))
            return
        pool = watched_pool(url, self._socket.connected)
        try:
            response = pool.urlopen(
                self._method,
                url.request_uri,
                body=self._content,
                headers=self._headers,
                timeout=Timeout(connect=CONNECT_TIMEOUT_S, read=None),
                redirect=False,
                preload_content=False,
            )
            with closing(response):
                sent = response.headers
                self._put(Head(response.status, sent.get("Content-Type", ""), sent.get("Retry-After", "")))
                # Each piece is one read of the socket: what came is handed on, however little.
                while piece := response.read1(2**16, decode_content=True):
                    self._put(piece)
            self._put(None)
        except Exception as error:  # noqa: BLE001  (whatever the error is, the client has to be told)
            # The type alone: the text may hold a prompt.
            what = f"The model server broke the connection ({type(error).__name__})."
            self._put(Broken(what) if self._socket.was_connected else NotConnected())
        finally:
            pool.close()

    def _put(self, piece: Head | bytes | Exception | None) -> None:
        while not self._socket.is_shut:
            with suppress(queue.Full):
                self._pieces.put(piece, timeout=LOOK_EVERY_S)
                return
