"""Hours of the day in which no line is sent, by the wall clock of a time zone. Knows neither settings nor rows."""

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTES = 24 * 60
_MINUTE = timedelta(minutes=1)
_RANGE = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)\s*-\s*([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)


class QuietHours:
    """What `07:00-22:00,23:30-00:15` says: from the first minute of each range up to its end, which may be past
    midnight. An empty text means no quiet hours. Raises ValueError on any other text, or if no minute would be left.

    The wall clock counts when clocks are changed: an hour that the clock skips takes no time, and an hour that comes
    twice is either quiet both times or not quiet both times.
    """

    def __init__(self, text: str, zone: ZoneInfo) -> None:
        self.text, self.zone = text, zone
        self._quiet = [False] * MINUTES
        for item in text.split(",") if text.strip() else ():
            fits = _RANGE.fullmatch(item.strip())
            if fits is None:
                raise ValueError(f"{item.strip()!r} is not of the form 07:00-22:00")
            start, end = int(fits[1]) * 60 + int(fits[2]), int(fits[3]) * 60 + int(fits[4])
            if start == end:
                raise ValueError(f"{item.strip()!r} is the whole day")
            for minute in range(start, end if start < end else end + MINUTES):
                self._quiet[minute % MINUTES] = True
        if all(self._quiet):
            raise ValueError("no minute of the day is left")

    def __repr__(self) -> str:
        return f"QuietHours({self.text!r}, {self.zone.key!r})"

    def is_quiet(self, at: datetime) -> bool:
        """Whether the moment `at`, an aware datetime, is in quiet hours."""
        return self._quiet[self._minute(at)]

    def ends_at(self, at: datetime) -> datetime | None:
        """When the quiet hours that `at` is in end, in UTC; None if `at` is in none."""
        return self._next_change(at) if self.is_quiet(at) else None

    def after(self, at: datetime, work: timedelta, *, exact_until: datetime) -> datetime:
        """When `work` has passed since `at`, not counting quiet hours; in UTC.

        Exact up to `exact_until`, change by change. After `exact_until`, whole days are skipped as if no clock were
        changed in them, so that years of work cost no more than a day's: that may be wrong by an open hour or two.
        """
        at = at.astimezone(UTC)  # sums go wrong in a zone whose clocks are changed
        a_day = self._quiet.count(False) * _MINUTE
        while change := self._next_change(at):
            if at > exact_until and (days := -(-work // a_day) - 1) > 0:
                at = (at.astimezone(self.zone) + timedelta(days=days)).astimezone(UTC)  # by the wall clock
                work -= days * a_day
                continue
            if not self.is_quiet(at):
                if at + work <= change:
                    break
                work -= change - at
            at = change
        return at + work

    def _minute(self, at: datetime) -> int:
        local = at.astimezone(self.zone)
        return local.hour * 60 + local.minute

    def _next_change(self, at: datetime) -> datetime | None:
        """The first minute after `at` in which quiet hours begin or end; None if there is none.

        Offsets from UTC are whole minutes (everywhere since 1972), so a minute of the wall clock is one of UTC.
        """
        if not any(self._quiet):
            return None
        quiet = self.is_quiet(at)
        start = at.astimezone(UTC).replace(second=0, microsecond=0)
        minute = self._minute(start)
        length = next(n for n in range(MINUTES) if self._quiet[(minute + n) % MINUTES] is not quiet)
        change = start + length * _MINUTE
        if change.astimezone(self.zone).utcoffset() != start.astimezone(self.zone).utcoffset():
            # The clocks are changed in between: go minute by minute, since they skip some minutes or repeat some.
            change = start + _MINUTE
            while self.is_quiet(change) is quiet:
                change += _MINUTE
        return change
