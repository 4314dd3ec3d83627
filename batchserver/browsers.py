"""What a browser is told with each answer: what a page may load and do, and that no other site has a use for it."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

# The admin brings all that it needs along. Its theme goes by Alpine, which evaluates what stands in attributes
# ('unsafe-eval') and sets styles as attributes; the theme's colours are a style in the page. No script is in a page.
ADMIN = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "object-src 'none'",
        "frame-ancestors 'none'",
    ]
)
# Answers of the API are no pages: shown by a browser, they load nothing and run nothing.
OTHERS = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_UNUSED = (
    *("accelerometer", "autoplay", "camera", "display-capture", "fullscreen", "geolocation", "gyroscope"),
    *("magnetometer", "microphone", "midi", "payment", "publickey-credentials-get", "serial", "usb"),
)
PERMISSIONS = ", ".join(f"{feature}=()" for feature in _UNUSED)


class HeadersForBrowsers:
    """Content-Security-Policy, Permissions-Policy and Cross-Origin-Resource-Policy for every answer."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        response["Content-Security-Policy"] = ADMIN if request.path_info.startswith("/admin/") else OTHERS
        response["Permissions-Policy"] = PERMISSIONS
        response["Cross-Origin-Resource-Policy"] = "same-origin"
        return response
