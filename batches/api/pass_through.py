"""Pass a person's own request through to the model server while batches wait: POST /v1/chat/completions, …

One base_url serves chat and batches. The body is translated as a line's body is; what the model server would ignore is
passed on to it, and named in the header x-ignored-parameters. The answer comes back as the server gave it, streamed if
the client asked for a stream, and errors come in OpenAI's envelope.
"""

import json
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework import viewsets
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from batches import backends, registry
from batches.api.streams import COMPLETIONS, EVENT_STREAM, RESPONSES, EventStream, Form
from batches.backends import error_bodies
from batches.backends.base import BackendKind
from batches.backends.parameters.table import Translation, Weight
from batches.backends.relay import Broken, Head, NotConnected, Relay
from batches.backends.replies import JSON, Verdict
from batches.lines.jsonl import model_of
from batches.models import Backend
from batches.scheduling import persons
from common import errors, negotiation
from common.charset import require_utf8
from common.errors import ApiError
from common.models import Owner, Scope
from common.negotiation import json_object, read_json
from common.openapi import operation
from common.owners import owner_of

logger = logging.getLogger(__name__)

SAYING_DONE = ("/v1/chat/completions", "/v1/completions")
RETRY_AFTER_S = 5
LONGEST_IGNORED = 2000  # bytes of the header; others on the way refuse long ones
# A server that says nothing is asked ASKED_AFTER_S later, and then every ASKED_EVERY_S, whether it answers at all: a
# question that costs it nothing, for which it has LIGHT_ANSWER_S, or SHORT_ANSWER_S if it was silent before.
ASKED_AFTER_S, ASKED_EVERY_S = 1.0, 10.0
LIGHT_ANSWER_S, SHORT_ANSWER_S = 5.0, 1.0

_places = threading.BoundedSemaphore(settings.MAX_PASS_THROUGH)
# Of these, how many each owner has.
_of_owners: Counter[int] = Counter()
_guard = threading.Lock()


class BodyParser(BaseParser):
    media_type = "application/json"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        return read_body(parser_context["request"]._request, stream)


def read_body(request: HttpRequest, stream: Any) -> Any:
    """The JSON value of the request's body, which may be as large as a line. Raises ApiError."""
    require_utf8(request)
    return read_json(negotiation.read_body(request, stream, settings.MAX_LINE_BYTES, setting="MAX_LINE_BYTES"))


REQUEST = {
    "type": "object",
    "properties": {
        "model": {"type": ["string", "null"], "maxLength": 255, "description": "MODEL_NAME if there is none."},
        "stream": {"type": ["boolean", "null"]},
    },
    "additionalProperties": True,
}


class PassThroughViewSet(viewsets.ViewSet):
    scopes = (Scope.CHAT,)
    endpoint = ""
    parser_classes = (BodyParser,)

    @operation(
        "Ask the model server now",
        {(200, "application/json"): OpenApiTypes.OBJECT, (200, EVENT_STREAM): OpenApiTypes.ANY},
        request={"application/json": REQUEST},
    )
    def create(self, request: Request) -> HttpResponseBase:
        body = json_object(request)
        model, streams = asked_model(body), _streams(body)
        backend = backend_with(model, self.endpoint)
        kind = kind_of(backend)
        translation = kind.translate(self.endpoint, body, stream=streams)
        if refusal := translation.refusal(least=Weight.FORBIDDEN):
            raise ApiError(refusal.message, param=refusal.param or None, code=refusal.code)
        ignored = _ignored(translation)
        call = Call(
            backend,
            self.endpoint,
            translation.body | {"model": model},
            form=COMPLETIONS if self.endpoint in SAYING_DONE else RESPONSES,
            whole=partial(_answer, backend, kind, self.endpoint, model),
            # What the model server ignores is named; what it takes from a person is passed on to it all the same.
            headers={"x-ignored-parameters": ignored} if ignored else {},
        )
        return hand_on(request, call)


class Visit(Enum):
    """What a request is to the model server."""

    PERSON = "person"  # somebody waits for the model: takes a place, and no new line is sent meanwhile
    ERRAND = "errand"  # takes long and uses no model, such as a pull: takes a place
    QUESTION = "question"  # answered at once


@dataclass(frozen=True)
class Call:
    """What is sent to a model server for a client, and what becomes of its answer."""

    backend: Backend
    path: str
    body: JSON | None  # None: no body
    form: Form  # of an answer that is streamed
    whole: Callable[[Head, bytes], HttpResponse]  # the response for an answer that is not streamed; raises ApiError
    method: str = "POST"
    visit: Visit = Visit.PERSON
    headers: Mapping[str, str] = field(default_factory=dict)  # of a good response


