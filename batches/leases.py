"""Take, keep and lose the right to work: conditional UPDATEs by the database's clock, on any database.

A process of this host is known to be there or gone. Of a process elsewhere (another machine, another container) nobody
can tell whether it is dead or slow: its lease is given LIFETIME. A worker that stands by for the drives of its backend
is faster. A drive renews its lease every second, and the lease says when its silence becomes remarkable (`silent_at`):

    2 s of silence    another drive may begin beside it: nothing is lost if it lives
    a second more     if the silence lasted, its lines are handed back, and a late answer is dropped

Hardly any work is lost in vain. Lines are taken by a worker of the same backend alone, which has them sent, and from no
process that is known to live. If the database stood still for all, who lives gives a sign between the two looks. A sign
of life by the connection itself (on Postgres a lock of the session, which ends with the connection) would be as fast,
but a PgBouncer in between gives the session to others, SQLite has none, and behind a cut cable the lock stays for a
minute.
"""

import os
import socket
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Least, Now

from batches import counting
from batches.models import Backend, Batch, Counts, Lease, Line, LineState
from common import signs_of_life
from common.database import GIVEN, Asked, Change, Column, from_now, passing_by_locks, retrying

LIFETIME = timedelta(seconds=30)
RENEW_EVERY_S = 5.0
# Of a drive, whose loop looks around every second.
DRIVE_RENEWS_EVERY_S = 0.5
SILENT_AFTER = timedelta(seconds=2)
# A silence that was seen, and is still the same after so long, lasts.
LASTS_AFTER_S = 0.8
# A look that comes later than this after the one before says nothing: the database stood still, or this process.
LOOK_IS_LATE_S = 2.5
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
        silent_at=from_now(SILENT_AFTER) if backend else None,
        backend=backend,
    )


def renew(lease: Lease) -> bool:
    """False: the lease expired. Stop, drop the calls in flight and write nothing more."""
    return (_RENEWED_BY_DRIVE if lease.backend_id else _RENEWED).make(lease.pk) == 1


def is_alive(lease: Lease) -> bool:
    """Whether what the lease has claimed is still its own."""
    return _IS_ALIVE.is_true(lease.pk)


def _itself() -> QuerySet[Lease]:
    return Lease.objects.alive().filter(pk=GIVEN)


_IS_ALIVE = Asked(_itself)
_RENEWED = Change(_itself, expires_at=from_now(LIFETIME))
_RENEWED_BY_DRIVE = Change(_itself, expires_at=from_now(LIFETIME), silent_at=from_now(SILENT_AFTER))


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
        """Cheap to call often: the database is asked every RENEW_EVERY_S, by a drive every DRIVE_RENEWS_EVERY_S."""
        signs_of_life.alive()
        now = time.monotonic()
        if now < self._renewed_at + (DRIVE_RENEWS_EVERY_S if self._backend else RENEW_EVERY_S):
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
    """Hand back the work of dead leases; for how many that was done. Any process, any time, safe to run twice.

    A lease is dead if it expired, or if its process was on this host and is gone. A lease that ends far in the future
    was written before the clock went back, and counts as expired too.
    """
    if not HELD.is_true():
        return 0
    expired = Q(expires_at__lte=Now()) | Q(expires_at__gt=from_now(2 * LIFETIME))
    dead = set(Lease.objects.filter(expired).values_list("pk", flat=True))
    for lease in Lease.objects.filter(host=_host()).exclude(pk__in=dead):
        if _is_gone(lease):
            dead.add(lease.pk)
    reaped = 0
    for token in dead | _tokens_without_lease():
        reaped += _hand_back(token) and token in dead
    return reaped


