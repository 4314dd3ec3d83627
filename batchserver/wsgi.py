"""The WSGI application, which passes bodies of unknown length on to Django, and the names that the server has."""

import io
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "batchserver.settings")

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


# For this time the rest of a refused upload is read and thrown away.
DRAIN_S = 30.0


class StreamedBodies:
    """Give a chunked request the Content-Length that Django needs, and read a refused request to its end.

    Django reads CONTENT_LENGTH bytes and takes a missing length for 0, so an upload by `Transfer-Encoding: chunked` (as
    Node's streams send it) would arrive empty. If the server ends the input itself (`wsgi.input_terminated`), a form
    gets a length beyond any file and is read to its real end. Any other body is small, and is read here to be counted.

    A client that is still sending when it is refused would see a broken connection instead of the reason. So the rest
    of the body is read first, for DRAIN_S at most.
    """

    def __init__(self, app: WsgiApp) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("wsgi.input_terminated") and not environ.get("CONTENT_LENGTH"):
            if environ.get("CONTENT_TYPE", "").startswith("multipart/"):
                if environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
                    environ["CONTENT_LENGTH"] = str(sys.maxsize)
            else:
                body = b""
                most = max(settings.DATA_UPLOAD_MAX_MEMORY_SIZE, settings.MAX_LINE_BYTES)
                # A body that breaks off counts as none: the client is gone, or does not speak HTTP.
                with suppress(OSError):
                    # One byte over the limit is enough for a refusal.
                    body = environ["wsgi.input"].read(most + 1)
                environ["wsgi.input"] = io.BytesIO(body)
                environ["CONTENT_LENGTH"] = str(len(body))
        response = self.app(environ, start_response)
        if environ.get("wsgi.input_terminated"):
            _drain(environ["wsgi.input"])
        return response


def _drain(stream: Any) -> None:
    ends_at = time.monotonic() + DRAIN_S
    # The client may be gone, or its body may be malformed.
    with suppress(OSError, ValueError):
        while stream.read(2**18) and time.monotonic() < ends_at:
            pass


def own_names() -> list[str]:
    """This host's name and addresses: how other machines call a server that listens beyond loopback."""
    name = socket.gethostname()
    names = [name, f"{name}.local"]
    with suppress(OSError):
        names += socket.gethostbyname_ex(name)[2]
    # The address from which a packet would leave this host; connecting a datagram socket sends no packet.
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        names.append(probe.getsockname()[0])
    return names


application = StreamedBodies(get_wsgi_application())
if settings.ALLOW_OWN_NAMES:
    settings.ALLOWED_HOSTS = [*settings.ALLOWED_HOSTS, *own_names()]
