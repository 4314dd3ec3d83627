"""API keys in the admin: listed and revoked. They are made on the command line, where the secret can be shown once."""

from django.contrib import admin
from django.http import HttpRequest

from batchserver.models import ApiKey

admin.site.site_header = admin.site.site_title = "Ollama Batch Server"
admin.site.index_title = "What is going on"


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin[ApiKey]):
    list_display = ("name", "hint", "created_at")
    readonly_fields = ("name", "hint", "created_at")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False
