"""JSON in, JSON out, whatever media types a request names."""

from typing import Any

from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from common import errors


class AlwaysJson(BaseContentNegotiation):
    """Clients of the OpenAI API ask for odd types (`application/binary`); none of them may get a 406."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        wanted = (request.content_type or "").partition(";")[0].strip().lower()
        for parser in parsers:
            if parser.media_type == wanted:
                return parser
        # An empty body needs no type: DRF uses the parser only if there is a body to read.
        return parsers[0] if not wanted else None

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        renderer: BaseRenderer = renderers[0]
        return renderer, renderer.media_type


def json_object(request: Request) -> dict[str, Any]:
    """The JSON body, which has to be an object."""
    if not isinstance(request.data, dict):
        raise errors.invalid_type("body", "an object", request.data)
    return request.data
