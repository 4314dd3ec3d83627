"""Every rule about a line of the input file. Pure; knows no database."""

from typing import Any, NamedTuple

from common import errors, strict_json
from common.byte_forms import looks_like
from common.errors import ApiError, batch_error
from common.jsonl import RawLine

ENDPOINTS = ["/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions"]
MAX_CUSTOM_ID_LENGTH = 512
MAX_MODEL_LENGTH = 255


class Request(NamedTuple):
    """A good line. `offset` and `length` say where its bytes are; `model` is the default if the line names none."""

    number: int
    offset: int
    length: int
    custom_id: str
    model: str
    body: dict[str, Any]


class LineRefused(Exception):
    """A bad line. `error` is its entry in the batch's `errors.data`."""

    def __init__(self, line: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.error = batch_error(code, message, param=param, line=line)


def parse_body(content: bytes) -> dict[str, Any]:
    """The body of a line that validation found good. Raises what parsing a damaged line can raise."""
    body: dict[str, Any] = strict_json.loads(content)["body"]
    return body


def parse(raw: RawLine, *, endpoint: str, default_model: str, max_line_bytes: int) -> Request:
    """The request on a line; LineRefused with the reason if there is none."""
    if raw.content is None:
        reason = f"This line is longer than {max_line_bytes} bytes (MAX_LINE_BYTES)."
        raise LineRefused(raw.number, "line_too_long", reason)
    line = _json_object(raw.number, raw.content)
    if refusal := _refusal(line, endpoint):
        raise LineRefused(raw.number, *refusal)
    body = line["body"]
    try:
        model = model_of(body, default_model)
    except ApiError:
        reason = f"The model must be a string of at most {MAX_MODEL_LENGTH} characters."
        raise LineRefused(raw.number, "invalid_request", reason, "body.model") from None
    if model == "":
        raise LineRefused(raw.number, "invalid_request", "Model parameter is required.", "body.model")
    return Request(raw.number, raw.offset, len(raw.content), line["custom_id"], model, body)


def _json_object(number: int, content: bytes) -> dict[str, Any]:
    try:
        line = strict_json.loads(content)
    except ValueError as error:
        raise LineRefused(number, "invalid_json_line", _not_json(content, error)) from None
    if not isinstance(line, dict):
        raise LineRefused(number, "invalid_json_line", "This line is not a JSON object.")
    return line


def _not_json(content: bytes, error: ValueError) -> str:
    if isinstance(error, strict_json.TooDeep):
        return f"This line is nested deeper than {strict_json.MOST_LEVELS} levels."
    if form := looks_like(content):
        return f"This line must be JSON in UTF-8, and looks like {form}."
    if isinstance(error, UnicodeDecodeError):
        return "This line is not valid UTF-8."
    return "This line is not parseable as valid JSON."


def _refusal(line: dict[str, Any], endpoint: str) -> tuple[str, str, str] | None:
    """Code, message and param of the first thing that is wrong with the members of a line, the model aside."""
    for name in ("custom_id", "method", "url", "body"):
        if line.get(name) is None:
            return "missing_required_parameter", f"Missing required parameter: '{name}'.", name
    if reason := _bad_custom_id(line["custom_id"]):
        return "invalid_custom_id", reason, "custom_id"
    if line["method"] != "POST":
        return "invalid_method", "The method of a request must be POST.", "method"
    if line["url"] != endpoint:
        return "invalid_url", "The URL provided for this request does not match the batch endpoint.", "url"
    if not isinstance(line["body"], dict):
        return "invalid_request", "The body of a request must be a JSON object.", "body"
    if line["body"].get("stream"):
        return "streaming_unsupported", "Streaming is not supported in the Batch API.", "body.stream"
    return None


def model_of(body: dict[str, Any], default_model: str) -> str:
    """The model that a request names, or `default_model`. Raises ApiError for a value that is no model's name."""
    model = body.get("model")
    if model in (None, ""):
        return default_model
    if not isinstance(model, str):
        raise errors.invalid_type("model", "a string", model)
    if len(model) > MAX_MODEL_LENGTH:
        raise errors.too_long("model", model, MAX_MODEL_LENGTH)
    if not strict_json.is_storable(model):
        raise errors.not_storable("model")
    return model


def _bad_custom_id(custom_id: Any) -> str | None:
    if not isinstance(custom_id, str) or not custom_id:
        return "The custom_id must be a string that is not empty."
    if len(custom_id) > MAX_CUSTOM_ID_LENGTH:
        return f"The custom_id is longer than {MAX_CUSTOM_ID_LENGTH} characters."
    if not strict_json.is_storable(custom_id):
        return "The custom_id holds a NUL or half a surrogate pair."
    return None
