"""Who asks: authentication by API key or by the admin's session, and who may change the models of the model server."""

from typing import Any

from django.conf import settings
from django.http.request import split_domain_port
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.request import Request

from common import anonymous
from common.errors import ApiError
from common.models import ApiKey


class ApiKeyAuthentication(BaseAuthentication):
    """Until the first ApiKey exists, any or no Authorization is accepted from whom `common.anonymous` lets in; from
    then on every call needs a live key."""

    def authenticate(self, request: Request) -> tuple[None, ApiKey] | None:
        if not ApiKey.objects.exists():
            anonymous.refuse_strangers(request._request)
            return None
        secret = _secret_of(request)
        if not secret:
            raise _missing_key(request)
        key = ApiKey.objects.for_secret(secret)
        if key is None:
            raise ApiError(
                "Incorrect API key provided. Make one with `python manage.py create_api_key`.",
                status=401,
                code="invalid_api_key",
            )
        return None, key


class AdminSession(SessionAuthentication):
    """The administrator's session, for the admin's own pages (with their CSRF token). Who comes without one, or with a
    key, is for ApiKeyAuthentication, which stands behind this one."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        user = getattr(request._request, "user", None)
        if user is None or not user.is_superuser or _secret_of(request):
            return None
        return super().authenticate(request)

    def enforce_csrf(self, request: Request) -> None:
        # The check looks for a token in a form too. REST framework would read any body for that, a model's file too.
        super().enforce_csrf(request._request)  # type: ignore[arg-type]


def require_administrator(request: Request) -> None:
    """Raise ApiError unless the request may change the models of the model server: it comes with an administrator's key
    or session or, while there is no key, from this machine."""
    if isinstance(request.auth, ApiKey):
        if not request.auth.is_admin:
            raise ApiError(f"This key may not change models. {_MAKE_A_KEY}", status=403)
    elif request.user is None and not _is_from_this_machine(request):
        raise ApiError(
            f"While there is no API key, models are changed from the server's own machine alone. {_MAKE_A_KEY} Every "
            "call then needs a key.",
            status=403,
        )


_MAKE_A_KEY = "Make a key that may: python manage.py create_api_key NAME --admin."


def _missing_key(request: Request) -> ApiError:
    if request.headers.get("User-Agent", "").startswith("ollama/"):
        # It takes a 401 for one of ollama.com, and tells its user to sign in there.
        return ApiError(
            "This server needs an API key, and the command ollama cannot send one. Call the Ollama itself by it "
            "(OLLAMA_HOST), or use a client that sends a key.",
            status=403,
        )
    return ApiError("Missing bearer or basic authentication in header", status=401)


def _secret_of(request: Request) -> str:
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
