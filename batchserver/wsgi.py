"""The WSGI application, with bodies of unknown length let through to Django."""

import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "batchserver.settings")

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class ChunkedBodies:
    """Give a chunked request the Content-Length that Django insists on.

    Django reads CONTENT_LENGTH bytes and takes a missing one for 0, so an upload by `Transfer-Encoding: chunked` (as
    Node's streams send it) would arrive empty. Where the server ends the input itself (`wsgi.input_terminated`), a form
    is given a length beyond any file and read to its real end; anything else is small, and read here to be counted.
    """

    def __init__(self, app: WsgiApp) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("wsgi.input_terminated") and not environ.get("CONTENT_LENGTH"):
            if environ.get("CONTENT_TYPE", "").startswith("multipart/"):
                if environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
                    environ["CONTENT_LENGTH"] = str(sys.maxsize)
            else:
                # One byte over the limit is enough for Django to refuse it.
                body = environ["wsgi.input"].read(settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)
                environ["wsgi.input"] = io.BytesIO(body)
                environ["CONTENT_LENGTH"] = str(len(body))
        return self.app(environ, start_response)


application = ChunkedBodies(get_wsgi_application())
