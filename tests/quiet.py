"""Quiet hours that last now."""

from datetime import timedelta
from zoneinfo import ZoneInfo

from django.utils import timezone

from batches.scheduling.quiet_hours import QuietHours


def quiet_now(settings):
    """Quiet from an hour ago until in an hour; when that is."""
    zone = ZoneInfo(settings.TIME_ZONE)
    start, end = (timezone.now().astimezone(zone) + timedelta(hours=hours) for hours in (-1, 1))
    settings.QUIET_HOURS = QuietHours(f"{start:%H:%M}-{end:%H:%M}", zone)
    return end
