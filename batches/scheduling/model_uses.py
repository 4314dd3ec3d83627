"""When each model of a backend was last used by us: for a line, a question of our own, or a person's request that we
passed on. What else happens to a model is the work of others (scheduling.others)."""

from datetime import timedelta

from django.db.models.functions import Now

from batches import backends
from batches.models import Backend, ModelUse
from common.database import from_now

# Ollama keeps a model that we loaded for half an hour (backends.ollama.KEEP_ALIVE).
REMEMBERED = timedelta(hours=1)


def note(backend: Backend, model: str) -> None:
    """We use this model now. Safe to repeat."""
    if not backend.kind or not backends.kind_named(backend.kind).loads_on_demand:
        return  # nobody asks
    name = _identity(backend, model)
    if not ModelUse.objects.filter(backend=backend, model=name).update(at=Now()):
        ModelUse.objects.update_or_create(backend=backend, model=name, defaults={"at": Now()})


def within(backend: Backend, time: timedelta) -> set[str]:
    """The models that we used in the last `time`, by `BackendKind.identity`."""
    return set(ModelUse.objects.filter(backend=backend, at__gt=from_now(-time)).values_list("model", flat=True))


def forget_old() -> None:
    """Remove what nobody asks for any more. Safe to run at any time."""
    ModelUse.objects.filter(at__lte=from_now(-REMEMBERED)).delete()


def _identity(backend: Backend, model: str) -> str:
    return backends.kind_named(backend.kind).identity(model)[:255] or model
