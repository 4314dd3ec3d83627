"""What every request and response has to do with: the headers that each response has, and the charset of a request."""

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar

from django.http import HttpRequest, HttpResponseBase, JsonResponse

from common import ids
from common.charset import REFUSED, charset_of
from common.errors import ApiError

API_VERSION = "2020-10-01"

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
