"""What every request and response has to do with: the headers that each response has, and the charset of a request."""

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from django.http import Http404, HttpRequest, HttpResponseBase, JsonResponse

from common import ids
from common.charset import REFUSED, charset_of
from common.errors import ApiError

API_VERSION = "2020-10-01"
# An attribute of a request: the headers that tell how much of a limit is left.
LIMIT_HEADERS = "limit_headers"

_current: ContextVar[str] = ContextVar("request_id", default="")


class OpenAIHeaders:
    """`x-request-id`, `openai-processing-ms` and `openai-version`, as the official clients read them.

    The id is ours even if the client sends one: a client must not choose a name in our logs.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        started = time.monotonic()
        request_id = ids.new_request_id()
        token = _current.set(request_id)
        try:
            response = self.get_response(request)
        finally:
            _current.reset(token)
        response["x-request-id"] = request_id
        response["openai-processing-ms"] = str(int((time.monotonic() - started) * 1000))
        response["openai-version"] = API_VERSION
        for name, value in getattr(request, LIMIT_HEADERS, {}).items():
            response[name] = value
        return response


class KnownCharset:
    """Refuse a request in a charset that nobody can read (`batchserver.wsgi` found it), whatever its address."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if REFUSED in request.META:
            try:
                charset_of(request)
            except ApiError as error:
                return JsonResponse(error.body_at(request.path), status=error.status)
        return self.get_response(request)


class NoNul:
    """404 for an address of the admin with a NUL, and for a form with one: no row has any, and PostgreSQL refuses to be
    asked for it. The API's own views check what they read."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *_: Any) -> None:
        """Behind the middleware that reads the form for its token, so what cannot be read is refused before."""
        if not request.path_info.startswith("/admin/"):
            return
        values = [each for form in (request.GET, request.POST) for _, found in form.lists() for each in found]
        if any("\0" in each for each in (request.path_info, *request.GET, *request.POST, *values)):
            raise Http404("There is nothing with a NUL in its name.")


class RequestIdFilter(logging.Filter):
    """Gives each log record that is written during a request the id of that request."""

    def filter(self, record: logging.LogRecord) -> bool:
        if request_id := _current.get():
            record.request_id = request_id
        return True


class LineFormatter(logging.Formatter):
    """A line for people, with the id of the request as ` [req_…]`."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        request_id = getattr(record, "request_id", "")
        return super().formatMessage(record) + (f" [{request_id}]" if request_id else "")
