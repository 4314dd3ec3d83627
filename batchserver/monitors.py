"""The pages for monitors, answered before anything else is done with a request."""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

from batchserver import views
from common.authentication import secret_of

PAGES: dict[str, Callable[[HttpRequest], HttpResponseBase]] = {
    "/livez": views.show_liveness,
    "/readyz": views.show_readiness,
    "/metrics": views.show_metrics,
}


class PagesForMonitors:
    """Answers these pages whatever name the server is asked by, and by plain HTTP behind a TLS proxy too.

    A monitor asks by the address of a container, which is no name in ALLOWED_HOSTS, and follows no redirect to HTTPS.
    The pages hold nothing of clients, and no link is made from the name. Whoever asks for figures by a session has a
    browser, and is known further on.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        by_session = settings.SESSION_COOKIE_NAME in request.COOKIES and not secret_of(request)
        if request.path_info == "/metrics" and by_session:
            return self.get_response(request)
        return PAGES.get(request.path_info, self.get_response)(request)
