"""Who asks: authentication by API key."""

from django.conf import settings
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from common.errors import ApiError
from common.models import ApiKey


class ApiKeyAuthentication(BaseAuthentication):
    """Until the first ApiKey exists, any or no Authorization is accepted; from then on every call needs a live key."""

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
    """Refuse requests of other sites' pages. While no key is needed, a page that is open in a browser could change
    anything here by sending a form. A browser names the page in Origin; other clients send no Origin."""
    origin = request.headers.get("Origin")
    if request.method in ("GET", "HEAD", "OPTIONS") or origin is None:
        return
    own = f"{request.scheme}://{request.get_host()}"
    if origin != own and origin not in settings.CSRF_TRUSTED_ORIGINS:
        raise ApiError(
            f"Requests of pages at {origin[:100]} are not taken. Add it to CSRF_TRUSTED_ORIGINS, or create an API key.",
            status=403,
        )
