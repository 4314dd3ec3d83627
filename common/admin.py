"""What the admin pages have in common; and API keys, listed and revoked. API keys are made on the command line, where
the secret can be shown once."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from common.models import ApiKey

admin.site.site_header = admin.site.site_title = "Ollama Batch Server"
admin.site.site_url = None
admin.site.index_title = "What is going on"


class LookOnly(admin.ModelAdmin[Any]):
    """Rows that only the server itself writes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(ApiKey)
class ApiKeyAdmin(LookOnly):
    list_display = ("name", "hint", "is_admin", "created_at", "revoked_at")
    fields = list_display
    actions = ("revoke",)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("batchserver.change_apikey")

    @admin.action(description="Revoke selected API keys", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        for key in queryset:
            key.revoke()
            self.message_user(request, f"Revoked {key}.", messages.SUCCESS)
