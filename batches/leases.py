"""Taking, keeping and losing the right to work: conditional UPDATEs by the database's clock, on any database."""

import os
import socket
import time
from datetime import timedelta
from functools import cache
from pathlib import Path

from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Least, Now

from batches.models import Backend, Batch, Lease, Line, LineState
from common.database import from_now, retrying

LIFETIME = timedelta(seconds=30)
RENEW_EVERY_S = 5.0
MOST_LOST_CLAIMS = 10_000  # that it is so often says enough, and a column has an end


def acquire(purpose: str, *, backend: Backend | None = None) -> Lease:
    """A new lease of this process, alive for LIFETIME unless renewed. `backend` is what a drive works on."""
    pid = os.getpid()
    # The expression becomes a value in the row; read it back only if somebody asks.
    return Lease.objects.create(
        purpose=purpose,
        host=_host(),
        pid=pid,
        started=_started(pid) or "",
        expires_at=from_now(LIFETIME),
        backend=backend,
    )


def renew(lease: Lease) -> bool:
    """False: we were declared dead. Stop, drop what is in flight and write nothing more."""
    return Lease.objects.filter(pk=lease.pk, expires_at__gt=Now()).update(expires_at=from_now(LIFETIME)) == 1


class LeaseLost(Exception):
    """We were declared dead: whatever we hold belongs to others now. Stop, and write nothing more."""


class Keeper:
    """A lease of this process for as long as the `with` block runs, kept alive by whoever calls `keep` often enough.

        with leases.Keeper("finalize") as keeper:
            for page in pages:
                write(page)
                keeper.keep()

    `keep` renews the lease when that is due, and raises LeaseLost once it is not ours any more. Leaving the block
    releases the lease and hands back what it still holds.
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
        now = time.monotonic()
        if now < self._renewed_at + RENEW_EVERY_S:
            return
        if not retrying(renew, self.lease):
            raise LeaseLost
        self._renewed_at = now


def release(lease: Lease) -> None:
    """Give up the lease and hand back what it still holds, uncharged."""
    with transaction.atomic():
        Line.objects.claimed_by(lease).update(state=LineState.PENDING, lease=None)
        Batch.objects.filter(lease=lease).update(lease=None)
        Backend.objects.filter(alone=lease).update(alone=None)
        Lease.objects.filter(pk=lease.pk).delete()


def reap() -> int:
    """Hand back what dead leases hold; the number of dead leases. Any process, any time, safe to run twice.

    Dead is who let the lease expire, or a process of this host that is gone. A lease far in the future was written
    before the clock went back, and counts as expired too.
    """
    expired = Q(expires_at__lte=Now()) | Q(expires_at__gt=from_now(2 * LIFETIME))
    dead = set(Lease.objects.filter(expired).values_list("pk", flat=True))
    for lease in Lease.objects.filter(host=_host()).exclude(pk__in=dead):
        if _is_gone(lease):
            dead.add(lease.pk)
    for token in dead:
        with transaction.atomic():
            lines = Line.objects.filter(lease=token, state=LineState.RUNNING)
            lost = Least(F("lost_claims") + 1, MOST_LOST_CLAIMS)
            lines.update(state=LineState.PENDING, lease=None, lost_claims=lost)
            # Nobody is on the way to it any more: the next step is asked for at once.
            Batch.objects.filter(lease=token).update(lease=None, nudged_at=None)
            Backend.objects.filter(alone=token).update(alone=None)
            Lease.objects.filter(pk=token).delete()
    return len(dead)


def _is_gone(lease: Lease) -> bool:
    if not lease.started:
        return False  # this system does not tell when a process started: wait for the lease to expire
    return _started(lease.pid) != lease.started


@cache
def _host() -> str:
    """Where process ids mean the same: this boot of this machine, and this container's own numbering."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """When the process started, in clock ticks since boot; with its id this names it for good. None: it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The 2nd field is the command in parentheses and may hold anything; the 3rd is the state, the 22nd the start time.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
