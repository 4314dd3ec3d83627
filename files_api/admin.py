"""Files in the admin: to look at, not to change."""

from django.contrib import admin
from django.template.defaultfilters import filesizeformat

from common.admin import LookOnly
from files_api.models import File, Upload


@admin.register(File)
class FileAdmin(LookOnly):
    list_display = ("filename", "purpose", "size", "owner", "created_at", "expires_at", "deleted_at")
    list_filter = ("purpose", "owner")
    list_select_related = ("owner",)
    search_fields = ("id", "filename")
    ordering = ("-created_at",)
    search_help_text = "Name or id"
    fields = ("id", "owner", "filename", "purpose", "bytes", "sha256", "created_at", "expires_at", "deleted_at")

    @admin.display(description="Size", ordering="bytes")
    def size(self, file: File) -> str:
        return filesizeformat(file.bytes)


@admin.register(Upload)
class UploadAdmin(LookOnly):
    list_display = ("filename", "purpose", "bytes", "status", "owner", "created_at", "file")
    search_fields = ("id", "filename")
    ordering = ("-created_at",)
    fields = (
        "id",
        "owner",
        "filename",
        "purpose",
        "bytes",
        "status",
        "created_at",
        "expires_at",
        "cancelled_at",
        "file",
    )
    list_select_related = ("file", "owner")
