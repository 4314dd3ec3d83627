"""Which backends there are, and what they have: one row each, kept fresh by the backend's worker."""

import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.db.models.functions import Now

from batches import backends
from batches.models import ANY_PAUSED_MODEL, Backend, Part, Status
from common import database, schema
from files_api.storage import no_room_hint

logger = logging.getLogger(__name__)

NO_WORKER = "No inference worker has reported lately."
READ_AGAIN_S = 2.0

# When the live backends were read last, by time.monotonic(), and what was read.
_known: tuple[float, list[Backend]] = (float("-inf"), [])


def own_backend() -> Backend:
    """The row of the backend that this process is configured to use; made if there is none."""
    backend, _ = Backend.objects.get_or_create(name=settings.BACKEND_NAME, defaults={"url": settings.BACKEND_URL})
    return backend


def known_own() -> Backend | None:
    """The same row, or None: where others do the work, no worker may ever have looked for the configured backend."""
    return Backend.objects.filter(name=settings.BACKEND_NAME).first()


def report_backend(note_loaded: Callable[[Backend, Mapping[str, str]], None] = lambda *_: None) -> Backend:
    """The health probe: ask the backend what it has, store the answer, and lift or set the backend's pause.

    `note_loaded` is told what the backend says of its loaded models (`State.loaded_until`).

    Each request of the probe is cut after seconds. A pause that has an end is not lifted before that end: a backend
    that lists its models may still not be able to run them.
    """
    fields = ["worker", "worker_seen_at"]
    state = None
    try:
        state = backends.probe()
    except backends.Unreachable as error:
        backend = own_backend()
        _pause(backend, str(error))
        if settings.BACKEND_OPTIONAL and any(each.pk != backend.pk for each in live_backends()):
            return backend  # without a sign of its worker: it is no live one, and nobody misses it
    else:
        backend = own_backend()
        paused = list(backend.paused_models.all()) if ANY_PAUSED_MODEL.is_true() else []
        missed = [each for each in paused if not backend.has_model(each.model)]
        said = {
            "kind": state.kind,
            "version": state.version,
            "listed": [asdict(model) for model in state.models],
            "loaded_names": state.loaded,
            "parallel": settings.BACKEND_PARALLEL or state.parallel,
        }
        changed = {name: value for name, value in said.items() if getattr(backend, name) != value}
        for name, value in changed.items():
            setattr(backend, name, value)
        backend.seen_at = database.now()
        fields += [*changed, "seen_at"]
        # A model that is listed again is tried at once; its pause may have minutes left.
        if back := [each.pk for each in missed if backend.has_model(each.model)]:
            backend.paused_models.filter(pk__in=back).update(resume_at=Now())
        if not backends.listed_name(state.kind, state.loaded, backend.loaded_model):
            # The server was started again, maybe with other slots. A drive that has just loaded the model counts again.
            backend.counted_slots = None
            fields.append("counted_slots")
        if no_room := no_room_hint():
            _pause(backend, no_room)
        elif backend.is_paused and (backend.resume_at is None or backend.resume_at <= database.now()):
            backend.resume()
            backend.paused_models.update(resume_at=Now(), since=Now())  # a restart may have mended them
            logger.info("%s answers: %s %s", backend.url, state.kind, state.version)
    backend.worker = socket.gethostname()
    backend.worker_seen_at = database.now()
    backend.save(update_fields=fields)
    if state is not None:
        note_loaded(backend, state.loaded_until)
        _delete_unneeded(backend, state.derived)
    return backend


def _delete_unneeded(backend: Backend, derived: Collection[str]) -> None:
    """Delete those of the `derived` models at the backend that servers with our database made, and that no open batch
    needs: a batch has ended, or a crash left them. The next probe tries again what does not succeed.

    What a drive has loaded stays while the drive lives: the drive of another backend, where the same part needs no
    derived model, may just have said so on the part's row.
    """
    if not derived:
        return
    kind, mark = backends.kind_named(backend.kind), schema.mark()
    ours = [name for name in derived if (made := kind.derived(name)) and made.mark == mark]
    open_ = Part.objects.filter(batch__status__in=[Status.VALIDATING, Status.IN_PROGRESS], served_by__gt="")
    needed = set(map(kind.identity, open_.values_list("served_by", flat=True))) if ours else set()
    if ours and backend.leases.alive().exists():
        needed.add(kind.identity(backend.loaded_model))
    for name in ours:
        if kind.identity(name) not in needed:
            is_loaded = backends.listed_name(backend.kind, backend.loaded_names, name) != ""
            if backends.delete(backend.kind, name, is_loaded=is_loaded):
                logger.info("deleted %s: no open batch needs it", name)
                Backend.objects.filter(pk=backend.pk, loaded_model=name).update(loaded_model="", counted_slots=None)


def _pause(backend: Backend, reason: str) -> None:
    """Pause the backend and log the reason, once while the reason stays the same."""
    if backend.pause_reason != reason:
        logger.warning("paused: %s", reason)
        backend.pause(reason)


