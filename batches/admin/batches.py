"""Batches in the admin: to look at, to pause, to extend, to cancel, to try again and to download, not to edit."""

from collections.abc import Callable
from functools import partial
from typing import Any

from django.contrib import admin
from django.contrib.admin import helpers
from django.contrib.admin.utils import quote, unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import Case, DateTimeField, F, OuterRef, QuerySet, SmallIntegerField, Subquery, When
from django.db.models.functions import Coalesce
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from batches.admin import downloads, first_page
from batches.admin.actions import ACTIONS, Action, may_act, run, suiting
from batches.admin.fragments import fragment
from batches.admin.reading import Exchange
from batches.admin.shown import Shown
from batches.models import FINAL, Batch
from batches.status import progress, reasons
from batches.status.overview import filenames
from common.admin import LookOnly
from common.models import Owner
from common.permissions import may_look
from files_api.models import File

MOST_FORECAST = 8  # batches of a list for which a forecast is made: the first that are not over
MOST_ANSWERS = 5
LINES = "batches.line"
STAMPS = {
    "created_at": "Created",
    "in_progress_at": "Validated; the lines are being sent since",
    "cancelling_at": "Cancelled by a person",
    "finalizing_at": "The last line finished",
    "completed_at": "Completed",
    "failed_at": "Failed",
    "expired_at": "Expired",
    "cancelled_at": "The results of the cancelled batch are there",
}


class BatchList(ChangeList):
    def get_results(self, request: HttpRequest) -> None:
        """With a forecast for the first batches that are not over: each costs some queries."""
        super().get_results(request)
        for batch, shown in zip(self.result_list, _shown(list(self.result_list)), strict=True):
            batch.shown = shown


