"""Webhook deliveries in the admin: to look at and to send again."""

from django.contrib import admin, messages
from django.contrib.admin.utils import quote
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from batches import webhooks
from batches.models import WebhookDelivery
from common.admin import LookOnly


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(LookOnly):
    list_display = ("created_at", "event", "batch_link", "is_for_owner", "attempts", "delivered_at", "last_error")
    fields = (
        "id",
        "event",
        "batch_link",
        "is_for_owner",
        "created_at",
        "attempts",
        "delivered_at",
        "next_at",
        "last_error",
    )
    ordering = ("-created_at",)
    list_filter = ("event",)
    search_fields = ("id", "=batch__id")
    actions = ("send_again",)

    def has_send_again_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("batches.change_webhookdelivery")

    @admin.action(description="Send selected events again", permissions=["send_again"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[WebhookDelivery]) -> None:
        webhooks.send_again(queryset)
        for delivery in queryset:
            self.message_user(request, f"Sending {delivery}.", messages.SUCCESS)

    @admin.display(description="Batch")
    def batch_link(self, delivery: WebhookDelivery) -> str:
        return format_html(
            '<a href="{}">{}</a>',
            reverse("admin:batches_batch_change", args=[quote(delivery.batch_id)]),
            delivery.batch_id,
        )
