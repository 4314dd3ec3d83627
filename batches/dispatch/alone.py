"""One drive alone with a backend that several drives share: to load another model, or to try a line that may bring the
server down, whose fault it then is beyond doubt.

The drive that wants it writes its lease on the backend's row; the others see it within a second, let what they have in
flight finish and say that they stand by. A drive that died is no obstacle: only leases that are alive count.
"""

from django.db.models import Exists, Q, QuerySet
from django.db.models.functions import Now

from batches.models import Backend, Lease


def drives(backend: Backend) -> list[int]:
    """The leases of the drives that work on it, the oldest first."""
    return list(_alive(backend).order_by("pk").values_list("pk", flat=True))


def take(backend: Backend, lease: Lease) -> bool:
    """True once the backend is ours alone. Until then ask again, with nothing in flight. Safe to repeat."""
    taken = Exists(_alive(backend).filter(pk=backend.alone_id)) if backend.alone_id else Q(pk__in=[])
    mine = Backend.objects.filter(Q(alone=None) | Q(alone=lease) | (Q(alone=backend.alone_id) & ~taken), pk=backend.pk)
    if not mine.update(alone=lease):
        return False
    backend.alone_id = lease.pk
    return not _alive(backend).filter(stands_by=False).exclude(pk=lease.pk).exists()


def give_back(backend: Backend, lease: Lease) -> None:
    Backend.objects.filter(pk=backend.pk, alone=lease).update(alone=None)
    backend.alone_id = None


def is_anothers(backend: Backend, lease: Lease) -> bool:
    """Another drive has it, or is waiting for us to stand by. `backend` as it was just read."""
    return backend.alone_id not in (None, lease.pk) and _alive(backend).filter(pk=backend.alone_id).exists()


def stand_by(lease: Lease, stands_by: bool) -> None:
    """Tell the others that we have nothing in flight and send nothing, or that we go on."""
    if lease.stands_by != stands_by:
        Lease.objects.filter(pk=lease.pk).update(stands_by=stands_by)
        lease.stands_by = stands_by


def _alive(backend: Backend) -> QuerySet[Lease]:
    return Lease.objects.filter(backend=backend, expires_at__gt=Now())