def hand_on(request: Request, call: Call) -> HttpResponseBase:
    """Send the call, and give the model server's answer as it comes. Raises ApiError."""
    with ExitStack() as held:
        if call.visit is not Visit.QUESTION:
            take_a_place(owner_of(request), held)
        person = _person(request, call)
        if person is not None:
            held.callback(person.leave)
        look_at_client, silence = _watch_client(request), Silence(call.backend)

        def look() -> None:
            if person is not None:
                person.renew()
            look_at_client()
            silence.look()

        relay = backends.relay(call.backend.url, call.path, call.body, method=call.method, look=look)
        held.callback(relay.close)
        try:
            head = relay.head()
            silence.is_over = True
            if person is not None:
                person.was_answered = 200 <= head.status < 300
            if head.status == 200 and head.media_type == call.form.media_type:
                by_stream = ExitStack()
                response = _streamed(EventStream(relay, call.form, by_stream, broken), call)
                by_stream.push(held.pop_all())  # last: only a response that is sent releases what its stream holds
                return response
            content = _whole(relay)
        except NotConnected:
            raise away(call.backend) from None
        except Broken as error:
            raise broken(error) from None
    whole = call.whole(head, content)
    for name, value in call.headers.items():
        whole[name] = value
    return whole


class Silence:
    """The time until the model server answers. It may compute meanwhile, or hang, which another question tells."""

    def __init__(self, backend: Backend) -> None:
        self.is_over = False
        self._backend = backend
        # The health probe got no answer a moment ago, so it is asked at once, and may think for less long.
        self._asks_at = time.monotonic() + (0.0 if backend.is_paused else ASKED_AFTER_S)
        self._timeout_s = SHORT_ANSWER_S if backend.is_paused else LIGHT_ANSWER_S

    def look(self) -> None:
        """Call every second or so. Raises ApiError if the server hangs."""
        if self.is_over or time.monotonic() < self._asks_at:
            return
        if backends.is_silent(self._timeout_s, self._backend.url):
            raise unavailable(backends.silent_hint(self._backend.kind, self._backend.url))
        self._asks_at, self._timeout_s = time.monotonic() + ASKED_EVERY_S, LIGHT_ANSWER_S


def backend_with(model: str, endpoint: str) -> Backend:
    """The backend that answers a request for this model. Raises ApiError, which says where the model is, or what to
    type so that there is one."""
    if backend := registry.backend_for(model):
        return backend
    if others := registry.others_with(None, model):
        raise _elsewhere(f"The model '{model}' is at {others[0].name}", others[0])
    raise _no_such_model(model, registry.live_backends()[0], endpoint)


def asked_model(body: JSON) -> str:
    """The model that a request is for, under its name at the model server. Raises ApiError."""
    return backends.resolve_alias(model_of(body, "") or registry.default_model())


def _ignored(translation: Translation) -> str:
    """A header that names what the model server ignores, as many members as fit; empty if there is nothing to name."""
    named = ""
    for param in dict.fromkeys(finding.param for finding in translation.findings):
        longer = (named and f"{named}, ") + quote(param, safe="[]._-", errors="replace")
        if len(longer) > LONGEST_IGNORED:
            break
        named = longer
    return named


def _streams(body: JSON) -> bool:
    if not isinstance(body.get("stream"), bool | None):
        raise errors.invalid_type("stream", "a boolean", body["stream"])
    return bool(body.get("stream"))


def _person(request: Request, call: Call) -> persons.Person | None:
    """Who waits for this call, told from others by the API key, or without keys by the address."""
    if call.visit is not Visit.PERSON:
        return None
    key = getattr(request.auth, "pk", None)
    who = f"key {key}" if key is not None else f"address {request.META.get('REMOTE_ADDR', '')}"
    return persons.Person(call.backend, who=who, model=str((call.body or {}).get("model") or ""))


def kind_of(backend: Backend) -> BackendKind:
    """The kind of the backend; asked for if nobody has seen it yet. Raises ApiError if it does not answer."""
    try:
        # Before its worker has seen the backend, its kind is not in the row.
        return backends.kind_named(backend.kind or backends.probe().kind)
    except backends.Unreachable as error:
        raise unavailable(str(error)) from None


def take_a_place(owner: Owner, held: ExitStack) -> None:
    """One of the places of this process, until `held` is closed. Raises a 429 if there is none, or if the owner has as
    many as it may."""
    most = owner.limit("streams")
    with _guard:
        if most is not None and _of_owners[owner.pk] >= most:
            raise errors.too_many_requests(
                f"{most} requests of '{owner.name}' are being passed through already (OWNER_MAX_STREAMS, or the "
                "owner's page in the admin). Try again.",
                retry_after_s=RETRY_AFTER_S,
            )
        if not _places.acquire(blocking=False):
            raise errors.too_many_requests(
                f"{settings.MAX_PASS_THROUGH} requests are being passed through already (MAX_PASS_THROUGH). Try again.",
                retry_after_s=RETRY_AFTER_S,
            )
        _of_owners[owner.pk] += 1
    held.callback(_leave_place, owner.pk)


