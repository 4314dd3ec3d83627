"""Batches in the admin: to look at, to pause, to cancel and to try again, not to edit."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.text import Truncator
from django.views.decorators.http import require_POST

from batches import forecasts, lifecycle, retry, tasks
from batches.models import Batch
from batches.scheduling import gate, switch
from batches.status import health, progress, reasons
from common.admin import LookOnly
from common.errors import ApiError

MOST_CHARACTERS = 60  # of a reason in the list
EXTENSION = timedelta(days=7)


@admin.register(Batch)
class BatchAdmin(LookOnly):
    list_display = (
        "id",
        "status",
        "waits_for_in_short",
        "paused_since",
        "progress",
        "failed",
        "model",
        "created_at",
        "finished_at",
    )
    ordering = ("-created_at",)
    list_filter = ("status", "endpoint")
    search_fields = ("id", "model", "input_file__id", "metadata")
    date_hierarchy = "created_at"
    actions = ("cancel", "pause", "resume", "extend", "retry", "try_again")
    fieldsets = (
        (None, {"fields": ("id", "status", "progress", "lines_link", "model", "endpoint", "priority", "metadata")}),
        ("Outlook", {"fields": ("waits_for", "told_warnings", "contexts", "estimated_end", "estimated_from")}),
        ("Files", {"fields": ("input", "output", "error_output")}),
        ("Errors of the input file", {"fields": ("error_count", "listed_errors")}),
        ("Lines without an answer", {"fields": ("told_reasons", "parent")}),
        ("Tokens", {"fields": ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")}),
        (
            "Times",
            {
                "fields": (
                    "created_at",
                    "completion_window",
                    "expires_at",
                    "in_progress_at",
                    "finalizing_at",
                    "completed_at",
                    "failed_at",
                    "expired_at",
                    "cancelling_at",
                    "cancelled_at",
                )
            },
        ),
    )

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("batches.change_batch")

    @admin.action(description="Cancel selected batches", permissions=["cancel"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Batch]) -> None:
        """Finished lines are delivered, as with POST /v1/batches/{id}/cancel."""
        for batch in self._each(request, queryset, lifecycle.cancel):
            tasks.wake_control(batch.pk)
            self.message_user(request, f"Cancelling {batch.pk}.", messages.SUCCESS)

    @admin.action(description="Extend the window of selected batches to 7 days from now", permissions=["cancel"])
    def extend(self, request: HttpRequest, queryset: QuerySet[Batch]) -> None:
        for batch in self._each(request, queryset, lambda batch_id: forecasts.extend(batch_id, EXTENSION)):
            self.message_user(request, f"Extended {batch.pk}.", messages.SUCCESS)

    @admin.action(description="Retry the failed lines of selected batches", permissions=["cancel"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Batch]) -> None:
        """The failed, expired and cancelled lines of each become a new batch, as with POST /v1/batches/{id}/retry."""
        made: list[str] = []
        for batch in self._each(request, queryset, lambda batch_id: made.append(_retry(batch_id))):
            tasks.wake_control(made[-1])
            self.message_user(request, f"{made[-1]} asks the lines of {batch.pk} again.", messages.SUCCESS)

    @admin.action(description="Pause selected batches", permissions=["cancel"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Batch]) -> None:
        for batch in self._each(request, queryset, switch.pause):
            self.message_user(request, f"Paused {batch.pk}.", messages.SUCCESS)

    @admin.action(description="Resume selected batches", permissions=["cancel"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Batch]) -> None:
        for batch in self._each(request, queryset, switch.resume):
            tasks.wake(tasks.drive)
            self.message_user(request, f"Resumed {batch.pk}.", messages.SUCCESS)

    @admin.action(description="Try again now what is stalled", permissions=["cancel"])
    def try_again(self, request: HttpRequest, queryset: QuerySet[Batch]) -> None:
        """End the backoff of the stalled batches of the selection. The other batches are left as they are."""
        for batch in queryset.filter(stalled_at__isnull=False):
            lifecycle.try_again(batch.pk)
            tasks.wake_control(batch.pk)
            tasks.wake(tasks.drive)
            self.message_user(request, f"Trying {batch.pk} again.", messages.SUCCESS)

    def _each(self, request: HttpRequest, batches: QuerySet[Batch], do: Callable[[str], None]) -> Iterator[Batch]:
        """Do it to each batch and yield those that it was done to; for each other batch, tell the person why not."""
        for batch in batches:
            try:
                do(batch.pk)
            except ApiError as refusal:
                self.message_user(request, f"{refusal.message} ({batch.pk})", messages.WARNING)
            else:
                yield batch

    # The switch for all batches: a button above the list (templates/admin/batches/batch/change_list.html).

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(require_POST(self.switch_all))
        return [path("switch/", view, name="batches_switch"), *super().get_urls()]

    def switch_all(self, request: HttpRequest) -> HttpResponse:
        if not self.has_cancel_permission(request):
            raise PermissionDenied
        if "pause" in request.POST:
            switch.pause_all()
            self.message_user(request, "Paused all batches.", messages.SUCCESS)
        else:
            switch.resume_all()
            tasks.wake(tasks.drive)
            self.message_user(request, "Resumed all batches.", messages.SUCCESS)
        return redirect("admin:batches_batch_changelist")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if request.method == "GET":
            for reason in health.closed_reasons():
                self.message_user(request, reason, messages.WARNING)
        context = {"may_switch": self.has_cancel_permission(request), "all_paused": switch.all_paused_at()}
        return super().changelist_view(request, context | (extra_context or {}))

    @admin.display(description="Paused since")
    def paused_since(self, batch: Batch) -> datetime | None:
        return batch.paused_at if switch.is_paused(batch) else None

    @admin.display(description="Waits for")
    def waits_for(self, batch: Batch) -> str:
        return progress.waiting_for(batch) or "-"

    @admin.display(description="Waits for")
    def waits_for_in_short(self, batch: Batch) -> str:
        """For the list, whose columns are narrow; the whole sentence shows under the mouse."""
        reason = progress.waiting_for(batch)
        if not reason:
            return "-"
        short = Truncator(reason).chars(MOST_CHARACTERS)
        return format_html('<span title="{}" style="display:inline-block;min-width:14em">{}</span>', reason, short)

    @admin.display(description="May end")
    def estimated_end(self, batch: Batch) -> str:
        end = progress.of(batch).estimated_end
        return gate.clock(end) if end else "-"

    @admin.display(description="Estimated from")
    def estimated_from(self, batch: Batch) -> str:
        return progress.of(batch).estimated_from or "-"

    @admin.display(description="Lines done")
    def progress(self, batch: Batch) -> str:
        return f"{batch.completed + batch.failed} / {batch.total}"

    @admin.display(description="Lines")
    def lines_link(self, batch: Batch) -> str:
        return format_html(
            '<a href="{}?batch__id__exact={}">Show</a>', reverse("admin:batches_line_changelist"), batch.pk
        )

    @admin.display(description="Input file")
    def input(self, batch: Batch) -> str:
        return _file_link(batch.input_file_id)

    @admin.display(description="Output file")
    def output(self, batch: Batch) -> str:
        return _file_link(batch.output_file_id)

    @admin.display(description="Error file")
    def error_output(self, batch: Batch) -> str:
        return _file_link(batch.error_file_id)

    @admin.display(description="Warnings")
    def told_warnings(self, batch: Batch) -> str:
        return _paragraphs([warning["message"] for warning in batch.warnings])

    @admin.display(description="Contexts chosen")
    def contexts(self, batch: Batch) -> str:
        parts = progress.fitted(batch)
        return _paragraphs([f"{part.model}: {part.fitted_tokens:,} tokens. {part.fit_reason}" for part in parts])

    @admin.display(description="Errors")
    def listed_errors(self, batch: Batch) -> str:
        lines = [f"line {error['line'] or '-'}: {error['message']} ({error['code']})" for error in batch.errors]
        return _paragraphs(lines)

    @admin.display(description="Reasons")
    def told_reasons(self, batch: Batch) -> str:
        found = reasons.of(batch)
        return _paragraphs(
            [f"{each.count:,} x {each.code}: {each.message} (first: {', '.join(each.first)})" for each in found]
        )

    @admin.display(description="Retries the lines of")
    def parent(self, batch: Batch) -> str:
        return batch.retry_of_id or "-"

    @admin.display(description="Finished")
    def finished_at(self, batch: Batch) -> Any:
        return batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at


def _retry(batch_id: str) -> str:
    wish = retry.Wish(Batch.objects.get(pk=batch_id))
    with retry.input_of(wish) as content:
        return retry.create(wish, content, window=None, metadata=None).pk


def _paragraphs(lines: list[str]) -> str:
    return format_html('<pre style="margin:0;white-space:pre-wrap">{}</pre>', "\n".join(lines)) if lines else "-"


def _file_link(file_id: str | None) -> str:
    if not file_id or not file_id.isprintable():
        return file_id or "-"  # as an earlier version took it: no address can hold it
    return format_html('<a href="{}">{}</a>', reverse("admin:files_api_file_change", args=[quote(file_id)]), file_id)
