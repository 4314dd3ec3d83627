"""Hosts whose workers take no work now, and why, for whoever asks how the server is. Each worker says it for itself."""

import socket
from datetime import timedelta

from batches.models import Pulse
from common.database import from_now

PREFIX = "held: "
# A worker says it again more often than this while it takes no work.
FORGOTTEN_AFTER = timedelta(minutes=1)


def hold(reason: str) -> None:
    """This host takes no work, for this reason: a sentence for a person. Call it again while that lasts."""
    Pulse.stamp(_name(), error=reason)


def release() -> None:
    """This host takes work. Safe to call at any time."""
    Pulse.objects.filter(pk=_name()).delete()


def held() -> dict[str, str]:
    """Hosts that take no work, by name, and why."""
    rows = Pulse.objects.filter(pk__startswith=PREFIX, at__gt=from_now(-FORGOTTEN_AFTER)).order_by("pk")
    return {name.removeprefix(PREFIX): reason for name, reason in rows.values_list("pk", "error")}


def troubles() -> list[str]:
    """The same in sentences for a person."""
    return [f"{name} takes no work. {reason}" for name, reason in held().items()]


def _name() -> str:
    return f"{PREFIX}{socket.gethostname()}"[: Pulse._meta.get_field("name").max_length]
