"""`/health`, `/livez`, `/readyz`, `/metrics` and `/`; and what is said where something is not there, or not allowed."""

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db import DatabaseError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_safe
from prometheus_client.exposition import choose_encoder

from batches import registry
from batches.status import health
from batches.status.conditions import Conditions, Failed
from batchserver.celery import ask_broker
from batchserver.scrapers import Scrapers
from common import exception_handler, schema
from common.metrics import REGISTRY

_conditions = Conditions(ask_broker)
_scrapers = Scrapers()


@require_safe
def show_health(request: HttpRequest) -> JsonResponse:
    """200 while the server works, or waits for its model server; 503 with the reason if it fails.

    `instance` names the data directory without telling where it is: who can read the directory finds the name there.
    """
    body: dict[str, Any] = {"service": "ollama-batch-server", "version": settings.VERSION, "instance": _instance()}
    try:
        if reason := schema.trouble():
            body |= {"status": "failing", "reason": reason}
        else:
            body |= health.summary()
    except DatabaseError as error:
        body |= {"status": "failing", "reason": schema.explain(error) or "The database does not answer."}
    return JsonResponse(body, status=503 if body["status"] == "failing" else 200)


@require_safe
def show_liveness(request: HttpRequest) -> JsonResponse:
    """200 while this process answers, whatever else is out of order: a new web process would mend none of it."""
    return JsonResponse({"status": "ok"})


@require_safe
def show_readiness(request: HttpRequest) -> JsonResponse:
    """200 while all parts of the server do their work; 503 with the reasons if one does not."""
    found = _conditions.failed()
    failed, warnings = ([_told(each) for each in found if each.is_warning is kind] for kind in (False, True))
    body = {"status": "failing" if failed else "ok", "failed": failed} | ({"warnings": warnings} if warnings else {})
    return JsonResponse(body, status=503 if failed else 200)


def _told(failed: Failed) -> dict[str, str]:
    return {"check": failed.check, "reason": failed.reason}


@require_safe
def show_metrics(request: HttpRequest) -> HttpResponse:
    """The figures for Prometheus, for an administrator once a key exists. Without a database, those of this process
    alone."""
    if refusal := _scrapers.refusal(request):
        return JsonResponse(refusal.envelope, status=refusal.status)
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(REGISTRY), content_type=content_type)


def _instance() -> str | None:
    """None if DATA_DIR has no name yet and none can be written there."""
    try:
        return str(settings.INSTANCE_ID)
    except OSError:
        return None


@require_safe
def show_home(request: HttpRequest) -> HttpResponseBase:
    """The admin for a browser. For a client of Ollama, which asks here first, what Ollama says at this address, whether
    or not it is away: the client's next call says what to do."""
    if "text/html" in request.headers.get("Accept", "") or not registry.has_ollama():
        return redirect("/admin/")
    return HttpResponse("Ollama is running", content_type="text/plain; charset=utf-8")


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """handler404: a page under /admin/, elsewhere as the API says it."""
    if not _is_of_admin(request):
        return exception_handler.not_found(request, exception)
    told = str(exception) if type(exception) is Http404 else ""
    return _refused(request, "Not found", told or "There is no such page, or what it showed is deleted.", 404)


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """handler403: a page under /admin/, elsewhere as the API says it."""
    if not _is_of_admin(request):
        return exception_handler.forbidden(request, exception)
    told = "You may not look at this, or not do this. Ask an administrator for the permission."
    return _refused(request, "Not allowed", told, 403)


def _is_of_admin(request: HttpRequest) -> bool:
    return request.path_info.startswith("/admin/")


def _refused(request: HttpRequest, title: str, reason: str, status: int) -> HttpResponse:
    # The frame of the other pages shows who is logged in.
    frame = "admin/base_site.html" if request.user.is_authenticated else "unfold/layouts/unauthenticated.html"
    context = admin.site.each_context(request) | {"title": title, "reason": reason, "frame": frame}
    return render(request, "admin/refused.html", context, status=status)
