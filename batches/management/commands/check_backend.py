"""`manage.py check_backend`: does the model server answer, what is it, and does it have the default model?

Then how many calls will be in flight and from where that is known, the context of a call, and what the server reuses.
"""

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from batches import backends
from batches.backends.base import BackendKind
from batches.backends.states import PromptCache, State
from batches.dispatch.concurrency_limit import FIRST_TOLD, ConcurrencyLimit
from batches.dispatch.readiness import WORTH_COUNTING
from batches.models import Backend


class Command(BaseCommand):
    help = (
        "Ask the configured model server what it is and what it has. Exits with 1 and a hint if something is missing."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            state = backends.probe()
        except backends.Unreachable as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{settings.BACKEND_URL}: {state.kind} {state.version}".rstrip())
        self.stdout.write(f"Models: {', '.join(state.names) or 'none'}")
        model = backends.default_model(state.names)
        listed = backends.listed_name(state.kind, state.names, model)
        if not listed:
            hint = backends.missing_model_hint(state.kind, model, state.names)
            raise CommandError(f"The default model {model} (MODEL_NAME) is missing. {hint}")
        self.stdout.write(f"Default model: {model}")
        for each in _found(state, listed):
            self.stdout.write(each)


def _found(state: State, model: str) -> Iterator[str]:
    kind = backends.kind_named(state.kind)
    yield f"Calls in flight: {_calls(kind, state, model)}"
    described = backends.describe(state.kind, model)
    tokens = described.context_tokens if described is not None else 0
    yield f"Context of a call: {f'{tokens:,} tokens' if tokens else 'not known while the model is not loaded'}"
    yield f"Prompt cache: {kind.cache.value}"


def _calls(kind: BackendKind, state: State, model: str) -> str:
    """How many calls a batch of many lines will have in flight, and from where that is known."""
    if settings.BACKEND_PARALLEL:
        return f"{_size(kind, settings.BACKEND_PARALLEL)} (BACKEND_PARALLEL is {settings.BACKEND_PARALLEL})"
    if state.parallel:
        return f"{_size(kind, state.parallel)} (slots: {state.parallel}, told by {kind.slots_told_at})"
    if slots := _counted(kind, model):
        return f"{_size(kind, slots)} (slots: {slots}, counted)"
    if kind.cache is PromptCache.BY_SLOT:
        return f"as many as it has slots, which are counted before a batch of {WORTH_COUNTING} lines or more"
    if told := backends.occupancy(state.kind):
        room = f"; its cache has room for {int(told.holds)} calls of full length" if told.holds else ""
        busy = f"now {told.running} run and {told.waiting} wait{room}"
        return f"{FIRST_TOLD} at first, then what its /metrics tell, {kind.most_in_flight} at most ({busy})"
    return f"{_size(kind, None)} at first, then more while tokens a second grow, {kind.most_in_flight} at most"


def _size(kind: BackendKind, parallel: int | None) -> str:
    is_by_slot = kind.cache is PromptCache.BY_SLOT
    size = ConcurrencyLimit(parallel, most=kind.most_in_flight, cache_is_by_slot=is_by_slot).size
    return f"{size}, {parallel} of lines that begin alike" if is_by_slot and parallel and parallel > 1 else str(size)


def _counted(kind: BackendKind, model: str) -> int | None:
    """The slots of this model as an inference worker has counted them; None if none has, or has not for this model."""
    try:
        backend = Backend.objects.filter(name=settings.BACKEND_NAME).first()
    except DatabaseError:
        return None  # this command needs no database
    return backend.counted_slots if backend is not None and kind.is_same(backend.loaded_model, model) else None
