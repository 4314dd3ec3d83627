"""Files in the admin: to look at, not to change."""

from django.contrib import admin
from django.http import HttpRequest

from files_api.models import File


@admin.register(File)
class FileAdmin(admin.ModelAdmin[File]):
    list_display = ("id", "filename", "purpose", "bytes", "created_at", "expires_at", "deleted_at")
    list_filter = ("purpose",)
    search_fields = ("id", "filename")
    date_hierarchy = "created_at"
    fields = ("id", "filename", "purpose", "bytes", "sha256", "created_at", "expires_at", "deleted_at")
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: File | None = None) -> bool:
        return False
