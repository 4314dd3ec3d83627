"""JSON in, JSON out, whatever media types a request names."""

from typing import Any

from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import JSONParser
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


class JsonParser(JSONParser):
    """The JSON body of a call: as strict as a line of a batch."""

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        require_utf8(parser_context["request"]._request)
        return read_json(stream.read())


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
