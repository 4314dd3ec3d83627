"""The WSGI application, with bodies of unknown length let through to Django, and the names under which it answers."""

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


# How long the rest of a refused upload is read and thrown away.
DRAIN_S = 30.0


class StreamedBodies:
    """Give a chunked request the Content-Length that Django insists on, and read a refused one to its end.

    Django reads CONTENT_LENGTH bytes and takes a missing one for 0, so an upload by `Transfer-Encoding: chunked` (as
    Node's streams send it) would arrive empty. Where the server ends the input itself (`wsgi.input_terminated`), a form
    is given a length beyond any file and read to its real end; anything else is small, and read here to be counted.

    A client that is still sending when it is refused would see a broken connection in place of the reason: what is left
    of the body is read first, for a while.
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
                # A body that breaks off is as good as none: the client is gone, or does not speak HTTP.
                with suppress(OSError):
                    # One byte over the limit is enough for it to be refused.
                    body = environ["wsgi.input"].read(most + 1)
                environ["wsgi.input"] = io.BytesIO(body)
                environ["CONTENT_LENGTH"] = str(len(body))
        response = self.app(environ, start_response)
        if environ.get("wsgi.input_terminated"):
            _drain(environ["wsgi.input"])
        return response


def _drain(stream: Any) -> None:
    ends_at = time.monotonic() + DRAIN_S
    # The client may be gone, or send what is no body.
    with suppress(OSError, ValueError):
        while stream.read(2**18) and time.monotonic() < ends_at:
            pass


def own_names() -> list[str]:
    """This host's name and addresses: how others on the network call a server that listens beyond loopback."""
    name = socket.gethostname()
    names = [name, f"{name}.local"]
    with suppress(OSError):
        names += socket.gethostbyname_ex(name)[2]
    # The address from which a packet would leave for elsewhere; connecting a datagram socket sends none.
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        names.append(probe.getsockname()[0])
    return names


application = StreamedBodies(get_wsgi_application())
if settings.ALLOW_OWN_NAMES:
    settings.ALLOWED_HOSTS = [*settings.ALLOWED_HOSTS, *own_names()]
