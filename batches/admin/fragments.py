"""Parts of pages that are loaded again and again by htmx, while the page stays."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseBase

View = Callable[..., HttpResponseBase]


def fragment(view: View) -> View:
    """For those who may come into the admin. Whoever is logged out meanwhile gets the page with the login, whole, and
    not in the place of a part."""
    inside = admin.site.admin_view(view)

    @wraps(view)
    def load(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if "HX-Request" in request.headers and not admin.site.has_permission(request):
            return HttpResponse(status=204, headers={"HX-Refresh": "true"})
        return inside(request, *args, **kwargs)

    return load
