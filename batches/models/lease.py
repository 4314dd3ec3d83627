"""Lease and Pulse: which process may work on something, and when a recurring duty is due."""

from datetime import timedelta
from functools import cache

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from common import database
from common.database import GIVEN, Asked, Change, from_now


class LeaseQuerySet(models.QuerySet["Lease"]):
    def alive(self) -> "LeaseQuerySet":
        """What these leases were given for is still their own."""
        return self.filter(expires_at__gt=Now())


class Lease(models.Model):
    """The right of one process to work on something, until `expires_at` by the database's clock.

    Its id is the fencing token: never used twice (AUTOINCREMENT), named by every write that the right allows.
    `host`, `pid` and `started` tell other processes on the same host whether the process is still there.
    """

    purpose = models.CharField(max_length=32)
    host = models.CharField(max_length=128)
    pid = models.IntegerField()
    started = models.CharField(max_length=32)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    silent_at = models.DateTimeField(
        null=True, help_text="From then on another drive may begin in its place, unless it gives a sign of life."
    )
    backend = models.ForeignKey(
        "Backend", models.DO_NOTHING, db_constraint=False, db_index=False, null=True, related_name="leases"
    )
    stands_by = models.BooleanField(
        default=False, help_text="A drive with nothing in flight, which sends nothing while another is `alone`."
    )
    in_flight = models.PositiveIntegerField(default=0, help_text="A drive's calls, as it last said.")

    objects = LeaseQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.purpose} by {self.pid} on {self.host}"


class Pulse(models.Model):
    """When a duty that many processes share was last done: one row, moved by the first process."""

    name = models.CharField(primary_key=True, max_length=64)
    at = models.DateTimeField()
    error = models.TextField(default="", help_text="What went wrong then, for a person; empty: nothing.")

    def __str__(self) -> str:
        return self.name

    @classmethod
    def due(cls, name: str, every: timedelta) -> bool:
        """True for one caller in each `every`, by the database's clock. The duty is that caller's."""
        if cls.is_recent(name, every):
            return False  # as a rule; without waiting for whoever writes
        if _begun(name, every).make():
            return True
        _, created = cls.objects.get_or_create(pk=name, defaults={"at": database.now()})
        return created

    @classmethod
    def is_recent(cls, name: str, every: timedelta) -> bool:
        """Whether the duty was last done less than `every` ago, so that it is due for nobody."""
        return _done_within(name, every).is_true()

    @classmethod
    def stamp(cls, name: str, *, error: str = "") -> str:
        """Note that it was done just now, with this `error`; returns the error of the time before."""
        if not error and _DONE_WELL_AGAIN.make(name):
            return ""  # as a rule
        before = cls.objects.filter(pk=name).values_list("error", flat=True).first()
        now = {"at": database.now(), "error": error}
        if not cls.objects.filter(pk=name).update(**now):
            cls.objects.update_or_create(pk=name, defaults=now)
        return before or ""


@cache
def _done_within(name: str, every: timedelta) -> Asked:
    return Asked(lambda: Pulse.objects.filter(pk=name, at__gt=from_now(-every), at__lte=Now()))


@cache
def _begun(name: str, every: timedelta) -> Change:
    long_ago = Q(at__lte=from_now(-every)) | Q(at__gt=Now())
    return Change(lambda: Pulse.objects.filter(long_ago, pk=name), at=Now())


_DONE_WELL_AGAIN = Change(lambda: Pulse.objects.filter(pk=GIVEN, error=""), at=Now())
