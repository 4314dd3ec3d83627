"""What a model server's reply means: the verdict on the reply, what is kept of it, and the tokens it counts."""

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from common import strict_json

JSON = dict[str, Any]
SERVER_ERRORS = tuple(range(500, 600))


class Verdict(Enum):
    """What a reply means for its line, and who is to blame."""

    ANSWERED = "answered"  # the line's result
    REFUSED = "refused"  # the line's own fault, for good: the reply goes to the error file as it is
    FAILED = "failed"  # the line may be charged with an attempt, and may be tried again
    BUSY = "busy"  # not now: tried again later, uncharged
    CRASHED = "crashed"  # the server went away under the line
    UNREACHABLE = "unreachable"  # nothing is sent until the server answers again; no line is charged
    MISCONFIGURED = "misconfigured"  # likewise, and a person has to act; unless a trial blames the line itself
    UNCHECKED = "unchecked"  # answered, but not known to the whole prompt: tried again, uncharged
    MODEL_MISSING = "model_missing"  # the server lists it no more: its lines wait uncharged, others go on
    ENDPOINT_MISSING = "endpoint_missing"  # the server answers, and has not this endpoint: likewise
    UNLOADABLE = "unloadable"  # the model cannot be loaded at present: its lines wait uncharged, others go on
    CUT = "cut"  # we ended the call ourselves


@dataclass(frozen=True)
class Usage:
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Reply:
    """What became of one call. `body` is compact ASCII JSON, or empty if there is no HTTP answer worth keeping: then
    `code` and `message` are the line's `error`."""

    verdict: Verdict
    status: int | None = None
    body: str = ""
    code: str = ""
    message: str = ""
    usage: Usage = field(default_factory=Usage)
    retry_after_s: float = 0.0
    listed: tuple[str, ...] = ()  # the models that the server listed, if it was asked because one is missing
    is_too_long: bool = False  # refused, because the context is too small for the prompt
    prompt_tokens: int = 0  # of such a prompt, as the server counted them; 0 if it did not say


LONGEST_CODE, LONGEST_MESSAGE = 64, 2000


def reason_of(reply: Reply) -> dict[str, str]:
    """`error_code` and `error_message` of a line that fails with this reply. They stay on its row once the reply's body
    is in the error file alone. Of an answer that names no code, its type or its HTTP status."""
    if reply.verdict is Verdict.ANSWERED:
        return {"error_code": "", "error_message": ""}
    code: Any = reply.code
    message: Any = reply.message
    if reply.body and not code:
        told = (parsed(reply.body.encode()) or {}).get("error")
        if isinstance(told, dict):
            code, message = told.get("code") or told.get("type"), message or told.get("message")
        else:
            message = message or told
        code = code if isinstance(code, str) and code else f"http_{reply.status}"
    return {
        "error_code": _storable(code)[:LONGEST_CODE],
        "error_message": _storable(str(message or ""))[:LONGEST_MESSAGE],
    }


def _storable(text: str) -> str:
    """Without what Postgres cannot store."""
    return text.replace("\x00", "").encode(errors="replace").decode()


def refused(code: str, message: str, param: str | None = None) -> Reply:
    """A reply that refuses a line for its own fault, as the endpoint itself would refuse it."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return Reply(Verdict.REFUSED, 400, compact({"error": error}))


def parsed(content: bytes) -> JSON | None:
    try:
        body = strict_json.loads(content)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def compact(body: JSON) -> str:
    return _compact(body)


# ASCII only: U+2028, U+2029 and U+0085 would split a line for clients that read with splitlines(). Made once, since
# json.dumps with arguments makes an encoder in each call.
_compact = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def enveloped(status: int, text: str) -> str:
    message = text.strip()[:1000] or f"The model server answered HTTP {status} without a body."
    return compact({"error": {"message": message, "type": "api_error", "param": None, "code": None}})


def usage_of(body: JSON) -> Usage:
    """The tokens that a body counts, under the names of the chat, completions and embeddings endpoints or of
    /v1/responses."""
    usage = body.get("usage")
    reasoning = ("completion_tokens_details.reasoning_tokens", "output_tokens_details.reasoning_tokens")
    return Usage(
        input_tokens=count(usage, "prompt_tokens", "input_tokens"),
        cached_tokens=count(usage, "prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens"),
        output_tokens=output_tokens(body),
        reasoning_tokens=count(usage, *reasoning),
    )


def output_tokens(body: JSON) -> int:
    return count(body.get("usage"), "completion_tokens", "output_tokens")


def count(thing: Any, *paths: str, below: int = 2**31) -> int:
    """The whole number at the first of these dotted paths that leads to one; 0 if none does."""
    for path in paths:
        place = thing
        for key in path.split("."):
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, int) and not isinstance(place, bool) and 0 <= place < below:
            return place
    return 0
