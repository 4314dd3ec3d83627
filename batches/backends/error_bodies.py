"""What the body of an error reply says, however it is wrapped, and how OpenAI says the same."""

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from batches.backends.replies import JSON

MOST_LAYERS = 10  # of JSON in JSON, and of members in members
# Where JSON begins within a text, as in `llama-server apply-template error: {"error":{…}}`.
WRAPPED = re.compile(r'\{\s*"(?:error|message|detail)"')
# What the message of a missing model begins with, up to where the line's own words may follow: "model 'x' not found"
# (Ollama, vLLM, llama.cpp's router, LocalAI), "no router for requested model" (llama-swap), "Invalid model identifier"
# and "No models loaded" (LM Studio), "Request for unknown model" (Triton), and what other servers say alike.
_A_MODEL = r"((an?|any|available|local|loaded|peer|real|requested|specified|such|that|the|this|valid) )*models?(id)?"
NAMES_A_MODEL = re.compile(
    r"\W*((error|llama-swap|not ?found(error)?|404)\W+)*"
    r"((request for )?(unknown|unsupported|unrecognized|unavailable|invalid|missing|no) "
    r"|(could not|cannot|can't|did not|unable to|failed to) (find|locate) |there is no "
    r"|no (local |peer )?(backend|deployment|instance|peer|provider|router|server|worker)s?"
    r"( available| configured| found)? for )?"
    rf"{_A_MODEL}(?![.-]?\w|[\"'`])",
    re.IGNORECASE,
)
# The whole message of a missing route: an id of the line's own that is not found has more words.
NAMES_A_ROUTE = re.compile(r"\W*(404)?\W*((page|file|endpoint|route|url|path) )?not found\W*", re.IGNORECASE)

# What servers say in words of their own, from the first word on: behind it may stand words of the line. Sources:
# llama.cpp (tools/server), Ollama (server/routes.go, llm/llama_server.go, server/images.go), vLLM (renderers/params.py,
# v1/engine/input_processor.py, multimodal/processing/context.py), OpenAI, LM Studio, Text Generation Inference.
PREFIX = r"(?:llama-server [\w-]+ error: |(?:de)?tokenize error: )?"
NAMES_MEDIA = re.compile(
    PREFIX + r"(?:(?:image|audio|video)s? (?:input )?(?:is|are) not supported|multimodal data provided"
    r"|this model is missing data required for image input|at most 0 (?:image|audio|video)\(s\) may be provided"
    r"|\S+ (?:does not support vision|is not a multimodal model)\b)",
    re.IGNORECASE,
)
TOO_LONG = re.compile(
    PREFIX + r"(?:(?:(?:the|this|your|decoder|encoder) )*(?:request|prompt|inputs?)"
    r"(?: length| after truncation)?(?: \([^)]*\))?(?: plus the number of requested output tokens(?: \([^)]*\))?)?"
    r" (?:exceeds|is longer than|is larger than) (?:(?:the|its|model's|available|maximum|max) )*"
    r"(?:context|model) (?:length|size|window)"
    r"|this model's maximum context length is|you passed \d+ input tokens and requested"
    r"|'?max_\w+'?(?: or '\w+')? is too large: \d+\. this model's maximum context"
    r"|prompt (?:is )?too long|trying to keep the first \d+ tokens when context"
    r"|`inputs` (?:tokens|must have less than))",
    re.IGNORECASE,
)
TOO_LONG_TYPE = "exceed_context_size_error"
# The statuses by which a server refuses a request for what is in it.
REFUSALS = (400, 413, 415, 422)
# The member of a body that the model reads: what such an error is about.
PROMPT_OF = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}


@dataclass(frozen=True)
class ErrorBody:
    """The members of OpenAI's error object as the server filled them; empty where it did not."""

    message: str = ""
    type: str = ""
    param: str = ""
    code: str = ""
    is_api_error: bool = False  # in an envelope of the API: no page of a proxy or of a router
    is_wrapped: bool = False  # JSON within a string
    status: int = 0  # of a wrapped error: the HTTP status that the inner server gave it

    @property
    def is_about_model(self) -> bool:
        """The model is not there. Ollama says so in words alone, whose beginning no line chooses."""
        if self.param or self.code:
            return self.param == "model" or self.code == "model_not_found"
        return NAMES_A_MODEL.match(self.message) is not None

    @property
    def is_refusal(self) -> bool:
        """The request itself cannot be answered, whatever the status: some servers say so with a 500."""
        return bool(self._code_of_input) or (self.is_wrapped and self.status in REFUSALS)

    @property
    def is_about_route(self) -> bool:
        """Nothing is at this address."""
        return not self.is_api_error or (not self.param and NAMES_A_ROUTE.fullmatch(self.message) is not None)

    def openai_code(self, status: int) -> str:
        """OpenAI's code for a refusal that came without one; empty if there is none."""
        if self.code or not (400 <= status < 500 or self.is_refusal):
            return ""
        if status == 404:
            return "model_not_found" if self.is_about_model else ""
        return self._code_of_input

    @property
    def _code_of_input(self) -> str:
        if self.type == TOO_LONG_TYPE or TOO_LONG.match(self.message):
            return "context_length_exceeded"
        return "unsupported_value" if NAMES_MEDIA.match(self.message) else ""


def read(body: Any, text: str = "") -> ErrorBody:
    """What the parsed body of an error reply says; `text` is the body itself, for a body that is no JSON object."""
    return _read(body if isinstance(body, dict) else text, MOST_LAYERS)


def handed_out(body: JSON, error: ErrorBody, status: int, endpoint: str) -> JSON:
    """The body that users get for `body`, of which `error` was read: the same, unless it is wrapped or lacks OpenAI's
    code."""
    code = error.openai_code(status)
    if not code and not error.is_wrapped:
        return body
    kind = "invalid_request_error" if code or status < 500 else error.type or "api_error"
    about = "model" if code == "model_not_found" else PROMPT_OF.get(endpoint, "input") if code else None
    told = {"message": error.message, "type": kind, "param": error.param or about, "code": code or error.code or None}
    return {"error": told}


def _read(value: Any, layers: int) -> ErrorBody:
    if not layers:
        return ErrorBody()
    match value:
        case str() as text:
            return _read_text(text, layers)
        case {"error": str() | dict() as error}:
            return replace(_read(error, layers - 1), is_api_error=True)
        case {"message": str() as message}:
            inner = _read(message, layers - 1)
            own = {name: value[name] for name in ("type", "param", "code") if isinstance(value.get(name), str)}
            status = {"status": value["code"]} if isinstance(value.get("code"), int) and not inner.status else {}
            return replace(inner, **{name: text for name, text in own.items() if not getattr(inner, name)}, **status)
        case {"detail": str() as detail}:
            return _read(detail, layers - 1)
    return ErrorBody()


def _read_text(text: str, layers: int) -> ErrorBody:
    begins = WRAPPED.search(text)
    if begins is None or not (read := _read(_json_to_the_end(text[begins.start() :]), layers - 1)).message:
        return ErrorBody(text.strip())
    before = text[: begins.start()].lstrip()
    # Behind other words it is perhaps what the inner server logged last, and no answer to this request.
    status = read.status if re.fullmatch(PREFIX, before) else 0
    return replace(read, message=before + read.message, is_wrapped=True, status=status)


def _json_to_the_end(text: str) -> Any:
    """The JSON that `text` is; None if it is none or more follows: then it is a quotation, of a line perhaps."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
