"""Pass a person's own request through to the model server while batches wait: POST /v1/chat/completions, …

One base_url serves chat and batches. The body is translated as a line's body is; what the model server would ignore is
passed on to it, and named in the header x-ignored-parameters. The answer comes back as the server gave it, streamed if
the client asked for a stream, and errors come in OpenAI's envelope.
"""

import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework import viewsets
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from batches import backends, registry
from batches.backends.base import BackendKind
from batches.backends.parameters.table import Translation, Weight
from batches.backends.relay import Broken, Head, NotConnected, Relay
from batches.backends.replies import JSON, Verdict
from batches.lines.jsonl import model_of
from batches.models import Backend
from batches.scheduling import persons
from common import errors, strict_json
from common.errors import ApiError
from common.negotiation import json_object
from common.openapi import operation

logger = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
# Streams of these endpoints end with [DONE]. One that ends without it was broken off, which Ollama does not report.
SAYING_DONE = ("/v1/chat/completions", "/v1/completions")
RETRY_AFTER_S = 5
MOST_IGNORED_NAMED = 20  # in one header
# A client is gone if it takes nothing for TAKES_NOTHING_S while every buffer on the way is full.
TAKES_NOTHING_S = 30.0

# The other half of the threads is for requests that must be answered at once: polling, uploads, cancelling.
_places = threading.BoundedSemaphore(settings.WEB_THREADS // 2)


class BodyParser(BaseParser):
    media_type = "application/json"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        content = stream.read(settings.MAX_LINE_BYTES + 1)
        if len(content) > settings.MAX_LINE_BYTES:
            most = f"{settings.MAX_LINE_BYTES} bytes (MAX_LINE_BYTES)"
            raise ApiError(f"The request body is too large. Expected at most {most}.", status=413)
        try:
            return strict_json.loads(content)
        except ValueError:
            raise ParseError from None


REQUEST = {
    "type": "object",
    "properties": {
        "model": {"type": ["string", "null"], "maxLength": 255, "description": "MODEL_NAME if there is none."},
        "stream": {"type": ["boolean", "null"]},
    },
    "additionalProperties": True,
}


class PassThroughViewSet(viewsets.ViewSet):
    endpoint = ""
    parser_classes = (BodyParser,)

    @operation(
        "Ask the model server now",
        {(200, "application/json"): OpenApiTypes.OBJECT, (200, EVENT_STREAM): OpenApiTypes.ANY},
        request={"application/json": REQUEST},
    )
    def create(self, request: Request) -> HttpResponseBase:
        body = json_object(request)
        model, streams = backends.resolve_alias(model_of(body, settings.MODEL_NAME)), _streams(body)
        backend = registry.own_backend()
        kind = _kind(backend)
        translation = kind.translate(self.endpoint, body, stream=streams)
        if refusal := translation.refusal(least=Weight.FORBIDDEN):
            raise ApiError(refusal.message, param=refusal.param or None, code=refusal.code)
        sent = translation.body | {"model": model}

        with ExitStack() as held:
            _take_a_place(held)
            person = persons.Person(backend)
            held.callback(person.leave)
            client: socket.socket | None = request.META.get("gunicorn.socket")
            if client is not None:
                _limit_standstill(client, TAKES_NOTHING_S)
                held.callback(_limit_standstill, client, 0.0)  # a download may follow over the same connection

            def look() -> None:
                person.renew()
                if client is not None and _is_gone(client):
                    raise ApiError("The client went away.", status=499)

            relay = backends.relay(self.endpoint, sent, look=look)
            held.callback(relay.close)
            try:
                head = relay.head()
                if head.status == 200 and head.content_type == EVENT_STREAM:
                    events = EventStream(relay, self.endpoint in SAYING_DONE, held.pop_all())
                    return _telling(_streamed(events), translation)
                content = _whole(relay)
            except NotConnected:
                raise _away() from None
            except Broken as error:
                raise _broken(error) from None
        return _telling(_answer(kind, self.endpoint, model, head, content), translation)


class EventStream:
    """The events of a stream, whole ones only. Closing it releases what is `held`, whether or not it was begun."""

    def __init__(self, relay: Relay, says_done: bool, held: ExitStack) -> None:
        self.relay = relay
        self.is_done = not says_done
        self.close = held.close

    def __iter__(self) -> Iterator[bytes]:
        try:
            rest = b""
            for piece in self.relay:
                rest += piece
                # A client cannot read an event that is not whole.
                if end := _end_of_events(rest):
                    self.is_done = self.is_done or _says_done(rest[:end])
                    yield rest[:end]
                    rest = rest[end:]
                elif len(rest) > settings.MAX_REPLY_BYTES:
                    raise Broken(f"An event is larger than {settings.MAX_REPLY_BYTES} bytes (MAX_REPLY_BYTES).")
            if rest:
                self.is_done = self.is_done or _says_done(rest)
                yield rest
            if not self.is_done:
                raise Broken("The model server ended the stream before the answer was whole.")
        except Broken as error:
            # The status is sent already. For an event like this the official clients raise an error.
            yield b"data: " + json.dumps(_broken(error).envelope).encode() + b"\n\n"
        except ApiError:
            return  # the client is gone


def _telling(response: HttpResponseBase, translation: Translation) -> HttpResponseBase:
    """`response`, naming what the model server ignored: what it takes from a person is passed on to it all the same."""
    ignored = dict.fromkeys(quote(finding.param, safe="[]._-") for finding in translation.findings)
    if ignored:
        response["x-ignored-parameters"] = ", ".join([*ignored][:MOST_IGNORED_NAMED])
    return response


def _streams(body: JSON) -> bool:
    if not isinstance(body.get("stream"), bool | None):
        raise errors.invalid_type("stream", "a boolean", body["stream"])
    return bool(body.get("stream"))


def _kind(backend: Backend) -> BackendKind:
    try:
        # Before its worker has seen the backend, its kind is not in the row.
        return backends.kind_named(backend.kind or backends.probe().kind)
    except backends.Unreachable:
        raise _away() from None


def _take_a_place(held: ExitStack) -> None:
    if not _places.acquire(blocking=False):
        raise ApiError(
            f"{settings.WEB_THREADS // 2} requests are being passed through already. Try again.",
            status=429,
            type="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )
    held.callback(_places.release)


def _limit_standstill(client: socket.socket, seconds: float) -> None:
    """Let a write to the client fail if it takes nothing for `seconds` (0: no limit). Otherwise a client that does not
    read keeps a place and a call, as it does on a system without such a limit, until it ends."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError):  # a Unix socket, which a proxy reads, or a closed socket
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def _is_gone(client: socket.socket) -> bool:
    """The client closed its end, or only its sending side, which no HTTP client does that waits for an answer. Bytes
    that it has sent stay to be read."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _says_done(events: bytes) -> bool:
    """One of these events is [DONE] itself, not a model's text that contains it."""
    return re.search(rb"^data: ?\[DONE\]\r?$", events, re.MULTILINE) is not None


def _end_of_events(content: bytes) -> int:
    """Where the last whole event ends; 0 if there is none."""
    return max((content.rfind(end) + len(end) for end in (b"\n\n", b"\r\n\r\n") if end in content), default=0)


def _streamed(events: EventStream) -> StreamingHttpResponse:
    # X-Accel-Buffering tells proxies to pass each event on at once.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingHttpResponse(events, content_type=EVENT_STREAM, headers=headers)


def _whole(relay: Relay) -> bytes:
    content = bytearray()
    for piece in relay:
        content += piece
        if len(content) > settings.MAX_REPLY_BYTES:
            raise Broken(f"The reply is larger than {settings.MAX_REPLY_BYTES} bytes (MAX_REPLY_BYTES).")
    return bytes(content)


def _answer(kind: BackendKind, endpoint: str, model: str, head: Head, content: bytes) -> HttpResponse:
    if not 200 <= head.status < 300:
        raise _refusal(kind, endpoint, model, head, content)
    if not head.content_type.endswith("json"):
        raise ApiError(f"{kind.title} answered with something that is not JSON.", status=502, type="server_error")
    return HttpResponse(content, status=head.status, content_type="application/json")


def _refusal(kind: BackendKind, endpoint: str, model: str, head: Head, content: bytes) -> ApiError:
    """The model server's own message, in the envelope; or what to do, if that is known."""
    reply = kind.judge(endpoint, head.status, content)
    if reply.verdict is Verdict.MODEL_MISSING:
        message = f"The model '{model}' does not exist. {kind.missing_model_hint(model)}"
        return ApiError(message, status=404, param="model", code="model_not_found")
    if reply.verdict is Verdict.MISCONFIGURED:
        return ApiError(reply.message, status=502, type="server_error")
    body = json.loads(reply.body)
    error = body.get("error")
    told = error if isinstance(error, dict) else {}
    words = (told.get("message"), error, body.get("message"), body.get("detail"))

    def text(name: str) -> str | None:
        return told[name] if isinstance(told.get(name), str) else None

    return ApiError(
        next((each for each in words if isinstance(each, str) and each), reply.body),
        status=head.status if 400 <= head.status <= 599 else 502,
        type=text("type") or "api_error",
        param=text("param"),
        code=text("code"),
        headers={"Retry-After": head.retry_after} if head.retry_after else {},
    )


def _away() -> ApiError:
    wait = {"Retry-After": str(RETRY_AFTER_S)}
    return ApiError(backends.unreachable_hint(), status=503, type="server_error", headers=wait)


def _broken(error: Broken) -> ApiError:
    logger.warning("a request that was passed through broke off: %s", error)
    return ApiError(str(error), status=502, type="server_error")
