"""Who is there: the backend's row, kept fresh by its worker, and the server's health as `/health` tells it."""

import logging
import socket
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import Count
from django.db.models.functions import Now
from django.utils import timezone

from batches import backends
from batches.models import Backend, Batch, Pulse, Status
from batches.scheduling import gate
from files_api.storage import no_room_hint

logger = logging.getLogger(__name__)

TICK_MISSING_AFTER = timedelta(seconds=30)
MOST_REASONS = 3
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


def closed_reasons() -> list[str]:
    """Why a person or the clock holds back the lines of live backends; each reason once."""
    return list(dict.fromkeys(filter(None, map(gate.closed_reason, live_backends()))))


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


def stalled_reasons() -> list[str]:
    """What holds up batches, whatever their status: how many, and why; the commonest reasons first."""
    stalled = Batch.objects.filter(stalled_at__isnull=False).order_by().values_list("stall_reason")
    counts = list(stalled.annotate(count=Count("pk")).order_by("-count", "stall_reason"))
    told = [
        f"{'1 batch is' if count == 1 else f'{count} batches are'} stalled: {reason}"
        for reason, count in counts[:MOST_REASONS]
    ]
    if more := sum(count for _, count in counts[MOST_REASONS:]):
        told.append(f"{more} more batches are stalled for other reasons; the admin has them.")
    return told


def health() -> dict[str, Any]:
    """`status` is ok, waiting (for the model server, or for what stalls a batch) or failing (a part of ours is missing
    or does not do its duty); `reason` says why.

    That a person or the clock holds lines back is told in `reason` too, and is no change of `status`: nothing is wrong.
    """
    now = timezone.now()
    tick = Pulse.objects.filter(pk="ticked").first()
    backends_seen = live_backends()
    reasons = []
    status = "ok"
    if tick is None or tick.at < now - TICK_MISSING_AFTER:
        status = "failing"
        reasons.append("The control worker has not ticked lately.")
    elif tick.error:
        status = "failing"
        reasons.append(f"The control worker cannot {tick.error}; its log says more.")
    elif not backends_seen:
        status = "waiting"
        reasons.append(NO_WORKER)
    for backend in backends_seen:
        troubles = [backend.pause_reason, *backend.paused_models.values_list("reason", flat=True)]
        if not any(troubles):
            troubles = [missing_default_model(backend)]
        if any(troubles):
            status = "waiting" if status == "ok" else status
            reasons += filter(None, troubles)
    if stalled := stalled_reasons():
        status = "waiting" if status == "ok" else status
        reasons += stalled
    reasons += closed_reasons()
    return {
        "status": status,
        "reason": " ".join(reasons) or None,
        "backends": [
            {"url": backend.url, "kind": backend.kind or None, "version": backend.version or None}
            | {"models": backend.model_names, "paused": backend.pause_reason or None}
            for backend in backends_seen
        ],
        "batches": {
            name: Batch.objects.filter(status=name).count()
            for name in (Status.VALIDATING, Status.IN_PROGRESS, Status.FINALIZING, Status.CANCELLING)
        },
    }
