"""Ticks of the control worker, run when a test asks for one."""

from django.utils import timezone

from batches import registry, tasks
from batches.models import Backend, Pulse


def tick():
    """A tick that is due, whenever the last one was; some worker reported its backend before."""
    registry.own_backend()
    Backend.objects.update(worker_seen_at=timezone.now())
    Pulse.objects.all().delete()
    tasks.tick()


def next_tick():
    Pulse.objects.filter(pk__in=["tick", "sweep"]).delete()
    tasks.tick()
