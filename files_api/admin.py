"""Files in the admin: to look at, not to change."""

from django.contrib import admin

from common.admin import LookOnly
from files_api.models import File, Upload


@admin.register(File)
class FileAdmin(LookOnly):
    list_display = ("id", "filename", "purpose", "bytes", "created_at", "expires_at", "deleted_at")
    list_filter = ("purpose",)
    search_fields = ("id", "filename")
    ordering = ("-created_at",)
    date_hierarchy = "created_at"
    fields = ("id", "filename", "purpose", "bytes", "sha256", "created_at", "expires_at", "deleted_at")


@admin.register(Upload)
class UploadAdmin(LookOnly):
    list_display = ("id", "filename", "purpose", "bytes", "status", "created_at", "file")
    search_fields = ("id", "filename")
    ordering = ("-created_at",)
    fields = ("id", "filename", "purpose", "bytes", "status", "created_at", "expires_at", "cancelled_at", "file")
    list_select_related = ("file",)
