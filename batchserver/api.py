"""DRF glue: authentication by API key, cursor pagination, and the one place that turns exceptions into the envelope."""

import errno
import logging
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import DatabaseError, InterfaceError, OperationalError
from django.db.models import Model, Q, QuerySet
from django.http import Http404, HttpRequest, JsonResponse, UnreadablePostError
from rest_framework import exceptions, serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.pagination import BasePagination
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from batchserver import errors, schema
from batchserver.errors import ApiError
from batchserver.models import ApiKey

logger = logging.getLogger(__name__)


class ApiKeyAuthentication(BaseAuthentication):
    """Until the first ApiKey exists any or no Authorization is accepted; from then on every call needs a live one."""

    def authenticate(self, request: Request) -> tuple[None, ApiKey] | None:
        if not ApiKey.objects.exists():
            _refuse_other_pages(request)
            return None
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise ApiError("Missing bearer or basic authentication in header", status=401)
        key = ApiKey.objects.for_secret(secret.strip())
        if key is None:
            raise ApiError(
                "Incorrect API key provided. Make one with `python manage.py create_api_key`.",
                status=401,
                code="invalid_api_key",
            )
        return None, key


def _refuse_other_pages(request: Request) -> None:
    """Where no key is needed, a page that somebody has open could do anything here by a form that it sends: a browser
    says where such a request comes from. Clients that are no browser say nothing."""
    origin = request.headers.get("Origin")
    if request.method in ("GET", "HEAD", "OPTIONS") or origin is None:
        return
    own = f"{request.scheme}://{request.get_host()}"
    if origin != own and origin not in settings.CSRF_TRUSTED_ORIGINS:
        raise ApiError(
            f"Requests of pages at {origin[:100]} are not taken. Add it to CSRF_TRUSTED_ORIGINS, or create an API key.",
            status=403,
        )


class AlwaysJson(BaseContentNegotiation):
    """Clients of the OpenAI API ask for odd types (`application/binary`); none of them may get a 406."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        wanted = (request.content_type or "").partition(";")[0].strip().lower()
        for parser in parsers:
            if parser.media_type == wanted:
                return parser
        # An empty body needs no type: DRF asks for a parser only if there is one to read.
        return parsers[0] if not wanted else None

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        renderer: BaseRenderer = renderers[0]
        return renderer, renderer.media_type


class CursorPagination(BasePagination):
    """OpenAI's list envelope: `after` is an object's id, newest first unless `order=asc`, ties settled by id.

    Subclasses bound `limit` from above; 0 gives an empty page, as with OpenAI. An `after` that names nothing is
    refused: starting over at page one would send both official SDKs round for ever.
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
            queryset = queryset.filter(self._beyond(queryset, after, newest_first))
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
        query = {"in": "query", "allowEmptyValue": True}  # taken for none: `?after=$last` of a script's first round
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
        try:
            limit = int(text)
        except ValueError:
            raise errors.not_an_integer("limit", text) from None
        if refusal := errors.out_of_range("limit", limit, least=0, most=self.most_limit):
            raise refusal
        return limit

    def _beyond(self, queryset: QuerySet[Any], after: str, newest_first: bool) -> Q:
        # Looked up among all rows: a cursor stays good while the file it names is deleted between two pages.
        model: type[Model] = queryset.model
        known = model._default_manager.filter(pk=after) if "\x00" not in after else queryset.none()
        created_at = known.values_list("created_at", flat=True).first()
        if created_at is None:
            raise ApiError(f"Invalid 'after': no object with id '{after}'.", param="after", code="invalid_value")
        way = "lt" if newest_first else "gt"
        return Q(**{f"created_at__{way}": created_at}) | Q(created_at=created_at, **{f"pk__{way}": after})


def json_object(request: Request) -> dict[str, Any]:
    """The JSON body, which has to be an object."""
    if not isinstance(request.data, dict):
        raise errors.invalid_type("body", "an object", request.data)
    return request.data


BAD_JSON = (
    "We could not parse the JSON body of your request. The API expects a JSON payload, but what was sent was not valid "
    "JSON."
)


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """The envelope for whatever a view raised. None for a bug: Django logs it and `server_error` below answers."""
    error = _as_api_error(exc, context["request"])
    if error is None:
        return None
    return Response(error.envelope, status=error.status, headers=error.headers)


def _as_api_error(exc: Exception, request: Request) -> ApiError | None:
    match exc:
        case ApiError():
            return exc
        case serializers.ValidationError():
            return _first_problem(exc.detail)
        case exceptions.ParseError():
            multipart = (request.content_type or "").startswith("multipart/")
            return ApiError(f"We could not parse the form: {exc.detail}" if multipart else BAD_JSON)
        case exceptions.UnsupportedMediaType():
            return ApiError(f"Unsupported Content-Type: '{request.content_type}'.", status=415)
        case exceptions.MethodNotAllowed():
            return ApiError(f"Not allowed to {request.method} on {request.path}.", status=405)
        case exceptions.APIException():
            return ApiError(str(exc.detail), status=exc.status_code)
        case Http404():
            return ApiError(f"Invalid URL ({request.method} {request.path})", status=404)
        case PermissionDenied():
            return ApiError("You are not allowed to do this.", status=403)
        case RequestDataTooBig():
            most = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
            return ApiError(f"The request body is too large. Expected at most {most} bytes.", status=413)
        case SuspiciousOperation():
            return ApiError(str(exc))
        case RecursionError():
            return ApiError(BAD_JSON)
        case UnreadablePostError():
            return ApiError("The request body broke off.")
        case DatabaseError() if reason := schema.explain(exc):
            logger.error("%s (%s)", reason, exc)
            return ApiError(reason, status=503, type="server_error")
        case OperationalError() | InterfaceError():
            logger.warning("the database did not answer: %s", exc)
            return ApiError(
                "The database is busy or away. Try again.",
                status=503,
                type="server_error",
                headers={"Retry-After": "5"},
            )
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            logger.error("no room to store a file: %s", exc)
            return errors.no_room()
    return None


def _first_problem(detail: Any, path: str = "") -> ApiError:
    """The first leaf of DRF's tree of validation messages, with its dotted path as `param`."""
    if isinstance(detail, dict):
        name, inner = next(iter(detail.items()))
        return _first_problem(inner, f"{path}.{name}" if path else str(name))
    if isinstance(detail, list) and detail:
        return _first_problem(detail[0], path)
    code = getattr(detail, "code", None)
    if code == "required":
        return errors.missing_parameter(path)
    return ApiError(str(detail), param=path or None, code=None if code == "invalid" else code)


def not_found(request: HttpRequest, exception: Exception | None = None) -> JsonResponse:
    """handler404: an unknown URL, as the API says it."""
    error = ApiError(f"Invalid URL ({request.method} {request.path})", status=404)
    return JsonResponse(error.envelope, status=404)


def bad_request(request: HttpRequest, exception: Exception | None = None) -> JsonResponse:
    """handler400: what Django refuses before any view runs, a Host header above all."""
    message = "Bad request."
    if type(exception).__name__ == "DisallowedHost":
        host = request.headers.get("Host", "")
        message = f"Host '{host[:100]}' is not served here. Add it to ALLOWED_HOSTS."
    return JsonResponse(ApiError(message).envelope, status=400)


def server_error(request: HttpRequest) -> JsonResponse:
    """handler500: a bug of ours. The traceback is in the log."""
    error = ApiError("The server had an error while processing your request.", status=500, type="server_error")
    return JsonResponse(error.envelope, status=500)
