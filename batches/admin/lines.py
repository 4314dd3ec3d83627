"""Lines in the admin: to look at."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from batches.models import Line
from common.admin import LookOnly


@admin.register(Line)
class LineAdmin(LookOnly):
    list_display = ("number", "custom_id", "state", "model_name", "http_status", "attempts", "duration_ms", "batch")
    list_display_links = ("number", "custom_id")
    list_filter = ("state",)
    list_select_related = ("batch", "part")
    search_fields = ("=custom_id", "=batch__id")
    search_help_text = "A custom_id or a batch id, whole."
    show_full_result_count = False
    ordering = ("batch", "number")
    exclude = ("lease", "order_key", "digest", "original")
    readonly_fields = ("original_line",)

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
        # The list shows no reasons, and a page of long ones would be as large as all of them together.
        return super().get_queryset(request).defer("error_message")
