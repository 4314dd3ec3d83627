"""One drive has a shared backend to itself: to load another model, or to send a line that may bring the server down.
If the server then goes down, the fault is that line's beyond doubt.

A drive that wants the backend alone writes its lease on the backend's row. The other drives read the row within a
second, let their calls in flight finish, and say on their leases that they stand by. A drive that died is no obstacle:
only leases that are alive count.
"""

from django.db.models import Exists, Q

from batches.models import Backend, Lease


def take(backend: Backend, lease: Lease) -> bool:
    """True once `lease` has the backend alone. Until then, call again, with nothing in flight. Safe to repeat."""
    taken = Exists(backend.leases.alive().filter(pk=backend.alone_id)) if backend.alone_id else Q(pk__in=[])
    mine = Backend.objects.filter(Q(alone=None) | Q(alone=lease) | (Q(alone=backend.alone_id) & ~taken), pk=backend.pk)
    if not mine.update(alone=lease):
        return False
    backend.alone_id = lease.pk
    return not backend.leases.alive().filter(stands_by=False).exclude(pk=lease.pk).exists()


def give_back(backend: Backend, lease: Lease) -> None:
    Backend.objects.filter(pk=backend.pk, alone=lease).update(alone=None)
    backend.alone_id = None


def is_anothers(backend: Backend, lease: Lease) -> bool:
    """Another drive has the backend alone, or waits for us to stand by. `backend` is the row as it was just read."""
    return backend.alone_id not in (None, lease.pk) and backend.leases.alive().filter(pk=backend.alone_id).exists()


def stand_by(lease: Lease, stands_by: bool) -> None:
    """Tell the other drives that we have nothing in flight and send nothing, or that we go on."""
    if lease.stands_by != stands_by:
        Lease.objects.filter(pk=lease.pk).update(stands_by=stands_by)
        lease.stands_by = stands_by