def live_backends() -> list[Backend]:
    """The backends whose workers reported lately, whether or not the backends answered. To read, not to change.

    Read from the database once in READ_AGAIN_S in each process, however often it is asked: with a thousand workers
    that each ask for the others several times a second, the database would do little else.
    """
    read_at, live = _known
    if not live or time.monotonic() > read_at + READ_AGAIN_S:
        live = _read_live()
    return list(live)


def _read_live() -> list[Backend]:
    global _known
    live = list(Backend.objects.all().live().order_by("pk"))
    _known = time.monotonic(), live
    return live


def others_with(backend: Backend | None, model: str) -> list[Backend]:
    """The other live backends that have this model."""
    own = backend.pk if backend is not None else None
    return [each for each in live_backends() if each.pk != own and each.has_model(model)]


def is_elsewhere(backend: Backend | None, model: str) -> bool:
    """Whether another live backend has this model."""
    return bool(others_with(backend, model))


def is_only_elsewhere(backend: Backend, model: str) -> bool:
    """Whether the backend lacks this model and another live one has it."""
    return not backend.has_model(model) and is_elsewhere(backend, model)


def backend_for(model: str) -> Backend | None:
    """The backend that answers a person's request for this model: ours, unless it lacks the model or is away and
    another one that we can reach has it. None: no backend that we can reach answers for it, and the live ones say why
    (`others_with`); a web server has no model server of its own, as a rule, where others do the work."""
    own = known_own()
    if own is not None and own.is_fresh and own.has_model(model):
        return own
    fresh = [each for each in live_backends() if each.name != settings.BACKEND_NAME and each.is_fresh]
    if found := next((each for each in fresh if each.has_model(model) and is_in_reach(each)), None):
        return found
    if own is not None and (own.is_fresh or own.has_model(model)):
        return own  # it says itself that it lacks the model, or is away
    return None if fresh else own or own_backend()


def has_ollama() -> bool:
    """Whether a live backend is an Ollama, or the configured one is said to be. Asks no model server."""
    try:
        kinds = [each.kind for each in Backend.objects.all() if each.name == settings.BACKEND_NAME or each.is_fresh]
    except DatabaseError:
        kinds = []
    return "ollama" in kinds if any(kinds) else settings.BACKEND_IS_OLLAMA


def is_in_reach(backend: Backend) -> bool:
    """Whether this process can call the backend: its address is no loopback address of another machine."""
    return machine_of(backend) in ("", os.uname().nodename)


def machine_of(backend: Backend) -> str:
    """The machine that alone reaches the backend; empty if others do."""
    _, on, machine = backend.name.rpartition(" on ")
    return machine if on else ""


def listed_name(model: str, among: Collection[Backend]) -> str:
    """The name by which one of these backends lists the model, `model` itself if one does; empty if none has it."""
    names = [name for backend in among if (name := backend.listed_name(model))]
    return model if model in names else next(iter(names), "")


def known_models() -> list[dict[str, Any]]:
    """The models that live backends list, and aliases of them: id, created, owned_by; sorted by id, each id once."""
    live = live_backends()
    models = {model["id"]: model for backend in live for model in backend.listed}
    for alias, target in settings.MODEL_ALIASES.items():
        if alias != "*" and (listed := listed_name(target, live)):
            models.setdefault(alias, models[listed] | {"id": alias})
    return [models[name] for name in sorted(models)]


def known_model(name: str) -> dict[str, Any] | None:
    """The model that answers a line which names `name`, with `name` as its id; None if no live backend has it."""
    live = live_backends()
    listed = listed_name(backends.resolve_alias(name), live)
    models = (model for backend in live for model in backend.listed if model["id"] == listed)
    return next((model | {"id": name} for model in models), None)


def context_of(name: str) -> int | None:
    """The tokens that a line which names this model may take at most, prompt and answer; None if nobody says. Asks a
    model server that has the model, which takes some seconds at most."""
    backend = backend_for(backends.resolve_alias(name))
    model = backend.listed_name(backends.resolve_alias(name)) if backend is not None and backend.is_fresh else ""
    state = backends.describe(backend.kind, model, backend.url) if backend is not None and model else None
    if backend is None or state is None:
        return None
    may_have_more = backends.kind_named(backend.kind).derives and settings.FIT_CONTEXT
    return (state.most_context_tokens if may_have_more else 0) or state.context_tokens or None


def default_model() -> str:
    """The model of requests that name none, by what the live backends list, or ours listed last."""
    known = live_backends() or filter(None, [known_own()])
    return backends.default_model({name for each in known for name in each.model_names})


def missing_default_model(backend: Backend) -> str:
    """What to type if the backend lacks the default model; empty if it or another live one has the model, or if it was
    not seen lately."""
    model = default_model()
    if not backend.is_fresh or backend.has_model(model) or is_elsewhere(backend, model):
        return ""
    return f"{backend.url} does not have the model {model}. {backend.missing_model_hint(model)}"
