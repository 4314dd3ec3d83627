"""Which backends are there, and what they have: a row each, kept fresh by its worker."""

import logging
import socket
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.db.models.functions import Now
from django.utils import timezone

from batches import backends
from batches.models import Backend
from files_api.storage import no_room_hint

logger = logging.getLogger(__name__)

NO_WORKER = "No inference worker has reported lately."


def own_backend() -> Backend:
    """The row of the backend that this process is configured to use; made if it is the first to ask."""
    backend, _ = Backend.objects.get_or_create(name=settings.BACKEND_NAME, defaults={"url": settings.BACKEND_URL})
    return backend


def report_backend() -> Backend:
    """Ask the backend what it has, store it, and lift or set its pause accordingly.

    Each of its questions has seconds to be answered. A pause that has an end is not lifted before it: that the backend
    lists its models says nothing of whether it can run them.
    """
    fields = ["worker", "worker_seen_at"]
    try:
        state = backends.probe()
    except backends.Unreachable as error:
        backend = own_backend()
        _pause(backend, str(error))
    else:
        backend = own_backend()
        backend.kind, backend.version = state.kind, state.version
        backend.listed, backend.loaded_names = [asdict(model) for model in state.models], state.loaded
        backend.parallel = settings.BACKEND_PARALLEL or state.parallel
        backend.seen_at = timezone.now()
        fields += ["kind", "version", "listed", "loaded_names", "parallel", "seen_at"]
        if no_room := no_room_hint():
            _pause(backend, no_room)
        elif backend.is_paused and (backend.resume_at is None or backend.resume_at <= timezone.now()):
            backend.resume()
            backend.paused_models.update(resume_at=Now(), since=Now())  # a restart may have mended them
            logger.info("%s answers: %s %s", backend.url, state.kind, state.version)
    backend.worker = socket.gethostname()
    backend.worker_seen_at = timezone.now()
    backend.save(update_fields=fields)
    return backend


def _pause(backend: Backend, reason: str) -> None:
    """Pause it and say so, once for as long as the reason stays."""
    if backend.pause_reason != reason:
        logger.warning("paused: %s", reason)
        backend.pause(reason)


def live_backends() -> list[Backend]:
    """The backends whose workers reported lately, whether these answered them or not."""
    return list(Backend.objects.all().live().order_by("pk"))


def is_elsewhere(backend: Backend | None, model: str) -> bool:
    """Another backend that is live has this model."""
    own = backend.pk if backend is not None else None
    return any(each.has_model(model) for each in Backend.objects.all().live() if each.pk != own)


def known_models() -> list[dict[str, Any]]:
    """What the live backends list, and the aliases of these: id, created, owned_by; by id, each once."""
    models = {model["id"]: model for backend in live_backends() for model in backend.listed}
    for alias, target in settings.MODEL_ALIASES.items():
        if alias != "*" and target in models:
            models.setdefault(alias, models[target] | {"id": alias})
    return [models[name] for name in sorted(models)]


def missing_default_model(backend: Backend) -> str:
    """What to type if the backend lacks MODEL_NAME; empty if it has it or is not known well enough to say."""
    model = backends.resolve_alias(settings.MODEL_NAME)
    if not backend.is_fresh or backend.has_model(model):
        return ""
    return f"{backend.url} does not have the model {model}. {backends.missing_model_hint(backend.kind, model)}"
