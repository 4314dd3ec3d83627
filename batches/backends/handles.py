"""Requests made ready for libcurl: what it is told of each, and what it must not do by itself."""

import io
import ssl
from collections.abc import Callable

import certifi
import pycurl

from batches.backends import names
from batches.backends.connection import Server
from common.sockets import CONNECT_TIMEOUT_S

# A kept connection is used again within this many seconds or not at all: servers end idle ones, vLLM after 5.
LONGEST_IDLE_S = 1


class Handles:
    """libcurl's handles for POSTs to one server. A handle is made once and used again."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._spare: dict[bool, list[pycurl.Curl]] = {False: [], True: []}  # by whether their connections are kept

    def take(
        self, url: str, addresses: list[str], content: bytes, write: Callable[[bytes], int], request_id: str
    ) -> pycurl.Curl:
        """A handle that sends `content` and gives what is answered to `write`; over a connection of its own, or with a
        `request_id`, which goes as X-Request-Id, over one that is kept.

        `addresses`: of the server, in libcurl's words. Raises pycurl.error or ValueError for what HTTP cannot carry.
        """
        spare = self._spare[bool(request_id)]
        handle = spare.pop() if spare else self._made(is_kept=bool(request_id))
        if request_id:
            self._set_headers(handle, {"Connection": "keep-alive", "X-Request-Id": request_id})
            # As something that cannot be read twice. Else libcurl sends a request anew by itself if a kept connection
            # ends without an answer: a line that brings the server down would do so twice.
            handle.setopt(pycurl.POSTFIELDSIZE_LARGE, len(content))
            handle.setopt(pycurl.READFUNCTION, io.BytesIO(content).read)
        else:
            handle.setopt(pycurl.POSTFIELDS, content)
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.RESOLVE, addresses)
        handle.setopt(pycurl.WRITEFUNCTION, write)
        return handle

    def put_back(self, handle: pycurl.Curl, request_id: str) -> None:
        """It keeps no prompt and no answer."""
        if request_id:
            handle.setopt(pycurl.READFUNCTION, _nothing)
        else:
            handle.setopt(pycurl.POSTFIELDS, b"")
        handle.setopt(pycurl.WRITEFUNCTION, len)
        self._spare[bool(request_id)].append(handle)

    def _made(self, *, is_kept: bool) -> pycurl.Curl:
        handle = pycurl.Curl()
        self._set_headers(handle, {})
        authorities = ssl.get_default_verify_paths()  # reads SSL_CERT_FILE and SSL_CERT_DIR, as Python does
        for option, value in (
            (pycurl.POST, True),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.ACCEPT_ENCODING, "gzip, deflate"),
            (pycurl.CONNECTTIMEOUT_MS, int(CONNECT_TIMEOUT_S * 1000)),
            (pycurl.FRESH_CONNECT, not is_kept),
            (pycurl.FORBID_REUSE, not is_kept),
            (pycurl.MAXAGE_CONN, LONGEST_IDLE_S),
            # Of several servers behind one name, one that is there again gets its share.
            (pycurl.MAXLIFETIME_CONN, int(names.FRESH_FOR_S)),
            (pycurl.FOLLOWLOCATION, False),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.PROXY, ""),
            (pycurl.NOSIGNAL, True),  # of several threads, none may take SIGALRM
            (pycurl.CAINFO, authorities.cafile or certifi.where()),
        ):
            handle.setopt(option, value)
        return handle

    def _set_headers(self, handle: pycurl.Curl, more: dict[str, str]) -> None:
        headers = self._server.headers | more
        handle.setopt(pycurl.HTTPHEADER, [*(f"{name}: {text}" for name, text in headers.items()), "Expect:"])


def _nothing(_most_bytes: int) -> bytes:
    return b""
