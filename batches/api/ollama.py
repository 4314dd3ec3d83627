"""Ollama's own API under /api, passed through: a client of Ollama needs another port and nothing else.

Who asks a model is a person as under /v1: same places, same hold, same keys. Bodies go on as they came but for the
model's name (MODEL_NAME if there is none, MODEL_ALIASES), and answers come back as Ollama gave them. Only an
administrator changes models. No address of a client's own reaches Ollama: those that do are in ollama_urls.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from rest_framework import viewsets
from rest_framework.request import Request

from batches import backends
from batches.api.native import as_given, body_of, ollama_for, ollamas
from batches.api.pass_through import Call, Visit, asked_model, away, broken, hand_on, take_a_place
from batches.api.streams import ANSWERS, STEPS
from batches.backends import ollama_derived
from batches.backends.relay import Broken, NotConnected
from batches.backends.replies import JSON
from batches.models import Backend
from common import strict_json
from common.authentication import AdminSession, ApiKeyAuthentication, KeyOrThisMachine
from common.errors import ApiError
from common.models import Scope
from common.owners import owner_of

DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
PIECE_BYTES = 2**18


class UseViewSet(viewsets.ViewSet):
    """Requests to one model: /api/chat, generate, embed, embeddings, and show, which describes it."""

    schema = None  # the OpenAPI document is about OpenAI's API
    scopes = (Scope.CHAT,)
    path = ""
    visit = Visit.PERSON

    def create(self, request: Request) -> HttpResponseBase:
        body = body_of(request)
        # /api/show knows the model by an older name too.
        member = "name" if self.path == "/api/show" and not body.get("model") and body.get("name") else "model"
        model = asked_model({"model": body.get(member)})
        backend = ollama_for(request, model)
        whole = partial(as_given, self.path)
        return hand_on(request, Call(backend, self.path, body | {member: model}, ANSWERS, whole, visit=self.visit))


class StateViewSet(viewsets.ViewSet):
    """What Ollama says of itself: /api/version, and /api/tags and ps, with several servers of all of them."""

    schema = None
    scopes = tuple(Scope)

    def version(self, request: Request) -> HttpResponseBase:
        return _asked(request, "/api/version", ollamas(request)[0])

    def tags(self, request: Request) -> HttpResponseBase:
        return _of_all(request, "/api/tags", _listed)

    def ps(self, request: Request) -> HttpResponseBase:
        return _of_all(request, "/api/ps", _under_users_names)


class ChangeViewSet(viewsets.ViewSet):
    """What an administrator does to models: /api/pull, push, create, copy, delete. Aliases stand for nothing here: to
    delete one must not delete the model that it stands for."""

    schema = None
    scopes = (Scope.ADMIN,)
    authentication_classes = (AdminSession, ApiKeyAuthentication)
    permission_classes = (KeyOrThisMachine,)
    path = ""
    method = "POST"
    source: tuple[str, ...] = ()  # the members, the first that has a value, which name a model that is there already
    visit = Visit.ERRAND

    def change(self, request: Request) -> HttpResponseBase:
        body = body_of(request)
        model = next((body[name] for name in self.source if body.get(name)), "")
        backend = ollama_for(request, model if isinstance(model, str) else "")
        whole = partial(as_given, self.path)
        return hand_on(request, Call(backend, self.path, body, STEPS, whole, method=self.method, visit=self.visit))

    def me(self, request: Request) -> HttpResponseBase:
        """Who is signed in at ollama.com, which `ollama push` asks first."""
        call = Call(ollamas(request)[0], "/api/me", None, STEPS, partial(as_given, "/api/me"), visit=Visit.QUESTION)
        return hand_on(request, call)


class BlobViewSet(viewsets.ViewSet):
    """The files that `ollama create` brings along: /api/blobs/sha256:…, handed on piece by piece and kept nowhere."""

    schema = None
    scopes = (Scope.ADMIN,)
    authentication_classes = (AdminSession, ApiKeyAuthentication)
    permission_classes = (KeyOrThisMachine,)

    def look(self, request: Request, digest: str) -> HttpResponseBase:
        return _found(request, ollamas(request)[0], digest)

    def create(self, request: Request, digest: str) -> HttpResponseBase:
        backend = ollamas(request)[0]
        found = _found(request, backend, digest)
        if found.status_code != 404:
            return found
        with ExitStack() as held:
            take_a_place(owner_of(request), held)
            try:
                head, content = backends.send_blob(backend.url, digest, _pieces(request._request))
            except NotConnected:
                raise away(backend) from None
            except Broken as error:
                raise broken(error) from None
        return as_given("/api/blobs", head, content)


def _asked(request: Request, path: str, backend: Backend) -> HttpResponse:
    call = Call(backend, path, None, ANSWERS, partial(as_given, path), method="GET", visit=Visit.QUESTION)
    response = hand_on(request, call)
    assert isinstance(response, HttpResponse)
    return response


def _of_all(request: Request, path: str, shown: Callable[[list[JSON]], list[JSON]]) -> HttpResponse:
    """What all Ollamas that answer say, `shown` to users; of one, if nothing is to be changed, byte by byte."""
    answers: list[HttpResponse] = []
    errors: list[ApiError] = []
    for backend in ollamas(request):
        try:
            answers.append(_asked(request, path, backend))
        except ApiError as error:
            errors.append(error)
    if not answers:
        raise errors[0]
    models = [model for answer in answers for model in _models(answer.content)]
    users = shown(models)
    if len(answers) == 1 and users == models:
        return answers[0]
    content = json.dumps({"models": users}, ensure_ascii=True, separators=(",", ":"))
    return HttpResponse(content, content_type="application/json; charset=utf-8")


def _models(content: bytes) -> list[JSON]:
    try:
        models = strict_json.loads(content)["models"]
    except (ValueError, LookupError, TypeError):
        return []
    return [each for each in models if isinstance(each, dict)] if isinstance(models, list) else []


def _listed(models: list[JSON]) -> list[JSON]:
    """Without those that we derived, and each name once: the first server that has it answers."""
    first: dict[Any, JSON] = {}
    for each in models:
        if ollama_derived.read(str(each.get("name"))) is None:
            first.setdefault(each.get("name"), each)
    return list(first.values())


def _under_users_names(models: list[JSON]) -> list[JSON]:
    """A model that we derived bears the name of the user's model that it was derived from."""
    made = [ollama_derived.read(str(each.get("name"))) for each in models]
    return [
        each | {"name": own.origin, "model": own.origin} if own else each
        for each, own in zip(models, made, strict=True)
    ]


def _found(request: Request, backend: Backend, digest: str) -> HttpResponseBase:
    """Whether the Ollama has the file already: a 200, or a 404."""
    if not DIGEST.fullmatch(digest):
        raise ApiError(f"Invalid digest '{digest[:100]}'. Expected sha256: and 64 hexadecimal digits.")
    whole = partial(as_given, "/api/blobs")
    call = Call(backend, f"/api/blobs/{digest}", None, STEPS, whole, method="HEAD", visit=Visit.QUESTION)
    return hand_on(request, call)


def _pieces(request: HttpRequest) -> Iterator[bytes]:
    """The body as it comes."""
    while piece := request.read(PIECE_BYTES):
        yield piece
