"""POST /v1/messages, Anthropic's API, which newer Ollamas have: passed through as Ollama's own is."""

from functools import partial

from django.http import HttpResponseBase
from rest_framework import viewsets
from rest_framework.request import Request

from batches.api.native import as_given, body_of, ollama_for
from batches.api.pass_through import Call, asked_model, hand_on
from batches.api.streams import MESSAGES
from batches.backends.parameters.forbidden import hosted_in_messages
from common.errors import ApiError
from common.models import Scope

PATH = "/v1/messages"


class MessagesViewSet(viewsets.ViewSet):
    scopes = (Scope.CHAT,)
    schema = None  # the OpenAPI document is about OpenAI's API

    def create(self, request: Request) -> HttpResponseBase:
        body = body_of(request)
        if refusal := hosted_in_messages(body):
            raise ApiError(f"{refusal[0]}: {refusal[1]}")
        model = asked_model(body)
        call = Call(ollama_for(request, model), PATH, body | {"model": model}, MESSAGES, partial(as_given, PATH))
        return hand_on(request, call)
