"""Requests to the model server, which another thread can cut at any moment."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from urllib3 import BaseHTTPResponse, Timeout
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError
from urllib3.util import parse_url

from common import strict_json
from common.sockets import CONNECT_TIMEOUT_S, shut, watched_pool

QUESTION_TIMEOUT_S = 3.0

# Errors of a request that the server never saw; after any other HTTPError or OSError, the server may have seen it.
NEVER_SENT = (NewConnectionError, ConnectTimeoutError, SSLError)


class ReplyTooLarge(Exception):
    pass


# Whatever ends a request that was not cut, instead of an answer.
BROKEN = (HTTPError, OSError, ReplyTooLarge)


class Cut(Exception):
    """`Connection.cut` ended the call."""


def own_headers(api_key: str) -> dict[str, str]:
    """Who asks, and the key that the server wants of us; empty: none."""
    headers = {"User-Agent": "ollama-batch-server"}
    return headers | {"Authorization": f"Bearer {api_key}"} if api_key else headers


@dataclass(frozen=True)
class Server:
    """A model server's address, and what we tell it and bear from it."""

    base_url: str
    api_key: str = ""
    max_reply_bytes: int = 2**26

    def url_of(self, path: str, body: dict[str, Any]) -> str:
        """Where a request goes."""
        return self.base_url + path

    def connect(self) -> "Connection":
        return Connection(self)

    @property
    def headers(self) -> dict[str, str]:
        """Of each request."""
        return {"Connection": "close", "Content-Type": "application/json"} | own_headers(self.api_key)


class Connection:
    """Requests to one server, one at a time, by the thread that owns this, each over a connection of its own.

    Over a kept connection nothing but their order ties answers to requests. A second answer to one request, from a
    server or a proxy with a fault, would be taken for the answer to the next line.

    Uses neither proxies nor .netrc of the environment, and follows no redirect: requests go to the operator's address
    and nowhere else.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.retry_after_s = 0.0  # what the last answer asked for; 0 if it did not ask
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None
        self._call: object = None
        self._is_cut = False
        self._cut_early: object = None
        url = parse_url(server.base_url)
        self._path = url.path or ""
        self._headers = server.headers | {"Accept-Encoding": "gzip, deflate"}
        self._pool = watched_pool(url, self.connected)

    def get(self, path: str, *, timeout_s: float, call: object = None) -> tuple[int, bytes]:
        """Status and body of the answer. Each read takes `timeout_s` at most; `cut(call)` ends it, if there is a call.

        Raises as `post` does.
        """
        with self._cuttable(call):
            return self._request("GET", path, None, timeout_s)

    def post(self, path: str, body: dict[str, Any], *, call: object) -> tuple[int, bytes]:
        """Status and body of the answer, however long it takes: at the deadline, another thread cuts `call`.

        Raises Cut, ReplyTooLarge, urllib3's HTTPError or OSError.
        """
        # ASCII can carry what JSON allows and UTF-8 does not, such as half a surrogate pair.
        content = json.dumps(body).encode("ascii")
        with self._cuttable(call):
            return self._request("POST", path, content, None)

    def stream(self, path: str, body: dict[str, Any], *, call: object) -> Iterator[bytes]:
        """The pieces of a streamed answer, as they come; nothing if the server refuses the request.

        Raises as `post` does. An answer that is not read to its end is broken off.
        """
        with self._cuttable(call):
            response = self._open("POST", path, json.dumps(body).encode("ascii"), None)
            try:
                if response.status == 200:
                    yield from response.stream(2**16)
            finally:
                self._shut()
                response.close()

    def send(self, method: str, path: str, body: dict[str, Any], *, timeout_s: float) -> tuple[int, bytes]:
        """As `post` for a request that the server answers at once, by any method. Each read takes `timeout_s` at
        most."""
        with self._cuttable(None):
            return self._request(method, path, json.dumps(body).encode("ascii"), timeout_s)

    @contextmanager
    def _cuttable(self, call: object) -> Iterator[None]:
        """Let `cut(call)` end the request inside; Cut comes out of it then."""
        with self._guard:
            self._call = call
            self._is_cut = call is not None and self._cut_early is call
        try:
            if self._is_cut:
                raise Cut
            yield
        except (HTTPError, OSError) as error:
            if self._cut_meanwhile():
                raise Cut from error
            raise
        finally:
            with self._guard:
                self._call, self._is_cut = None, False

    def exchange(self, call: object) -> Callable[[str, dict[str, Any] | None], tuple[int, Any]]:
        """Asks questions that belong to `call` and are cut with it: path and body (None: GET) to status and JSON."""

        def ask(path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
            if body is None:
                status, content = self.get(path, timeout_s=QUESTION_TIMEOUT_S, call=call)
            else:
                status, content = self.post(path, body, call=call)
            try:
                return status, strict_json.loads(content)
            except ValueError:
                return status, None

        return ask

    def text(self, path: str, *, call: object) -> tuple[int, str]:
        """Status and text of the answer to a question that belongs to `call` and is cut with it. Raises as `post`."""
        status, content = self.get(path, timeout_s=QUESTION_TIMEOUT_S, call=call)
        return status, content.decode(errors="replace")

    def cut(self, call: object) -> None:
        """End `call`, or keep it from starting."""
        with self._guard:
            if self._call is call:
                self._is_cut = True
                self._shut()
            else:
                self._cut_early = call

    def close(self) -> None:
        self._pool.close()

    def connected(self, sock: socket.socket) -> None:
        with self._guard:
            self._socket = sock
            if self._is_cut:
                self._shut()

    def _cut_meanwhile(self) -> bool:
        return self._is_cut

    def _shut(self) -> None:
        if self._socket is not None:
            shut(self._socket)

    def _open(self, method: str, path: str, body: bytes | None, timeout_s: float | None) -> BaseHTTPResponse:
        return self._pool.urlopen(
            method,
            self._path + path,
            body=body,
            headers=self._headers,
            timeout=Timeout(connect=CONNECT_TIMEOUT_S, read=timeout_s),
            redirect=False,
            preload_content=False,
        )

    def _request(self, method: str, path: str, body: bytes | None, timeout_s: float | None) -> tuple[int, bytes]:
        response = self._open(method, path, body, timeout_s)
        try:
            wait = response.headers.get("Retry-After", "")
            self.retry_after_s = float(wait) if wait.isascii() and wait.isdigit() else 0.0
            content = bytearray()
            # Counted after decompression: a small reply may unpack into a huge one.
            for chunk in response.stream(2**16):
                content += chunk
                if len(content) > self.server.max_reply_bytes:
                    raise ReplyTooLarge
            return response.status, bytes(content)
        finally:
            # Whatever else comes over this connection must not be taken for the next reply. The server may have kept it
            # open all the same, and the pool would use it again.
            self._shut()
            response.close()
