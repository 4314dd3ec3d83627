"""Whether the server does its work, and what stops it or a batch, as `/health` tells it."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import Count

from batches import hosts, registry
from batches.models import Backend, Batch, Pulse, Status
from batches.scheduling import gate, turns
from common import database
from common.bounded import Bounded
from files_api import storage_id

TICK_MISSING_AFTER = timedelta(seconds=30)
MOST_REASONS = 3
_storage = Bounded(storage_id.read, within_s=2.0)


def summary() -> dict[str, Any]:
    """`status` is ok, waiting (for the model server, for the files of a host, or for the end of a stall) or failing
    (the control worker does not tick, or a duty of its tick fails); `reason` says why.

    If the gate is closed, by a person or by the clock, `reason` says so, and `status` stays: nothing is wrong.
    `batch_share_had` is the part of the last ten minutes that lines had of a backend, if persons kept them back then.
    """
    backends = registry.live_backends()
    status, reasons = _look(backends)
    return {
        "status": status,
        "reason": " ".join(reasons) or None,
        "backends": [
            {"url": backend.url, "kind": backend.kind or None, "version": backend.version or None}
            | {"models": backend.model_names, "paused": backend.pause_reason or None}
            | {"batch_share": settings.BATCH_SHARE, "batch_share_had": backend.share_had}
            for backend in backends
        ],
        "batches": {
            name: Batch.objects.filter(status=name).count()
            for name in (Status.VALIDATING, Status.IN_PROGRESS, Status.FINALIZING, Status.CANCELLING)
        },
    }


def told() -> tuple[str, list[str]]:
    """`status` and the reasons of `summary`, one by one, without what costs more to find."""
    return _look(registry.live_backends())


def _look(backends: list[Backend]) -> tuple[str, list[str]]:
    failing = tick_trouble()
    waiting = [] if failing or backends else [registry.NO_WORKER]
    waiting += hosts_trouble()
    waiting += [trouble for backend in backends for trouble in _troubles(backend)]
    waiting += _stalled_reasons()
    return "failing" if failing else "waiting" if waiting else "ok", [*failing, *waiting, *closed_reasons()]


def hosts_trouble() -> list[str]:
    """Why hosts take no work, or no uploads, in sentences for a person; this host is one of them."""
    told = hosts.troubles()
    own = _own_storage_trouble()
    return told if not own or any(own in each for each in told) else [own, *told]


def _own_storage_trouble() -> str:
    """As `storage_id.trouble`, within a time: a directory of another machine may hang for as long as that is away."""
    wanted = storage_id.expected()
    try:
        return storage_id.advised(storage_id.compare(_storage.ask(), wanted)) if wanted is not None else ""
    except TimeoutError:
        return "The storage of files does not answer on this host."
    except OSError:
        return ""


def tick_trouble() -> list[str]:
    """Why the control worker does not do its duties, in sentences for a person; empty if it does."""
    tick = Pulse.objects.filter(pk="ticked").first()
    if tick is None or tick.at < database.now() - TICK_MISSING_AFTER:
        return ["The control worker has not ticked lately."]
    failing = failed_duties()
    return [f"The control worker cannot {failing}; its log says more."] if failing else []


def failed_duties() -> str:
    """The duties that failed in the last tick and in the last sweep, and how; empty if none did."""
    errors = Pulse.objects.filter(pk__in=["ticked", "swept"]).exclude(error="").order_by("-pk")
    return ", ".join(errors.values_list("error", flat=True))


def _troubles(backend: Backend) -> list[str]:
    """What is wrong with a backend, or with the models that lines wait for. A model stays paused in its row until a
    drive looks, which may be long after the last batch that wanted it. That the backend lacks a model is no fault while
    another live one has it."""
    paused = backend.paused_models.order_by("pk").values_list("endpoint", "model", "reason")
    told = [
        reason
        for endpoint, model, reason in paused
        if turns.is_wanted(endpoint, model, now=False) and not registry.is_only_elsewhere(backend, model)
    ]
    reasons = list(filter(None, [backend.pause_reason, *told]))
    return reasons or list(filter(None, [registry.missing_default_model(backend)]))


def closed_reasons() -> list[str]:
    """Why the gate of live backends is closed, by a person or by the clock; each reason once."""
    return list(dict.fromkeys(filter(None, map(gate.closed_reason, registry.live_backends()))))


def _stalled_reasons() -> list[str]:
    """How many batches are stalled, whatever their status, and why; the commonest reasons first."""
    stalled = Batch.objects.filter(stalled_at__isnull=False).order_by().values_list("stall_reason")
    counts = list(stalled.annotate(count=Count("pk")).order_by("-count", "stall_reason"))
    told = [
        f"{'1 batch is' if count == 1 else f'{count} batches are'} stalled: {reason}"
        for reason, count in counts[:MOST_REASONS]
    ]
    if more := sum(count for _, count in counts[MOST_REASONS:]):
        told.append(f"{more} more batches are stalled for other reasons; the admin has them.")
    return told
