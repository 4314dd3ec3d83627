"""What the APIs that only an Ollama has are passed through with: its own, and Anthropic's."""

from django.http import HttpResponse
from rest_framework.request import Request

from batches import backends, registry
from batches.api.pass_through import backend_with, beyond_reach, kind_of, read_body, unavailable
from batches.backends.relay import Head
from batches.backends.replies import JSON
from batches.models import Backend
from common import errors
from common.errors import ApiError

OLLAMA = "ollama"


def body_of(request: Request) -> JSON:
    """The JSON object in the body, whatever its type is said to be: Ollama does not look, and curl says it is a form.

    The names of its members are in lower case, as Go reads them: else a name in capitals would reach Ollama unseen.
    Raises ApiError.
    """
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise ApiError(f"Unsupported Content-Encoding: '{coding[:100]}'. Send the body uncompressed.", status=415)
    if not int(request.META.get("CONTENT_LENGTH") or 0):
        raise ApiError("missing request body")  # as Ollama says it
    body = read_body(request._request, request._request)
    if not isinstance(body, dict):
        raise errors.invalid_type("body", "an object", body)
    return {name.casefold(): value for name, value in body.items()}


def ollamas(request: Request) -> list[Backend]:
    """The Ollamas that we can reach, ours first if it answers; ours may be away, and is then the last. Raises ApiError
    if there is none."""
    own = registry.known_own()
    live = [each for each in registry.live_backends() if each != own and each.kind == OLLAMA and each.is_fresh]
    others = [each for each in live if registry.is_in_reach(each)]
    if own is not None and own.kind == OLLAMA:
        return [own, *others] if own.is_fresh else [*others, own]
    if others:
        return others
    if live and not (own is not None and own.is_fresh):
        raise unavailable(f"No Ollama can be asked from here. {beyond_reach(live[0])}")
    own = own or registry.own_backend()
    if not own.kind and kind_of(own).name == OLLAMA:
        return [own]
    raise ApiError(
        f"{request.path} is passed through to an Ollama alone, and the model server at {own.url} is none "
        f"({own.kind or kind_of(own).name}). Use the endpoints under /v1 (see /v1/openapi.json).",
        status=404,
    )


def ollama_for(request: Request, model: str) -> Backend:
    """The Ollama that has this model; if none has it, the first one, which says so. Raises ApiError."""
    all_of_them = ollamas(request)
    if found := next((each for each in all_of_them if each.is_fresh and each.has_model(model)), None):
        return found
    # Another one has it, beyond our reach; ours may have it since a moment ago.
    own = registry.known_own()
    if model and not (own is not None and own.is_fresh):
        backend_with(model, "")
    return all_of_them[0]


def as_given(path: str, head: Head, content: bytes) -> HttpResponse:
    """Ollama's answer from this path as it gave it, its errors too. Raises ApiError for an answer of something else."""
    kind = backends.kind_named(OLLAMA)
    is_json = head.media_type.endswith("json")
    if 300 <= head.status < 400 or (head.status in (401, 403) and not is_json):
        raise ApiError(kind.misconfigured_hint(head.status), status=502, type="server_error")
    if content and not is_json:
        if head.status == 404:
            raise ApiError(kind.missing_endpoint_hint(path), status=404, code="unknown_url")
        raise ApiError(f"{kind.title} answered with something that is not JSON.", status=502, type="server_error")
    response = HttpResponse(content, status=head.status, content_type=head.content_type or None)
    if not head.content_type:
        del response["Content-Type"]
    if head.retry_after:
        response["Retry-After"] = head.retry_after
    return response
