"""Quiet hours: the wall clock decides, on the days too when it is changed."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from django.conf import settings as configured
from hypothesis import given, settings
from hypothesis import strategies as st

from batches.scheduling.quiet_hours import MINUTES, QuietHours
from tests.stack import ROOT

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = timedelta(minutes=1)
# Each family of rules once, and the odd ones: half an hour of summer time, no clock change, a day that was left out.
ODD = ["Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kathmandu", "America/New_York", "Pacific/Apia", "UTC"]


def at(text, zone=BERLIN, fold=0):
    # In UTC, as two zones' times in an hour that comes twice are never equal.
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).astimezone(UTC)


def clock(minute):
    return f"{minute // 60:02}:{minute % 60:02}"


def in_ranges(local, ranges):
    """By the text itself: is this wall clock inside one of the ranges?"""
    minute = local.hour * 60 + local.minute
    return any(start <= minute < end if start < end else minute >= start or minute < end for start, end in ranges)


def days_of_change(zone):
    """A UTC midnight before each change of this zone's clocks."""
    days = [datetime(1975, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(62 * 365)]
    return [
        day for day, after in pairwise(days) if day.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset()
    ]


minutes = st.integers(0, MINUTES - 1)
ranges = st.lists(st.tuples(minutes, minutes).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=3)
# A zone and a moment: any, or on a day on which its clocks are changed.
CHANGES = [(name, day) for name in ODD for day in days_of_change(ZoneInfo(name))]
any_day = st.tuples(
    st.sampled_from(sorted(available_timezones())),
    st.integers(5 * 365, 67 * 365).map(lambda day: datetime.fromtimestamp(day * 86400, UTC)),
)
moments = st.tuples(st.sampled_from(CHANGES) | any_day, st.integers(-12 * 3600, 30 * 3600)).map(
    lambda each: (each[0][0], each[0][1] + timedelta(seconds=each[1]))
)


@pytest.mark.parametrize(
    ("text", "when", "until"),
    [
        ("07:00-22:00", "2026-02-03 06:59:59", None),
        ("07:00-22:00", "2026-02-03 07:00", "2026-02-03 22:00"),
        ("07:00-22:00", "2026-02-03 21:59:59.9", "2026-02-03 22:00"),
        ("07:00-22:00", "2026-02-03 22:00", None),
        ("22:00-7:30", "2026-02-03 23:10", "2026-02-04 07:30"),
        ("22:00-7:30", "2026-02-03 00:00", "2026-02-03 07:30"),
        ("22:00-7:30", "2026-02-03 12:00", None),
        (" 08:00 - 12:00 , 13:00-18:00", "2026-02-03 12:30", None),
        ("08:00-12:00,13:00-18:00", "2026-02-03 17:00", "2026-02-03 18:00"),
        ("08:00-13:00,12:00-18:00", "2026-02-03 08:30", "2026-02-03 18:00"),
        ("20:00-00:00,00:00-06:00", "2026-02-03 21:00", "2026-02-04 06:00"),
        # Summer time begins: 02:00 is 03:00.
        ("01:00-02:30", "2026-03-29 01:30", "2026-03-29 03:00"),
        ("01:00-04:00", "2026-03-29 01:30", "2026-03-29 04:00"),
        # The only hour that is left does not come on that day.
        ("03:00-02:00", "2026-03-28 23:00", "2026-03-30 02:00"),
        ("", "2026-02-03 12:00", None),
    ],
)
def test_they_end_when_the_wall_clock_says_so(text, when, until):
    hours = QuietHours(text, BERLIN)
    assert hours.is_quiet(at(when)) is (until is not None)
    assert hours.ends_at(at(when)) == (until and at(until))


def test_an_hour_that_comes_twice_is_quiet_twice():
    hours = QuietHours("01:00-02:30", BERLIN)
    assert hours.ends_at(at("2026-10-25 01:30")) == at("2026-10-25 02:30")
    assert not hours.is_quiet(at("2026-10-25 02:45"))
    assert hours.ends_at(at("2026-10-25 02:15", fold=1)) == at("2026-10-25 02:30", fold=1)


@settings(derandomize=True, deadline=None)
@given(ranges, moments)
def test_the_end_is_the_first_moment_that_is_not_quiet(pairs, moment):
    zone, when = moment
    try:
        hours = QuietHours(",".join(f"{clock(start)}-{clock(end)}" for start, end in pairs), ZoneInfo(zone))
    except ValueError:
        return  # together they are the whole day
    assert hours.is_quiet(when) is in_ranges(when.astimezone(ZoneInfo(zone)), pairs)
    end = hours.ends_at(when)
    if end is None:
        assert not hours.is_quiet(when)
        return
    assert end > when
    assert not in_ranges(end.astimezone(ZoneInfo(zone)), pairs)
    passing = when
    while passing < end:
        assert in_ranges(passing.astimezone(ZoneInfo(zone)), pairs), passing
        passing += MINUTE
    assert in_ranges((end - timedelta(microseconds=1)).astimezone(ZoneInfo(zone)), pairs)


@settings(derandomize=True, deadline=None, max_examples=settings().max_examples // 2)
@given(ranges, moments, st.integers(0, 3 * MINUTES))
def test_work_is_done_between_them(pairs, moment, work):
    zone, when = moment
    try:
        hours = QuietHours(",".join(f"{clock(start)}-{clock(end)}" for start, end in pairs), ZoneInfo(zone))
    except ValueError:
        return
    when = when.replace(second=0)
    end = hours.after(when.astimezone(ZoneInfo(zone)), work * MINUTE, exact_until=when + timedelta(days=20))
    open_minutes, passing = 0, when
    while passing < end and open_minutes <= work and passing < when + timedelta(days=20):
        open_minutes += not hours.is_quiet(passing)
        passing += MINUTE
    if passing == end:  # few open minutes in a day make it a long way
        assert open_minutes == work


class CountingZone(tzinfo):
    """Berlin, and how often it was asked what its clocks show."""

    def __init__(self):
        self.asked = 0

    def utcoffset(self, when):
        return BERLIN.utcoffset(when)

    def dst(self, when):
        return BERLIN.dst(when)

    def fromutc(self, when):
        self.asked += 1
        return BERLIN.fromutc(when.replace(tzinfo=BERLIN)).replace(tzinfo=self)


@pytest.mark.parametrize("years", [1, 100, 3000])
def test_years_of_work_are_told_without_going_through_their_days(years):
    zone = CountingZone()
    hours = QuietHours("07:00-22:00,23:30-00:15", zone)
    start = at("2026-02-03 12:00")
    # 8 hours and a quarter of each day are left.
    work = years * 365 * timedelta(hours=8, minutes=15)
    end = hours.after(start, work, exact_until=start + timedelta(days=30))
    assert zone.asked < 1000
    assert abs(end - (start + years * 365 * timedelta(days=1))) < timedelta(days=1)


def test_the_end_is_exact_up_to_the_limit():
    hours = QuietHours("07:00-22:00", BERLIN)
    start = at("2026-03-27 22:00")
    limit = at("2026-03-30 06:00")
    # Of these nights the second is an hour short: summer time begins.
    exact = [hours.after(start, n * timedelta(hours=1), exact_until=limit) for n in range(1, 26)]
    assert exact[:3] == [at("2026-03-27 23:00"), at("2026-03-28 00:00"), at("2026-03-28 01:00")]
    assert exact[16] == at("2026-03-29 07:00")
    assert exact[24] == at("2026-03-30 06:00")


# With a minute a day the exact way goes through 2,000 days each time: fewer steps say as much.
@pytest.mark.parametrize(
    ("text", "step"), [("07:00-22:00", 97), ("22:00-07:00,12:00-13:00", 97), ("00:00-23:59", 1709)]
)
def test_days_that_are_skipped_change_no_end_where_no_clock_is_changed(text, step):
    hours, start = QuietHours(text, ZoneInfo("UTC")), datetime(2026, 2, 3, 5, 20, tzinfo=UTC)
    for work in range(0, 20_000, step):
        exact = hours.after(start, work * MINUTE / 10, exact_until=datetime.max.replace(tzinfo=UTC))
        assert hours.after(start, work * MINUTE / 10, exact_until=start) == exact


@pytest.mark.parametrize("days", [60, 200, 1000])
def test_clocks_that_are_changed_in_them_make_an_hour_or_two(days):
    hours, start = QuietHours("07:00-22:00,23:30-00:15", BERLIN), at("2026-02-03 12:00")
    exact = hours.after(start, days * timedelta(hours=7), exact_until=datetime.max.replace(tzinfo=UTC))
    skipped = hours.after(start, days * timedelta(hours=7), exact_until=start)
    assert abs(skipped - exact) <= timedelta(hours=2)


@pytest.mark.parametrize(
    "text",
    ["7-22", "07:00", "07:00-24:00", "07:60-08:00", "07:00-22:00,", "09:00-09:00", "00:00-12:00,12:00-00:00", "x"],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"not of the form|whole day|no minute"):
        QuietHours(text, BERLIN)


def setting(name, **environment):
    """What settings.py says, in a process of its own."""
    program = f"from batchserver import settings as s; print(s.{name})"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"DATA_DIR": str(configured.DATA_DIR)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.usefixtures("processes")
def test_the_settings_are_read():
    asked = setting("QUIET_HOURS", QUIET_HOURS=" 07:00-22:00 ", TIME_ZONE="Asia/Tokyo")
    assert asked.stdout == "QuietHours('07:00-22:00', 'Asia/Tokyo')\n"


@pytest.mark.usefixtures("processes")
def test_the_time_zone_is_the_machines_own_unless_one_is_named():
    assert setting("TIME_ZONE", TZ="America/Lima").stdout == "America/Lima\n"
    assert setting("TIME_ZONE", TZ="America/Lima", TIME_ZONE="Asia/Tokyo").stdout == "Asia/Tokyo\n"
    assert ZoneInfo(setting("TIME_ZONE", TZ="EST5EDT,M3.2.0,M11.1.0").stdout.strip())  # no name: the machine's files


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"QUIET_HOURS": "9-17"}, "QUIET_HOURS='9-17': '9-17' is not of the form 07:00-22:00. Expected hours"),
        ({"QUIET_HOURS": "09:00-09:00"}, "'09:00-09:00' is the whole day"),
        ({"TIME_ZONE": "Berlin"}, "TIME_ZONE='Berlin': expected a time zone's IANA name, such as Europe/Berlin."),
        ({"TIME_ZONE": "Europe"}, "TIME_ZONE='Europe': expected"),
        ({"TIME_ZONE": "../etc/passwd"}, "TIME_ZONE='../etc/passwd': expected"),
    ],
)
@pytest.mark.usefixtures("processes")
def test_values_that_cannot_be_used_say_what_can(environment, told):
    refused = setting("TIME_ZONE", **environment)
    assert refused.returncode == 1
    assert "ImproperlyConfigured" in refused.stderr
    assert told in refused.stderr
