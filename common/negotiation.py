"""JSON in, JSON out, whatever media types a request names."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from common import errors, strict_json
from common.charset import require_utf8
from common.errors import ApiError
from common.jsonl import BOM


class AlwaysJson(BaseContentNegotiation):
    """Clients of the OpenAI API ask for odd types (`application/binary`); none of them may get a 406."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        coding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise ApiError(f"Unsupported Content-Encoding: '{coding}'. Send the body uncompressed.", status=415)
        wanted = (request.content_type or "").partition(";")[0].strip().lower()
        for parser in parsers:
            if parser.media_type == wanted:
                return parser
        # An empty body needs no type: DRF uses the parser only if there is a body to read.
        return parsers[0] if not wanted else None

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        renderer: BaseRenderer = renderers[0]
        return renderer, renderer.media_type


class JsonParser(BaseParser):
    """The JSON body of a call: as strict as a line of a batch."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        request = parser_context["request"]._request
        require_utf8(request)
        content = read_body(request, stream, settings.DATA_UPLOAD_MAX_MEMORY_SIZE)
        # Only a chunked body can be empty here.
        return read_json(content) if content else {}


def told_length(request: HttpRequest | Request) -> int:
    """How many bytes the body has, as the client says; 0 if it does not."""
    is_chunked = request.headers.get("Transfer-Encoding", "").lower() == "chunked"
    return 0 if is_chunked else int(request.META.get("CONTENT_LENGTH") or 0)


def read_body(request: HttpRequest, stream: Any, most_bytes: int, *, setting: str = "") -> bytes:
    """The whole body, of `most_bytes` at most. Raises ApiError, for a length that is told before a byte of it is read.

    `setting` is the name of the limit, for the message.
    """
    length = told_length(request)
    content: bytes = b"" if length > most_bytes else stream.read(most_bytes + 1)
    if max(length, len(content)) > most_bytes:
        limit = f"{most_bytes} bytes" + (f" ({setting})" if setting else "")
        raise ApiError(f"The request body is too large. Expected at most {limit}.", status=413)
    return content


def read_json(content: bytes) -> Any:
    """The value of a JSON body; a BOM before it is passed over. Raises ApiError."""
    try:
        return strict_json.loads(content.removeprefix(BOM))
    except ValueError:
        raise errors.bad_json() from None


def json_object(request: Request) -> dict[str, Any]:
    """The JSON body, which has to be an object."""
    if not isinstance(request.data, dict):
        raise errors.invalid_type("body", "an object", request.data)
    return request.data
