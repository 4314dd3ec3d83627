"""Lists in pages, as OpenAI's clients read them."""

from typing import Any

from django.db.models import Model, Q, QuerySet
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response

from common import errors
from common.errors import ApiError
from common.owners import rows


def whole_number(param: str, text: str, *, most: int) -> int:
    """A number of a query string, from 0 to `most`. Raises ApiError."""
    try:
        number = int(text)
    except ValueError:
        raise errors.not_an_integer(param, text) from None
    if refusal := errors.out_of_range(param, number, least=0, most=most):
        raise refusal
    return number


class CursorPagination(BasePagination):
    """OpenAI's list envelope: `after` is an object's id, newest first unless `order=asc`, ties settled by id.

    Subclasses bound `limit` from above; 0 gives an empty page, as with OpenAI. An `after` that names nothing is
    refused: if it began again with page one, both official SDKs would loop for ever.
    """

    most_limit = 100
    default_limit = 20
    orders: tuple[str, ...] = ("desc",)

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        limit = self._limit(request)
        order = request.query_params.get("order") or "desc"
        if "asc" in self.orders and order not in self.orders:
            raise errors.invalid_value("order", order, list(self.orders))
        newest_first = order != "asc" or "asc" not in self.orders
        if after := request.query_params.get("after"):
            queryset = queryset.filter(self._beyond(request, queryset.model, after, newest_first))
        sign = "-" if newest_first else ""
        rows = list(queryset.order_by(f"{sign}created_at", f"{sign}pk")[: limit + 1])
        self.has_more = len(rows) > limit
        return rows[:limit]

    def get_paginated_response(self, data: Any) -> Response:
        return Response(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": self.has_more,
            }
        )

    def get_schema_operation_parameters(self, view: Any) -> list[Any]:
        limit = {"minimum": 0, "maximum": self.most_limit, "default": self.default_limit}
        schemas: dict[str, dict[str, Any]] = {"after": {"type": "string"}, "limit": {"type": "integer"} | limit}
        if "asc" in self.orders:
            schemas["order"] = {"type": "string", "enum": list(self.orders), "default": "desc"}
        query = {"in": "query", "allowEmptyValue": True}  # as none: `?after=$last` of a script's first round
        return [query | {"name": name, "schema": schema} for name, schema in schemas.items()]

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        properties = {
            "object": {"type": "string", "const": "list"},
            "data": schema,
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
            "has_more": {"type": "boolean"},
        }
        return {"type": "object", "properties": properties, "required": list(properties)}

    def _limit(self, request: Request) -> int:
        text = request.query_params.get("limit") or str(self.default_limit)
        return whole_number("limit", text, most=self.most_limit)

    def _beyond(self, request: Request, model: type[Model], after: str, newest_first: bool) -> Q:
        # Hidden rows too: a cursor stays valid if the file it names is deleted between two pages.
        of_owner: QuerySet[Any] = rows(request, model._default_manager.all())
        known = of_owner.filter(pk=after) if "\x00" not in after else of_owner.none()
        created_at = known.values_list("created_at", flat=True).first()
        if created_at is None:
            raise ApiError(f"Invalid 'after': no object with id '{after}'.", param="after", code="invalid_value")
        way = "lt" if newest_first else "gt"
        return Q(**{f"created_at__{way}": created_at}) | Q(created_at=created_at, **{f"pk__{way}": after})
