"""Who may call without a key, while there is no key: this machine alone, and no page of another site."""

from django.conf import settings
from django.http import HttpRequest

from common.addresses import ip_of
from common.errors import ApiError

# A request with one of these came through a proxy: the address that we see is the proxy's. They are believed in this
# direction alone, so whoever sends one by himself gains nothing.
_OF_PROXIES = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")
_READ_ONLY = ("GET", "HEAD", "OPTIONS")
MAKE_A_KEY = "python manage.py create_api_key NAME"


def refuse_strangers(request: HttpRequest) -> None:
    """Raise ApiError unless this request, which has no key behind it, may be answered."""
    if not (settings.ALLOW_ANONYMOUS or _is_from_this_machine(request)):
        source = "through a proxy" if came_through_a_proxy(request) else f"from {_peer(request)[:100]}"
        raise ApiError(
            f"While this server has no API key, it answers its own machine alone, and this request came {source}. Make "
            f"a key on the server: {MAKE_A_KEY} (in docker compose: docker compose exec web {MAKE_A_KEY}). It works at "
            "once, and every call then needs one. ALLOW_ANONYMOUS=True lets everybody in without a key.",
            status=403,
            code="api_key_required",
        )
    _refuse_other_pages(request)


def came_through_a_proxy(request: HttpRequest) -> bool:
    """Whether the address that we see may be a proxy's."""
    return bool(settings.BEHIND_TLS) or any(name in request.headers for name in _OF_PROXIES)


def comes_by_loopback(request: HttpRequest) -> bool:
    """Whether the other end of the connection is on this machine. A proxy on it is, too."""
    address = ip_of(_peer(request))
    return address is not None and address.is_loopback


def _is_from_this_machine(request: HttpRequest) -> bool:
    """In a container the host's requests come from an address of Docker's: there, what counts is where Docker publishes
    the port (PUBLISHED_AT)."""
    may_be_the_host = settings.PUBLISHED_ON_LOOPBACK or comes_by_loopback(request)
    return may_be_the_host and not came_through_a_proxy(request)


def _peer(request: HttpRequest) -> str:
    return str(request.META.get("REMOTE_ADDR", ""))


def _refuse_other_pages(request: HttpRequest) -> None:
    """Refuse requests of other sites' pages. While no key is needed, a page that is open in a browser could change
    anything here by sending a form. A browser names the page in Origin or, if it is told to hide it, says at least in
    Sec-Fetch-Site that it is of another site; other clients send neither."""
    if request.method in _READ_ONLY:
        return
    origin = request.headers.get("Origin")
    if origin is None:
        site = request.headers.get("Sec-Fetch-Site", "none")
        if site in ("same-origin", "none"):
            return
        source = "pages of other sites"
    elif origin == f"{request.scheme}://{request.get_host()}" or origin in settings.CSRF_TRUSTED_ORIGINS:
        return
    else:
        source = f"pages at {origin[:100]}"
    raise ApiError(
        f"Requests of {source} are not taken. Add the page's origin to CSRF_TRUSTED_ORIGINS, or create an API key.",
        status=403,
    )
