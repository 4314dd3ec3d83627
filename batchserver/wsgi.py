"""The WSGI application, which passes bodies of unknown length on to Django, and the names that the server has."""

import io
import os
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from gunicorn.http.errors import ParseException

from batchserver import private
from common import charset

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "batchserver.settings")

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class StreamedBodies:
    """Give a chunked request the Content-Length that Django needs.

    Django reads CONTENT_LENGTH bytes and takes a missing length for 0, so an upload by `Transfer-Encoding: chunked` (as
    Node's streams send it) would arrive empty. If the server ends the input itself (`wsgi.input_terminated`), it gets a
    length beyond any file and is read to its real end, by a view that knows how much it takes and may refuse it before.
    The admin's forms are small, and are read here to be counted.

    A chunk that is malformed is an OSError to Django, as a body that breaks off is: it answers a 400. The answer to a
    HEAD has no body.
    """

    def __init__(self, app: WsgiApp) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["wsgi.input"] = _Input(environ["wsgi.input"])
        if environ.get("wsgi.input_terminated") and not environ.get("CONTENT_LENGTH"):
            if not str(environ.get("PATH_INFO", "")).startswith("/admin/"):
                if environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
                    environ["CONTENT_LENGTH"] = str(sys.maxsize)
            else:
                try:
                    # One byte over the limit is enough for a refusal.
                    body = environ["wsgi.input"].read(settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)
                except OSError:
                    environ["CONTENT_LENGTH"] = "1"  # the view reads on, and gets the same error
                else:
                    environ["wsgi.input"] = io.BytesIO(body)
                    environ["CONTENT_LENGTH"] = str(len(body))
        response = self.app(environ, start_response)
        return _head_of(response) if environ["REQUEST_METHOD"] == "HEAD" else response


def _head_of(response: Iterable[bytes]) -> Iterable[bytes]:
    """No body for a HEAD, which `ollama` sends before each command: gunicorn drops one with a warning."""
    if (close := getattr(response, "close", None)) is not None:
        close()
    return []


class KnownCharset:
    """Keep from Django a Content-Type with a charset that nobody can read.

    Django reads the query string in it too, before any code of ours that answers, and fails on one such as `hex`. The
    middleware of the same name refuses the request.
    """

    def __init__(self, app: WsgiApp) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        content_type = environ.get("CONTENT_TYPE") or ""
        if ";" in content_type and (refused := charset.refused_charset(content_type)):
            environ[charset.REFUSED] = refused
            environ["CONTENT_TYPE"] = ""
        return self.app(environ, start_response)


class _Input:
    """The input of a request. Whatever reading it raises is an OSError, and is raised by each later read too."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._error: OSError | None = None

    def read(self, *size: int) -> bytes:
        return self._reading(self._stream.read, *size)

    def readline(self, *size: int) -> bytes:
        return self._reading(self._stream.readline, *size)

    def _reading(self, read: Callable[..., bytes], *size: int) -> bytes:
        if self._error is not None:
            raise self._error
        try:
            return read(*size)
        except (OSError, ParseException) as error:
            self._error = error if isinstance(error, OSError) else OSError(str(error))
            raise self._error from error


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


private.from_now_on()
str(settings.SECRET_KEY)  # a server without a key does not start, instead of failing each request
application = StreamedBodies(KnownCharset(get_wsgi_application()))
if settings.ALLOW_OWN_NAMES:
    settings.ALLOWED_HOSTS = [*settings.ALLOWED_HOSTS, *own_names()]