def _hand_back(token: int) -> bool:
    """Hand back the work of a lease that is dead, then forget the lease. False if a process that stands still in the
    middle of a transaction has a row of it locked: it holds up its own work alone, and the next call does the rest."""
    is_free = is_done = False
    with passing_by_locks():
        lines = Line.objects.filter(lease=token, state=LineState.RUNNING)
        lost = Least(F("lost_claims") + 1, MOST_LOST_CLAIMS)
        lines.update(state=LineState.PENDING, lease=None, lost_claims=lost)
        # No worker does the step of this batch any more: the tick asks for it at once.
        Batch.objects.filter(lease=token).update(lease=None, nudged_at=None)
        Backend.objects.filter(alone=token).update(alone=None)
        is_free = True
    if is_free:
        with passing_by_locks():
            _forget(token)
            is_done = True
    return is_done


# Drives that stand by for each other


def at_work(backend: int) -> list[int]:
    """The leases of the drives that work on the backend with this id, the oldest first; not those that are silent and
    may be dead.

    A drive of this host whose process is there is slow, and works.
    """
    silent = {lease.pk for lease in _silent(backend) if not _is_here(lease)}
    return [pk for pk in alive(backend) if pk not in silent]


def alive(backend: int) -> list[int]:
    """The leases of the drives that work on the backend with this id, the oldest first, silent ones too."""
    return _ALIVE.of(backend)


_ALIVE = Column(lambda: Lease.objects.alive().filter(backend_id=GIVEN).order_by("pk"))


class Successor:
    """Takes over the work of drives on one backend that fell silent. Call `look` every second."""

    def __init__(self) -> None:
        self._looked_at = float("-inf")
        self._since: dict[tuple[int, datetime | None], float] = {}  # each silence, and when it was seen first

    def look(self, backend: int) -> int:
        """How many drives were taken over: those whose silence lasted since the look before."""
        now = time.monotonic()
        if now > self._looked_at + LOOK_IS_LATE_S:
            self._since.clear()
        self._looked_at = now
        silences = [(lease.pk, lease.silent_at) for lease in _silent(backend) if not _is_here(lease)]
        self._since = {each: self._since.get(each, now) for each in silences}
        lasting = [pk for (pk, _), since in self._since.items() if now >= since + LASTS_AFTER_S]
        taken = [pk for pk in lasting if _end(pk)]
        for pk in taken:
            _hand_back(pk)
        return len(taken)


def _silent(backend: int) -> list[Lease]:
    return list(Lease.objects.filter(backend=backend, silent_at__lte=Now())) if _ANY_SILENT.is_true() else []


_ANY_SILENT = Asked(lambda: Lease.objects.filter(silent_at__lte=Now()))


def _end(pk: int) -> bool:
    """Let the lease expire now, so that it can neither claim nor be renewed. False: it has given a sign of life."""
    return Lease.objects.filter(pk=pk, silent_at__lte=Now()).update(expires_at=Now()) == 1


def _is_here(lease: Lease) -> bool:
    """The process is on this host, and there."""
    return lease.host == _host() and not _is_gone(lease)


def _tokens_without_lease() -> set[int]:
    """Tokens on batches, lines and counts whose lease is gone: a process that stood still until its lease was reaped
    wrote the token afterwards, and was killed."""
    if not WITHOUT_LEASE.is_true():
        return set()
    return {token for held in WITHOUT_LEASE.queries for token in held().values_list("lease_id", flat=True)}


def _held_batches() -> QuerySet[Batch]:
    return Batch.objects.filter(lease__isnull=False)


def _held_lines() -> QuerySet[Line]:
    """By the index of claimed lines, which are few."""
    return Line.objects.filter(lease__isnull=False, state=LineState.RUNNING)


def _without_lease(held: Callable[[], QuerySet[Any]]) -> Callable[[], QuerySet[Any]]:
    return lambda: held().exclude(Exists(Lease.objects.filter(pk=OuterRef("lease_id"))))


# Whether there is anything that a process works on, or that a dead one has left.
HELD = Asked(Lease.objects.all, _held_batches, _held_lines, Counts.objects.all)
WITHOUT_LEASE = Asked(*map(_without_lease, (_held_batches, _held_lines, Counts.objects.all)))


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
