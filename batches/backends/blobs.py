"""A model's file on its way to an Ollama: /api/blobs, for `ollama create` from weights that the client has."""

from collections.abc import Iterator

from urllib3 import Timeout
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from batches.backends.connection import own_headers
from batches.backends.relay import Broken, Head, NotConnected
from common.sockets import CONNECT_TIMEOUT_S, WatchedSocket, watched_pool

MOST_SAID = 10_000  # bytes of the answer


def send_blob(
    server: str, digest: str, pieces: Iterator[bytes], *, api_key: str, silence_s: float
) -> tuple[Head, bytes]:
    """Ollama's answer. The file goes on piece by piece and is never whole in memory.

    Ollama keeps the file if its SHA-256 is the digest, so it is safe to send twice. Lets through what reading `pieces`
    raises; raises NotConnected, and Broken if the server breaks off or says nothing for `silence_s` after the file.
    """
    url, socket = parse_url(server), WatchedSocket()
    source = _Source(pieces)
    pool = watched_pool(url, socket.connected)
    try:
        response = pool.urlopen(
            "POST",
            f"{url.path or ''}/api/blobs/{digest}",
            body=source,
            headers={"Content-Type": "application/octet-stream"} | own_headers(api_key),
            chunked=True,
            timeout=Timeout(connect=CONNECT_TIMEOUT_S, read=silence_s),
            redirect=False,
            preload_content=False,
        )
        return Head(response.status, response.headers.get("Content-Type", ""), ""), response.read(MOST_SAID)
    except (HTTPError, OSError) as error:
        if source.error is not None:
            raise source.error from None
        if not socket.was_connected:
            raise NotConnected from None
        raise Broken(f"The model server broke the connection ({type(error).__name__}).") from None
    finally:
        socket.shut()
        pool.close()


class _Source:
    """The pieces, and what reading them raised: to urllib3 that is a fault of the connection that it writes to."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._pieces
        except Exception as error:
            self.error = error
            raise
