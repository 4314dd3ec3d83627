"""`/health`, `/livez`, `/readyz`, `/metrics` and `/`."""

from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_safe
from prometheus_client.exposition import choose_encoder

from batches import registry
from batches.status import health
from batches.status.conditions import Conditions
from batchserver.celery import ask_broker
from common import schema
from common.metrics import REGISTRY

_conditions = Conditions(ask_broker)


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
    failed = _conditions.failed()
    body = {"status": "failing" if failed else "ok", "failed": [asdict(each) for each in failed]}
    return JsonResponse(body, status=503 if failed else 200)


@require_safe
def show_metrics(request: HttpRequest) -> HttpResponse:
    """The figures for Prometheus. Without a database, those of this process alone."""
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
