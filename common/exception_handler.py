"""The one place that turns exceptions into the envelope: those that a view raises, and those raised before a view."""

import logging
import sys
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import DatabaseError, Error, InterfaceError
from django.http import Http404, HttpRequest, JsonResponse, UnreadablePostError
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from common import database, disk, errors, schema
from common.errors import ApiError

logger = logging.getLogger(__name__)


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """The envelope for an exception of a view. None for a bug: Django logs it and `server_error` below answers."""
    error = _as_api_error(exc, context["request"])
    if error is None:
        return None
    return Response(error.body_at(context["request"].path), status=error.status, headers=error.headers)


def _as_api_error(exc: BaseException, request: Request | HttpRequest) -> ApiError | None:
    match exc:
        case ApiError():
            return exc
        case serializers.ValidationError():
            return _first_problem(exc.detail)
        case exceptions.ParseError():
            return ApiError(f"We could not parse the form: {exc.detail}")
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
        case UnreadablePostError(__cause__=TimeoutError()):
            return ApiError("The request body did not come in time (CLIENT_TIMEOUT_S). Send it again.", status=408)
        case UnreadablePostError():
            return ApiError("The request body broke off, or one of its chunks is malformed.")
        case DatabaseError() if reason := schema.explain(exc):
            logger.error("%s (%s)", reason, exc)
            return ApiError(reason, status=503, type="server_error")
        case DatabaseError() if reason := disk.database_trouble(exc):
            logger.error("the disk of the database fails: %s", exc)
            return _disk_fails(reason, request)
        case Error() if database.is_away(exc):
            logger.warning("the database did not answer: %s", exc)
            return ApiError(
                "The database is busy or away. Try again.",
                status=503,
                type="server_error",
                headers={"Retry-After": "5"},
            )
        case disk.RemoteError():
            logger.error("the storage of files fails: %s", exc.strerror)
            return ApiError(
                f"The storage of the server fails. {disk.trouble(exc)}",
                status=507 if exc.errno in disk.NO_ROOM else 503,
                type="server_error",
                headers={"Retry-After": "30"},
            )
        case OSError() if exc.errno in disk.NO_ROOM:
            logger.error("no room to store a file: %s", exc)
            return errors.no_room()
        case OSError() if exc.errno in disk.OF_FILES or isinstance(exc, FileNotFoundError):
            logger.error("a file cannot be read or written: %s", exc)
            return _disk_fails(disk.trouble(exc), request)
    return None


def _disk_fails(reason: str, request: Request | HttpRequest) -> ApiError:
    """What was sent is not stored, or what was asked for cannot be read. The client may try again."""
    status = 503 if request.method in ("GET", "HEAD", "OPTIONS") else 507
    return ApiError(f"The disk of the server fails. {reason}", status=status, type="server_error")


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
    return JsonResponse(error.body_at(request.path), status=404)


def forbidden(request: HttpRequest, exception: Exception | None = None) -> JsonResponse:
    """handler403: a refusal outside of the API's own views, as the API says it."""
    return JsonResponse(ApiError("You are not allowed to do this.", status=403).body_at(request.path), status=403)


def bad_request(request: HttpRequest, exception: Exception | None = None) -> JsonResponse:
    """handler400: a request that Django refuses before any view runs, mostly for its Host header."""
    message = "Bad request."
    if type(exception).__name__ == "DisallowedHost":
        host = request.headers.get("Host", "")
        message = f"Host '{host[:100]}' is not served here. Add it to ALLOWED_HOSTS."
    return JsonResponse(ApiError(message).body_at(request.path), status=400)


def server_error(request: HttpRequest) -> JsonResponse:
    """handler500: a bug of ours, whose traceback is in the log; or the disk or the database fails, at a page that is
    none of the API's."""
    exc = sys.exc_info()[1]
    error = _as_api_error(exc, request) if isinstance(exc, OSError | DatabaseError | InterfaceError) else None
    error = error or ApiError("The server had an error while processing your request.", status=500, type="server_error")
    return JsonResponse(error.body_at(request.path), status=error.status)
