"""Backends in the admin, and what keeps lines from them: to look at."""

from django.contrib import admin

from batches import backends
from batches.models import Backend, Hold, PausedModel
from common.admin import LookOnly


def _named(backend: Backend, name: str) -> str:
    """A model as a person knows it: one that we derived is the user's, with another context."""
    derived = backends.kind_named(backend.kind).derived(name) if backend.kind else None
    return f"{derived.origin} with a context of {derived.tokens:,}" if derived else name


def loaded(backend: Backend) -> str:
    """The models that it has loaded, as persons know them."""
    return ", ".join(_named(backend, name) for name in backend.loaded_names)


@admin.register(Backend)
class BackendAdmin(LookOnly):
    list_display = ("url", "kind", "version", "seen_at", "worker", "pause_reason")
    readonly_fields = ("loaded", "made_ready", "models")
    fieldsets = (
        (None, {"fields": ("name", "url", "kind", "version", "seen_at", "worker", "worker_seen_at")}),
        ("Models", {"fields": ("models", "loaded", "made_ready")}),
        ("Pause", {"fields": ("paused_at", "pause_reason", "resume_at")}),
        (
            "Inner state, for maintainers",
            {
                "classes": ["collapse"],
                "fields": ("parallel", "counted_slots", "concurrency_limit", "share_had", "alone", "listed"),
            },
        ),
    )

    @admin.display(description="Models")
    def models(self, backend: Backend) -> str:
        return ", ".join(backend.model_names) or "-"

    @admin.display(description="Loaded names")
    def loaded(self, backend: Backend) -> str:
        return loaded(backend) or "-"

    @admin.display(description="Loaded model")
    def made_ready(self, backend: Backend) -> str:
        """Made ready by its drives."""
        return _named(backend, backend.loaded_model) if backend.loaded_model else "-"


@admin.register(Hold)
class HoldAdmin(LookOnly):
    list_display = ("reason", "model", "backend", "created_at", "until")


@admin.register(PausedModel)
class PausedModelAdmin(LookOnly):
    list_display = ("model", "endpoint", "backend", "reason", "since", "failed_trials", "resume_at")
