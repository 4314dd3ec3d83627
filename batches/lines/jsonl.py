"""The input file, read line by line in bounded memory, and every rule about a line. Pure; knows no database."""

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from common import errors, strict_json
from common.errors import ApiError, batch_error

ENDPOINTS = ["/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions"]
MAX_CUSTOM_ID_LENGTH = 512
MAX_MODEL_LENGTH = 255
BOM = b"\xef\xbb\xbf"


class RawLine(NamedTuple):
    """A line as it stands in the file. `content` has neither line end nor BOM; it is None if the line is longer than
    allowed, and empty for a line of white space, which is no request."""

    number: int
    offset: int
    content: bytes | None
    next_offset: int


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


def read_lines(file: IO[bytes], *, offset: int = 0, number: int = 0, max_line_bytes: int) -> Iterator[RawLine]:
    """The lines of `file` from `offset` on; `number` lines come before `offset`.

    A line longer than `max_line_bytes` is skipped, and not read into memory.
    """
    file.seek(offset)
    if offset == 0 and file.read(len(BOM)) == BOM:
        offset = len(BOM)
    file.seek(offset)
    most = max_line_bytes + len(b"\r\n")
    readline = file.readline  # looked up once: Django's File finds its methods anew each time
    while chunk := readline(most):
        number += 1
        start, offset = offset, offset + len(chunk)
        content = chunk.rstrip(b"\r\n")
        # A full chunk without b"\n" goes on in the next one, whatever its last bytes are: they may be carriage returns.
        too_long = len(content) > max_line_bytes or (len(chunk) == most and not chunk.endswith(b"\n"))
        while too_long and not chunk.endswith(b"\n") and (chunk := readline(2**16)):
            offset += len(chunk)
        if too_long:
            yield RawLine(number, start, None, offset)
        else:
            yield RawLine(number, start, content if content.strip() else b"", offset)


def parse_body(content: bytes) -> dict[str, Any]:
    """The body of a line that validation found good. Raises what parsing a damaged line can raise."""
    body: dict[str, Any] = strict_json.loads(content)["body"]
    return body


def parse(raw: RawLine, *, endpoint: str, default_model: str, max_line_bytes: int) -> Request:
    """The request on a line; LineRefused with the reason if there is none."""

    def refuse(code: str, message: str, param: str | None = None) -> LineRefused:
        return LineRefused(raw.number, code, message, param)

    if raw.content is None:
        raise refuse("line_too_long", f"This line is longer than {max_line_bytes} bytes (MAX_LINE_BYTES).")
    try:
        line = strict_json.loads(raw.content)
    except UnicodeDecodeError:
        raise refuse("invalid_json_line", "This line is not valid UTF-8.") from None
    except strict_json.TooDeep:
        most = strict_json.MOST_LEVELS
        raise refuse("invalid_json_line", f"This line is nested deeper than {most} levels.") from None
    except ValueError:
        raise refuse("invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not isinstance(line, dict):
        raise refuse("invalid_json_line", "This line is not a JSON object.")

    for name in ("custom_id", "method", "url", "body"):
        if line.get(name) is None:
            raise refuse("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    custom_id, body = line["custom_id"], line["body"]
    if reason := _bad_custom_id(custom_id):
        raise refuse("invalid_custom_id", reason, "custom_id")
    if line["method"] != "POST":
        raise refuse("invalid_method", "The method of a request must be POST.", "method")
    if line["url"] != endpoint:
        raise refuse("invalid_url", "The URL provided for this request does not match the batch endpoint.", "url")
    if not isinstance(body, dict):
        raise refuse("invalid_request", "The body of a request must be a JSON object.", "body")
    if body.get("stream"):
        raise refuse("streaming_unsupported", "Streaming is not supported in the Batch API.", "body.stream")
    try:
        model = model_of(body, default_model)
    except ApiError:
        reason = f"The model must be a string of at most {MAX_MODEL_LENGTH} characters."
        raise refuse("invalid_request", reason, "body.model") from None
    if model == "":
        raise refuse("invalid_request", "Model parameter is required.", "body.model")
    return Request(raw.number, raw.offset, len(raw.content), custom_id, model, body)


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
