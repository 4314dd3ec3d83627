"""Backends in the admin, and what keeps lines from them: to look at."""

from django.contrib import admin

from batches.models import Backend, Hold, PausedModel
from common.admin import LookOnly


@admin.register(Backend)
class BackendAdmin(LookOnly):
    list_display = ("url", "kind", "version", "seen_at", "worker", "pause_reason")


@admin.register(Hold)
class HoldAdmin(LookOnly):
    list_display = ("reason", "model", "backend", "created_at", "until")


@admin.register(PausedModel)
class PausedModelAdmin(LookOnly):
    list_display = ("model", "endpoint", "backend", "reason", "since", "failed_trials", "resume_at")
