"""The headers of every response: the id of the request, the time that we took, the version of the API."""

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar

from django.http import HttpRequest, HttpResponseBase

from common import ids

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


class RequestIdFilter(logging.Filter):
    """Gives each log record the id of its request, as ` [req_…]`; without a request an empty text."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = _current.get()
        record.request_id = f" [{request_id}]" if request_id else ""
        return True
