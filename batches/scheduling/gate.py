"""Whether lines may be sent now, as far as persons and the clock say: the one place that knows what keeps all back.

Failures do not close the gate: a failed request pauses the backend (`Backend.paused_at`) or one model of it.
"""

from datetime import datetime

from django.conf import settings
from django.utils import timezone

from batches.models import Backend, Hold


def closed_reason(backend: Backend) -> str:
    """Why no new line may be sent to this backend now, in a sentence for a person; empty if lines may be sent.

    One query, cheap enough to be made several times a second.
    """
    holds = dict(Hold.objects.all().of(backend).order_by("-created_at").values_list("reason", "created_at"))
    if since := holds.get(Hold.Reason.PAUSED):
        return (
            f"A person paused all batches at {clock(since)}. Resume them in the admin, by manage.py resume or by "
            "POST /v1/batches/resume."
        )
    if until := settings.QUIET_HOURS.ends_at(timezone.now()):
        return f"Quiet hours until {clock(until)} (QUIET_HOURS={settings.QUIET_HOURS.text})."
    if Hold.Reason.PERSON in holds:
        return "A person's request is at the model server; the lines go on after it."
    return ""


def clock(at: datetime) -> str:
    """A moment as the operator reads it, in TIME_ZONE."""
    return f"{timezone.localtime(at):%Y-%m-%d %H:%M} ({settings.TIME_ZONE})"