@admin.register(Batch)
class BatchAdmin(LookOnly):
    list_display = ("name", "state", "how_far", "ends", "window")
    list_filter = ("status", "endpoint", "owner")
    search_fields = ("id", "model", "filename", "metadata", "input_file__id")
    search_help_text = "Name of the file, id, model or metadata"
    list_per_page = 25
    list_select_related = ("owner",)
    # What runs is on top, in the order in which most batches come to their turns; then what is over, the newest first.
    ordering = (
        Case(When(status__in=FINAL, then=1), default=0),
        Case(When(status__in=FINAL, then=0), default=F("priority"), output_field=SmallIntegerField()).desc(),
        Case(When(status__in=FINAL, then=None), default=F("created_at"), output_field=DateTimeField()),
        "-created_at",
    )
    list_before_template = "batches/batch_list_poll.html"
    change_form_template = "batches/batch.html"
    fieldsets = (
        (
            "More about this batch",
            {
                "fields": (
                    *("id", ("owner", "endpoint"), ("completion_window", "expires_at"), ("priority", "told_metadata")),
                    *(("input_tokens", "cached_tokens"), ("output_tokens", "reasoning_tokens")),
                )
            },
        ),
        (
            "Inner state, for maintainers",
            {
                "classes": ["collapse"],
                "fields": (
                    "lease",
                    "nudged_at",
                    "step_at",
                    "tidied_at",
                    "stalls",
                    "retry_at",
                    "last_place",
                    "validated_bytes",
                ),
            },
        ),
    )

    readonly_fields = ("told_metadata",)

    @admin.display(description="Metadata", empty_value="-")
    def told_metadata(self, batch: Batch) -> str | None:
        return "; ".join(f"{name}: {value}" for name, value in (batch.metadata or {}).items()) or None

    # The list

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return BatchList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Batch]:
        """With the name of the input file, whose row need not be there."""
        names = File.objects.filter(pk=OuterRef("input_file_id")).values("filename")[:1]
        batches = super().get_queryset(request).defer("errors")
        named: QuerySet[Batch] = batches.annotate(filename=Coalesce(Subquery(names), "input_file_id"))
        return named

    @admin.display(description="Batch")
    def name(self, batch: Any) -> str:
        # Where there is one owner alone, nobody asks whose a batch is.
        owner = "" if batch.owner_id == Owner.FIRST else batch.owner.name
        context = {"batch": batch, "filename": batch.filename, "owner": owner}
        return render_to_string("batches/cell_name.html", context)

    @admin.display(description="State")
    def state(self, batch: Any) -> str:
        return _cell("state", batch.shown)

    @admin.display(description="Lines")
    def how_far(self, batch: Any) -> str:
        return _cell("how_far", batch.shown)

    @admin.display(description="Ends")
    def ends(self, batch: Any) -> str:
        return _cell("ends", batch.shown)

    @admin.display(description="Window left")
    def window(self, batch: Any) -> str:
        return _cell("window", batch.shown)

    def move_list(self, request: HttpRequest) -> HttpResponse:
        """The moving cells of the rows that the page has, in their places."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        batches = Batch.objects.filter(pk__in=request.GET.getlist("id")[: self.list_per_page]).defer("errors")
        found = sorted(batches, key=lambda batch: (batch.is_final, -batch.priority, batch.created_at))
        return render(request, "batches/batch_list_moves.html", {"batches": _shown(found)})

    # A batch

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        batch = self.get_object(request, unquote(object_id or ""))
        context = self._page(request, batch) if batch and self.has_view_permission(request, batch) else {}
        return super().changeform_view(request, object_id, form_url, context | (extra_context or {}))

    def show_moving(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The part of a batch's page that moves."""
        return render(request, "batches/batch_moves.html", self._page(request, self._batch(request, object_id)))

    def show_answers(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The last answers of a batch beside their prompts, for those who may look at lines too."""
        batch = self._batch(request, object_id)
        if not may_look(request, LINES):
            raise PermissionDenied
        return render(request, "batches/batch_answers.html", {"exchanges": _last_exchanges(batch)})

    def download(self, request: HttpRequest, object_id: str, kind: str) -> HttpResponseBase:
        return downloads.of(request, self._batch(request, object_id), kind)

    def _page(self, request: HttpRequest, batch: Batch) -> dict[str, Any]:
        shown = Shown(batch, progress.of(batch))
        return {
            "shown": shown,
            "batch": batch,
            "filename": filenames([batch])[batch.pk],
            "may_look_at_lines": may_look(request, LINES),
            "buttons": suiting(batch) if may_act(request) else [],
            "downloads": downloads.there_are(request, batch),
            "timeline": [(name, at) for stamp, name in STAMPS.items() if (at := getattr(batch, stamp))],
            "reasons": reasons.lately(batch),
            "file_errors": batch.errors[:20],
            "retries": batch.retries.order_by("created_at")[:20],
        }

    def _batch(self, request: HttpRequest, object_id: str) -> Batch:
        batch: Batch | None = self.get_object(request, unquote(object_id))
        if batch is None:
            raise Http404
        if not self.has_view_permission(request, batch):
            raise PermissionDenied
        return batch

    # What a person does to batches: a button of the page, or an action of the list

    def act(self, request: HttpRequest, object_id: str, name: str) -> HttpResponse:
        """A GET asks the person, where the action asks; a POST does it."""
        batch, action = self._batch(request, object_id), ACTIONS.get(name)
        if not may_act(request):
            raise PermissionDenied
        if action is None or (request.method != "POST" and not action.asks):
            raise Http404
        page = reverse("admin:batches_batch_change", args=[quote(batch.pk)])
        if request.method != "POST":
            return self._ask(request, action, [batch], back=page)
        run(request, action, [batch.pk])
        return redirect(page)

    def get_actions(self, request: HttpRequest) -> dict[str, tuple[Callable[..., Any], str, str] | None]:
        """Those of the table, for who may change batches."""
        if not may_act(request):
            return {}
        return {
            name: (partial(self._act_on_chosen, action=action), name, action.label) for name, action in ACTIONS.items()
        }

    def _act_on_chosen(
        self, _: Any, request: HttpRequest, chosen: QuerySet[Batch], *, action: Action
    ) -> HttpResponse | None:
        if action.asks and "yes" not in request.POST:
            back = reverse("admin:batches_batch_changelist")
            return self._ask(request, action, list(chosen), back=back, is_list=True)
        run(request, action, [batch.pk for batch in chosen])
        return None

    def _ask(
        self, request: HttpRequest, action: Action, batches: list[Batch], *, back: str, is_list: bool = False
    ) -> HttpResponse:
        context = self.admin_site.each_context(request) | {
            "opts": self.opts,
            "title": f"{action.label}?",
            "action": action,
            "batches": [Shown(batch) for batch in batches],
            "back": back,
            "checkbox": helpers.ACTION_CHECKBOX_NAME if is_list else "",
        }
        return render(request, "batches/ask.html", context)

    def get_urls(self) -> list[URLPattern]:
        inside, part = self.admin_site.admin_view, fragment
        one = "<path:object_id>"
        return [
            path("now/", part(first_page.show_now), name="batches_now"),
            path("banner/", part(first_page.show_banner), name="batches_banner"),
            path("switch/", inside(first_page.switch_all), name="batches_switch"),
            path("moves/", part(self.move_list), name="batches_list_moves"),
            path(f"{one}/moves/", part(self.show_moving), name="batches_batch_moves"),
            path(f"{one}/answers/", part(self.show_answers), name="batches_batch_answers"),
            path(f"{one}/do/<slug:name>/", inside(self.act), name="batches_batch_do"),
            path(f"{one}/download/<slug:kind>/", inside(self.download), name="batches_batch_download"),
            *super().get_urls(),
        ]


def _shown(batches: list[Batch]) -> list[Shown]:
    """With forecasts for the first ones that are not over."""
    Batch.read_counters(batches)
    open_ = [batch for batch in batches if not batch.is_final]
    made = {each.batch.pk: each for each in progress.of_each(open_[:MOST_FORECAST])}
    return [Shown(batch, made.get(batch.pk)) for batch in batches]


def _cell(name: str, shown: Shown) -> str:
    """A cell that moves: it has an id of its own, by which it is replaced."""
    inner = render_to_string(f"batches/cell_{name}.html", {"shown": shown, "batch": shown.batch})
    return format_html('<div id="{}-{}">{}</div>', name, shown.batch.pk, inner)


def _last_exchanges(batch: Batch) -> list[Exchange]:
    lines = batch.lines.select_related("batch", "part", "original")
    last = lines.filter(place__gt=0).order_by("-place")[:MOST_ANSWERS]
    return [Exchange.of(line) for line in last]
