"""Lines in the admin: to find and to read."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from batches.admin.reading import Exchange
from batches.models import Batch, Line, LineState
from batches.status import line_pages, reasons
from batches.status.line_pages import Choice
from batches.status.overview import filenames
from common.admin import LookOnly

MOST_DIGITS = 18  # of the id of a row
LABELS = {
    LineState.PENDING: "",
    LineState.RUNNING: "info",
    LineState.SUCCEEDED: "success",
    LineState.FAILED: "danger",
    LineState.CANCELLED: "warning",
    LineState.EXPIRED: "danger",
    LineState.REPEATED: "success",
}


@admin.register(Line)
class LineAdmin(LookOnly):
    change_form_template = "batches/line.html"
    readonly_fields = ("original_line", "model_name")
    fieldsets = (
        (
            "More about this line",
            {
                "fields": (
                    *(("number", "custom_id"), ("model_name", "original_line"), ("finished_at", "duration_ms")),
                    *(("http_status", "error_code"), "error_message"),
                    *(("input_tokens", "cached_tokens"), ("output_tokens", "reasoning_tokens")),
                )
            },
        ),
        (
            "Inner state, for maintainers",
            {
                "classes": ["collapse"],
                "fields": (
                    *("state", "lease", "attempts", "backend_crashes", "needs_trial", "most_together", "lost_claims"),
                    *("not_before", "place", "offset", "length", "part"),
                ),
            },
        ),
    )

    @admin.display(description="Model")
    def model_name(self, line: Line) -> str:
        """Not `model`: Django's admin takes that for the attribute of its own, which is the class Line."""
        return line.part.model

    @admin.display(description="Repeats", empty_value="-")
    def original_line(self, line: Line) -> str | None:
        if line.original is None:
            return None
        url = reverse("admin:batches_line_change", args=[line.original_id])
        return format_html('<a href="{}">Line {}</a>', url, line.original.number)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Line]:
        lines = super().get_queryset(request)
        return lines.select_related("batch", "part", "original")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The lines of one batch, the newest if none is named, or those with a custom_id. Not Django's own list, which
        counts all lines and skips to a page from the first."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        wanted, custom_id = request.GET.get("batch", ""), request.GET.get("custom_id", "").strip()
        batch = _batch(wanted)
        if custom_id:
            page = line_pages.Page(line_pages.with_custom_id(custom_id, batch), has_earlier=False, has_later=False)
        else:
            batch = batch or Batch.objects.order_by("-created_at", "-pk").first()
            page = _page(request, batch) if batch else line_pages.Page([], has_earlier=False, has_later=False)
        keep = _kept(request)
        context = self.admin_site.each_context(request) | {
            "opts": self.opts,
            "title": "Lines",
            "is_fullwidth": "1",
            "page": page,
            "table": _table(page.lines, keep, with_batch=bool(custom_id)),
            "earlier": f"?{keep}&before={page.lines[0].pk}" if page.lines else "",
            "later": f"?{keep}&after={page.lines[-1].pk}" if page.lines else "",
            "batch": batch,
            "filename": filenames([batch])[batch.pk] if batch else "",
            "custom_id": custom_id,
            "state": request.GET.get("state", ""),
            "reason": request.GET.get("reason", ""),
            "states": [(state.name.lower(), state.label) for state in LineState],
            "reasons": reasons.codes(batch) if batch else [],
        }
        return render(request, "batches/lines.html", context)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        line = _line(object_id)
        if line is not None and self.has_view_permission(request, line):
            if "way" in request.GET:
                return self._go(request, line)
            extra_context = (extra_context or {}) | {
                "line": line,
                "label": LABELS[LineState(line.state)],
                "exchange": Exchange.of(line),
                "filename": filenames([line.batch])[line.batch_id],
                "keep": _kept(request),
                "title": f"Line {line.number:,}: {line.custom_id}",
            }
        return super().changeform_view(request, object_id, form_url, extra_context)

    def _go(self, request: HttpRequest, line: Line) -> HttpResponse:
        """To the next line of what the person looks through, or to the one before; to this one at the end."""
        after, before = (None, line) if request.GET["way"] == "back" else (line, None)
        found = line_pages.page(_choice(request, line.batch), after=after, before=before, most=1).lines
        keep = _kept(request)
        if not found:
            self.message_user(request, "There is no further line.")
        address = reverse("admin:batches_line_change", args=[(found[0] if found else line).pk])
        return redirect(f"{address}?{keep}" if keep else address)


KEPT = ("batch", "state", "reason")


def _kept(request: HttpRequest) -> str:
    """What the person looks through, for the addresses of the next pages."""
    return urlencode({name: value for name in KEPT if (value := request.GET.get(name))})


def _table(lines: list[Line], keep: str, *, with_batch: bool) -> dict[str, Any]:
    """For the theme's table."""
    headers = ["Line", "custom_id", "State", "Reason", "Model", "Took", "Finished"]
    return {
        "headers": [*headers, "Batch"] if with_batch else headers,
        "rows": [[*_row(line, keep), *([line.batch_id] if with_batch else [])] for line in lines],
    }


def _row(line: Line, keep: str) -> list[Any]:
    state, address = LineState(line.state), reverse("admin:batches_line_change", args=[line.pk])
    link = format_html(
        '<a class="font-semibold text-primary-600 underline dark:text-primary-500" href="{}{}">{}</a>',
        *(address, f"?{keep}" if keep else "", f"{line.number:,}"),
    )
    return [
        link,
        _wrapped(line.custom_id),
        render_to_string("unfold/helpers/label.html", {"text": state.label, "variant": LABELS[state]}),
        _wrapped(line.error_code or "-"),
        _wrapped(line.part.model),
        "-" if line.duration_ms is None else f"{line.duration_ms / 1000:,.1f} s",
        f"{timezone.localtime(line.finished_at):%Y-%m-%d %H:%M:%S}" if line.finished_at else "-",
    ]


def _wrapped(text: str) -> str:
    return format_html('<span class="break-words min-w-0 whitespace-normal">{}</span>', text)


def _choice(request: HttpRequest, batch: Batch) -> Choice:
    state = request.GET.get("state", "").upper()
    chosen = LineState[state] if state in LineState.__members__ else None
    return Choice(batch, chosen, request.GET.get("reason", ""))


def _page(request: HttpRequest, batch: Batch) -> line_pages.Page:
    def edge(name: str) -> Line | None:
        line = _line(request.GET.get(name))
        return line if line is not None and line.batch_id == batch.pk else None

    return line_pages.page(_choice(request, batch), after=edge("after"), before=edge("before"))


def _batch(batch_id: str) -> Batch | None:
    return Batch.objects.filter(pk=batch_id).defer("errors").first() if batch_id else None


def _line(pk: str | None) -> Line | None:
    """By the id of its row, as an address has it; None if there is none."""
    if not pk or not pk.isdecimal() or len(pk) > MOST_DIGITS:
        return None
    return Line.objects.filter(pk=int(pk)).select_related("batch", "part", "original", "original__part").first()
