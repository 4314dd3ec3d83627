"""Take, keep and lose the right to work: conditional UPDATEs by the database's clock, on any database."""

import os
import socket
import time
from datetime import timedelta
from functools import cache
from pathlib import Path

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Least, Now

from batches import counting
from batches.models import Backend, Batch, Counts, Lease, Line, LineState
from common import signs_of_life
from common.database import from_now, retrying

LIFETIME = timedelta(seconds=30)
RENEW_EVERY_S = 5.0
MOST_LOST_CLAIMS = 10_000  # counted no further: the column is a small integer


def acquire(purpose: str, *, backend: Backend | None = None) -> Lease:
    """A new lease of this process, alive for LIFETIME unless renewed. `backend` is the one that a drive works on."""
    pid = os.getpid()
    # The database computes `expires_at`; it is read back only if a caller asks for it.
    return Lease.objects.create(
        purpose=purpose,
        host=_host(),
        pid=pid,
        started=_started(pid) or "",
        expires_at=from_now(LIFETIME),
        backend=backend,
    )


def renew(lease: Lease) -> bool:
    """False: the lease expired. Stop, drop the calls in flight and write nothing more."""
    return Lease.objects.filter(pk=lease.pk, expires_at__gt=Now()).update(expires_at=from_now(LIFETIME)) == 1


class LeaseLost(Exception):
    """The lease expired: its work belongs to other processes now. Stop, and write nothing more."""


class Keeper:
    """A lease of this process while the `with` block runs; the block calls `keep` often enough to keep it alive.

        with leases.Keeper("finalize") as keeper:
            for page in pages:
                write(page)
                keeper.keep()

    `keep` renews the lease if a renewal is due, and raises LeaseLost if the lease has expired. Leaving the block
    releases the lease and hands back its lines, batch and backend.
    """

    def __init__(self, purpose: str, *, backend: Backend | None = None) -> None:
        self._purpose = purpose
        self._backend = backend
        self._renewed_at = time.monotonic()

    def __enter__(self) -> "Keeper":
        self.lease = retrying(acquire, self._purpose, backend=self._backend)
        self._renewed_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        retrying(release, self.lease)

    def keep(self) -> None:
        """Cheap to call often: the database is asked every RENEW_EVERY_S."""
        signs_of_life.alive()
        now = time.monotonic()
        if now < self._renewed_at + RENEW_EVERY_S:
            return
        if not retrying(renew, self.lease):
            raise LeaseLost
        self._renewed_at = now


def release(lease: Lease) -> None:
    """Give up the lease and hand back its lines, batch and backend. No line is charged with an attempt."""
    with transaction.atomic():
        Line.objects.claimed_by(lease).update(state=LineState.PENDING, lease=None)
        Batch.objects.filter(lease=lease).update(lease=None)
        Backend.objects.filter(alone=lease).update(alone=None)
    _forget(lease.pk)


def _forget(token: int) -> None:
    """The last step: nothing is held by this lease any more."""
    # In a transaction of its own. One that holds lines and then waits for their batch's row could wait for ever: the
    # finalizer holds the row, and waits for the lines.
    counting.fold(token)
    Lease.objects.filter(pk=token).delete()


def reap() -> int:
    """Hand back the work of dead leases; the number of dead leases. Any process, any time, safe to run twice.

    A lease is dead if it expired, or if its process was on this host and is gone. A lease that ends far in the future
    was written before the clock went back, and counts as expired too.
    """
    expired = Q(expires_at__lte=Now()) | Q(expires_at__gt=from_now(2 * LIFETIME))
    dead = set(Lease.objects.filter(expired).values_list("pk", flat=True))
    for lease in Lease.objects.filter(host=_host()).exclude(pk__in=dead):
        if _is_gone(lease):
            dead.add(lease.pk)
    for token in dead | _tokens_without_lease():
        with transaction.atomic():
            lines = Line.objects.filter(lease=token, state=LineState.RUNNING)
            lost = Least(F("lost_claims") + 1, MOST_LOST_CLAIMS)
            lines.update(state=LineState.PENDING, lease=None, lost_claims=lost)
            # No worker does the step of this batch any more: the tick asks for it at once.
            Batch.objects.filter(lease=token).update(lease=None, nudged_at=None)
            Backend.objects.filter(alone=token).update(alone=None)
        _forget(token)
    return len(dead)


def _tokens_without_lease() -> set[int]:
    """Tokens on batches, lines and counts whose lease is gone: a process that stood still until its lease was reaped
    wrote the token afterwards, and was killed."""
    lease = Exists(Lease.objects.filter(pk=OuterRef("lease_id")))
    batches = Batch.objects.filter(lease__isnull=False).exclude(lease)
    # By the index of claimed lines, which are few.
    lines = Line.objects.filter(lease__isnull=False, state=LineState.RUNNING).exclude(lease)
    counts = Counts.objects.exclude(lease)
    return {token for held in (batches, lines, counts) for token in held.values_list("lease_id", flat=True)}


def _is_gone(lease: Lease) -> bool:
    if not lease.started:
        return False  # this system does not tell when a process started: wait for the lease to expire
    return _started(lease.pid) != lease.started


@cache
def _host() -> str:
    """Where a process id names one process: this boot of this machine, and this container's own numbering."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """When the process started, in clock ticks since boot; no other process has this id and start. None: it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The 2nd field is the command in parentheses and may hold anything; the 3rd is the state, the 22nd the start time.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
