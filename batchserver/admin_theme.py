"""What the admin's theme (django-unfold) is told: names, colours, our own files, and the way around."""

from functools import partial
from typing import Any

from django.templatetags.static import static
from django.urls import reverse_lazy

from common.permissions import may_look

# Blue, in the theme's own steps: its violet is close to the red of a danger.
_PRIMARY = {
    "50": "oklch(97% .014 254.604)",
    "100": "oklch(93.2% .032 255.585)",
    "200": "oklch(88.2% .059 254.128)",
    "300": "oklch(80.9% .105 251.813)",
    "400": "oklch(70.7% .165 254.624)",
    "500": "oklch(62.3% .214 259.815)",
    "600": "oklch(54.6% .245 262.881)",
    "700": "oklch(48.8% .243 264.376)",
    "800": "oklch(42.4% .199 265.638)",
    "900": "oklch(37.9% .146 265.522)",
    "950": "oklch(28.2% .091 267.935)",
}


def _place(title: str, icon: str, model: str) -> dict[str, Any]:
    """A link of the sidebar to the list of a model, for those who may look at it. `model`: `app.name`."""
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{model.replace('.', '_')}_changelist"),
        "permission": partial(may_look, model=model),
    }


def _file(path: str) -> Any:
    return lambda request: static(path)


# Owners of a batch come first, what maintains the server last.
OPTIONS: dict[str, Any] = {
    "SITE_TITLE": "Ollama Batch Server",
    "SITE_HEADER": "Ollama Batch Server",
    "SITE_SYMBOL": "stacks",
    "SITE_URL": None,
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_HISTORY": False,
    "SHOW_BACK_BUTTON": False,
    "COLORS": {"primary": _PRIMARY},
    "LOGIN": {"form": "common.logins.LoginForm"},
    "STYLES": [_file("batches/admin.css")],
    "SCRIPTS": [_file("batches/admin.js")],
    "GLOBAL_CALLBACK": "batches.admin.first_page.on_every_page",
    "DASHBOARD_CALLBACK": "batches.admin.first_page.context",
    "SIDEBAR": {
        "show_search": False,
        "show_all_applications": False,
        "navigation": [
            {
                "items": [
                    {"title": "Now", "icon": "speed", "link": reverse_lazy("admin:index")},
                    _place("Batches", "stacks", "batches.batch"),
                    _place("Lines", "format_list_numbered", "batches.line"),
                    _place("Files", "description", "files_api.file"),
                ],
            },
            {
                "title": "Server",
                "separator": True,
                "items": [
                    _place("Model servers", "memory", "batches.backend"),
                    _place("Paused models", "pause_circle", "batches.pausedmodel"),
                    _place("Holds", "front_hand", "batches.hold"),
                    _place("Webhook deliveries", "webhook", "batches.webhookdelivery"),
                    _place("Uploads", "upload", "files_api.upload"),
                ],
            },
            {
                "title": "Who may come in",
                "separator": True,
                "items": [
                    _place("Owners", "badge", "batchserver.owner"),
                    _place("API keys", "key", "batchserver.apikey"),
                    _place("Users", "person", "auth.user"),
                    _place("Groups", "group", "auth.group"),
                ],
            },
        ],
    },
}
