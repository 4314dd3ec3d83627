"""The first page of the admin: what runs, how far, how fast, when it ends, what waits behind it, what is wrong."""

import json
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from batches import tasks
from batches.admin import actions
from batches.admin.backends import loaded
from batches.admin.shown import Shown
from batches.models import Hold
from batches.scheduling import gate, switch
from batches.status import health, overview, speed
from common.permissions import may_look

BATCHES = "batches.batch"
LEVELS = {"ok": "info", "waiting": "warning", "failing": "error"}


def on_every_page(request: HttpRequest) -> dict[str, Any]:
    """For the theme: the banner, for those who may look at batches."""
    return {"may_look": True} | banner() if may_look(request, BATCHES) else {}


def banner() -> dict[str, Any]:
    """What is wrong, or keeps lines back, as `/health` says it, with what helps."""
    status, reasons = health.told()
    return {"trouble_level": LEVELS[status], "trouble_reasons": reasons}


def context(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """For the theme: what its first page gets beside what each page gets."""
    return context | (_now(request) if may_look(request, BATCHES) else {})


@require_safe
def show_banner(request: HttpRequest) -> HttpResponse:
    if not may_look(request, BATCHES):
        raise PermissionDenied
    return render(request, "batches/banner.html", banner())


@require_safe
def show_now(request: HttpRequest) -> HttpResponse:
    """The moving parts of the first page."""
    if not may_look(request, BATCHES):
        raise PermissionDenied
    return render(request, "batches/now_moves.html", _now(request))


@require_POST
def switch_all(request: HttpRequest) -> HttpResponse:
    """Pause all batches, or resume them."""
    if not actions.may_act(request):
        raise PermissionDenied
    if "pause" in request.POST:
        switch.pause_all()
        messages.success(request, "Paused all batches.")
    else:
        switch.resume_all()
        tasks.wake(tasks.drive)
        messages.success(request, "Resumed all batches.")
    return redirect("admin:index")


def _now(request: HttpRequest) -> dict[str, Any]:
    found = overview.now()
    return {
        "now": found,
        "sending": _shown(found.sending),
        "waiting": _shown(found.waiting),
        "ending": _shown(found.ending),
        "servers": [(each, loaded(each)) for each in found.backends],
        "speed": _chart(),
        "holds": [_hold(each) for each in found.holds],
        "may_act": actions.may_act(request),
        "all_paused": switch.all_paused_at(),
    }


def _shown(told: list[overview.Told]) -> list[Shown]:
    return [Shown(each.batch, each.progress, each.filename) for each in told]


HOLDS = {
    Hold.Reason.PERSON: "A person's request is at the model server",
    Hold.Reason.AFTER_PERSON: "A person's request was just answered",
    Hold.Reason.OTHERS: "Somebody uses the model server directly",
    Hold.Reason.PAUSED: "A person paused the lines",
    Hold.Reason.SHARE: "Lines have their share of the time, beside persons' requests",
    Hold.Reason.SHARE_BETWEEN: "Lines have their share of the time, between persons' requests",
}


def _hold(hold: Hold) -> str:
    return f"{HOLDS[Hold.Reason(hold.reason)]}, since {gate.clock(hold.created_at)}"


def _chart() -> str:
    """The lines a minute of the last hours, as the plotting library wants them."""
    points = speed.last_hours()
    return json.dumps(
        {
            "labels": [f"{timezone.localtime(at):%H:%M}" for at, _ in points],
            "datasets": [
                {
                    "label": "lines a minute",
                    "data": [round(lines, 1) for _, lines in points],
                    "borderColor": "var(--color-primary-500)",
                    "backgroundColor": "var(--color-primary-500)",
                    "maxTicksXLimit": 7,
                    "displayYAxis": True,
                }
            ],
        }
    )
