"""How a client reads on in the lines of a batch: from a place, with headers that say how far it got."""

from django.http import StreamingHttpResponse
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request

from batches.following import Following
from batches.models import Batch
from common.pagination import whole_number

MOST_PLACE = 2**63 - 1


def place_parameter(name: str) -> OpenApiParameter:
    """The query's parameter `name`, which `stream` reads."""
    return OpenApiParameter(
        name,
        {"type": "integer", "minimum": 0, "maximum": MOST_PLACE, "default": 0},
        description="`X-Last-Line` of the answer before: only lines that finished later are sent.",
    )


def place_of(request: Request, name: str) -> int:
    """The place that the query's `name` gives, 0 without one. Raises a 400."""
    return whole_number(name, request.query_params.get(name, "0"), most=MOST_PLACE)


def stream(batch: Batch, kind: str, after: int, content_type: str = "application/jsonl") -> StreamingHttpResponse:
    """The lines (`kind`: output or errors) after this place, as JSONL. `X-Incomplete` says whether more may
    come, and `X-Last-Line` is the place to go on after."""
    following = Following.of(batch, kind, after)
    answer = StreamingHttpResponse(following.lines(), content_type=content_type)
    answer["X-Incomplete"] = "false" if following.is_whole else "true"
    answer["X-Last-Line"] = str(max(following.after, following.last))
    return answer