def _leave_place(owner_id: int) -> None:
    with _guard:
        _of_owners[owner_id] -= 1
        if not _of_owners[owner_id]:
            del _of_owners[owner_id]
    _places.release()


def _watch_client(request: Request) -> Callable[[], None]:
    """What raises ApiError once the client is gone. One that takes nothing is given up by its socket."""
    client: socket.socket | None = request.META.get("gunicorn.socket")

    def look() -> None:
        if client is not None and _is_gone(client):
            raise ApiError("The client went away.", status=499)

    return look


def _is_gone(client: socket.socket) -> bool:
    """The client closed its end, or only its sending side, which no HTTP client does that waits for an answer. Bytes
    that it has sent stay to be read."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _streamed(events: EventStream, call: Call) -> StreamingHttpResponse:
    # X-Accel-Buffering tells proxies to pass each event on at once.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} | dict(call.headers)
    return StreamingHttpResponse(events, content_type=call.form.media_type, headers=headers)


def _whole(relay: Relay) -> bytes:
    content = bytearray()
    for piece in relay:
        content += piece
        if len(content) > settings.MAX_REPLY_BYTES:
            raise Broken(f"The reply is larger than {settings.MAX_REPLY_BYTES} bytes (MAX_REPLY_BYTES).")
    return bytes(content)


def _answer(backend: Backend, kind: BackendKind, endpoint: str, model: str, head: Head, content: bytes) -> HttpResponse:
    if not 200 <= head.status < 300:
        raise _refusal(backend, kind, endpoint, model, head, content)
    if not head.media_type.endswith("json"):
        raise ApiError(f"{kind.title} answered with something that is not JSON.", status=502, type="server_error")
    return HttpResponse(content, status=head.status, content_type="application/json")


def _refusal(backend: Backend, kind: BackendKind, endpoint: str, model: str, head: Head, content: bytes) -> ApiError:
    """The model server's own message, in the envelope; or what to do, if that is known."""
    reply = kind.judge(endpoint, head.status, content)
    if reply.verdict is Verdict.MODEL_MISSING:
        return _missing(backend, kind, endpoint, model)
    if reply.verdict is Verdict.MISCONFIGURED:
        return ApiError(reply.message, status=502, type="server_error")
    if reply.verdict is Verdict.ENDPOINT_MISSING:
        return ApiError(kind.missing_endpoint_hint(endpoint), status=404, code="unknown_url")
    error = error_bodies.read(json.loads(reply.body))
    return ApiError(
        error.message or reply.body,
        status=reply.status if reply.status and 400 <= reply.status <= 599 else 502,
        type=error.type or "api_error",
        param=error.param or None,
        code=error.code or None,
        headers={"Retry-After": head.retry_after} if head.retry_after else {},
    )


def _missing(backend: Backend, kind: BackendKind, endpoint: str, model: str) -> ApiError:
    """The backend does not have the model. If another has it, the person was sent here because our list of the models
    is a moment old, or because that one is beyond our reach."""
    if others := registry.others_with(backend, model):
        return _elsewhere(f"The model '{model}' is not at {backend.url} but at {others[0].name}", others[0])
    return _no_such_model(model, backend, endpoint, kind=kind.name)


def _elsewhere(where: str, backend: Backend) -> ApiError:
    if registry.is_in_reach(backend):
        return unavailable(f"{where}. Try again.")
    return unavailable(f"{where}. {beyond_reach(backend)} Ask for it in a batch, or there.")


def beyond_reach(backend: Backend) -> str:
    """Why this process cannot ask a backend that only its own machine reaches, and what to set."""
    setting = "OLLAMA_BASE_URL" if backend.kind == "ollama" else "BACKEND_URL"
    return (
        f"{backend.url} is an address of the machine {registry.machine_of(backend)} alone: set {setting} there to an "
        "address of that machine which this one reaches, and let the model server listen at it "
        "(docs/second-machine.md)."
    )


def _no_such_model(model: str, backend: Backend, endpoint: str, *, kind: str = "") -> ApiError:
    hint = backends.missing_model_hint(kind or backend.kind, model, backend.model_names, endpoint=endpoint)
    return ApiError(f"The model '{model}' does not exist. {hint}", status=404, param="model", code="model_not_found")


def away(backend: Backend) -> ApiError:
    if backend.url == settings.BACKEND_URL:
        return unavailable(backends.unreachable_hint())
    return unavailable(f"No model server answers at {backend.url}, which has the model. Start it.")


def unavailable(hint: str) -> ApiError:
    return ApiError(hint, status=503, type="server_error", headers={"Retry-After": str(RETRY_AFTER_S)})


def broken(error: Broken) -> ApiError:
    logger.warning("a request that was passed through broke off: %s", error)
    return ApiError(str(error), status=502, type="server_error")
