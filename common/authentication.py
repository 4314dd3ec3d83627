"""Who asks: authentication by API key or by the admin's session, and what a key is for."""

from collections.abc import Collection
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.http.request import split_domain_port
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from common import anonymous
from common.errors import ApiError
from common.models import ApiKey, Scope


class ApiKeyAuthentication(BaseAuthentication):
    """Until the first ApiKey exists, any or no Authorization is accepted from whom `common.anonymous` lets in; from
    then on every call needs a live key."""

    def authenticate(self, request: Request) -> tuple[None, ApiKey] | None:
        if not ApiKey.objects.exists():
            anonymous.refuse_strangers(request._request)
            return None
        secret = secret_of(request)
        if not secret:
            raise _missing_key(request)
        return None, known_key(secret)


def known_key(secret: str) -> ApiKey:
    """The live key with this secret, noted as used. Raises a 401 if there is none."""
    key = ApiKey.objects.for_secret(secret)
    if key is None or key.is_expired:
        # Whoever has the secret of an expired key may know that it was one.
        what = "Incorrect API key provided" if key is None else f"The API key '{key.name}' has expired"
        raise ApiError(f"{what}. Make one with `python manage.py create_api_key`.", status=401, code="invalid_api_key")
    key.note_use()
    return key


class HasScope(BasePermission):
    """A key has one of the view's `scopes`, or the request comes by the administrator's session, which has all. While
    no key is needed, there are no scopes. A view that names no scope is for nobody's key."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if isinstance(request.auth, ApiKey):
            require(request.auth, getattr(view, "scopes", ()))
        return True


def require(key: ApiKey, scopes: Collection[Scope]) -> None:
    """Raise a 403 unless the key has one of these scopes."""
    if set(scopes).isdisjoint(key.scopes):
        wanted = " or ".join(f"'{scope}'" for scope in scopes)
        raise ApiError(
            f"This key is not for this: it lacks the scope {wanted}. {_make_a_key(*scopes)}",
            status=403,
            code="missing_scope",
        )


class AdminSession(SessionAuthentication):
    """The administrator's session, for the admin's own pages (with their CSRF token). Who comes without one, or with a
    key, is for ApiKeyAuthentication, which stands behind this one."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        user = getattr(request._request, "user", None)
        if user is None or not user.is_superuser or secret_of(request):
            return None
        return super().authenticate(request)

    def enforce_csrf(self, request: Request) -> None:
        # The check looks for a token in a form too. REST framework would read any body for that, a model's file too.
        super().enforce_csrf(request._request)  # type: ignore[arg-type]


class KeyOrThisMachine(HasScope):
    """For views that change the models of the model server. While there is no key, they are for this machine alone."""

    def has_permission(self, request: Request, view: Any) -> bool:
        if request.auth is None and request.user is None and not _is_from_this_machine(request):
            raise ApiError(
                "While there is no API key, models are changed from the server's own machine alone. "
                f"{_make_a_key(Scope.ADMIN)} Every call then needs a key.",
                status=403,
            )
        return super().has_permission(request, view)


def _make_a_key(*scopes: Scope) -> str:
    option = "--admin" if scopes == (Scope.ADMIN,) else f"--scopes {','.join(scopes)}"
    return f"Make a key that may: {anonymous.MAKE_A_KEY} {option}."


def _missing_key(request: Request) -> ApiError:
    if request.headers.get("User-Agent", "").startswith("ollama/"):
        # It takes a 401 for one of ollama.com, and tells its user to sign in there.
        return ApiError(
            "This server needs an API key, and the command ollama cannot send one. Call the Ollama itself by it "
            "(OLLAMA_HOST), or use a client that sends a key.",
            status=403,
        )
    return ApiError("Missing bearer or basic authentication in header", status=401)


def secret_of(request: Request | HttpRequest) -> str:
    """The key that a request comes with; empty if there is none. Anthropic's clients have a header of their own."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return request.headers.get("x-api-key", "").strip()


def _is_from_this_machine(request: Request) -> bool:
    if anonymous.came_through_a_proxy(request._request) or not anonymous.comes_by_loopback(request._request):
        return False
    # By another name, a page of another site or somebody behind a proxy that adds no header may be asking.
    return split_domain_port(request.get_host())[0] in settings.OWN_NAMES
