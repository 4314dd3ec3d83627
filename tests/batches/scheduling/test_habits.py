"""For how long a person is waited for, by how soon that person came back until now."""

import pytest

from batches.scheduling import habits
from batches.scheduling.habits import Habits


def after(gaps, *, most_s=10.0, took_s=2.0):
    """The hold after a request of someone who stayed away for these seconds before each earlier one."""
    known, now = Habits(), 100.0
    for gap in [0.0, *gaps]:
        now += gap
        known.came("a", now)
        now += took_s
        known.left("a", now)
    return known.hold_s("a", most_s)


@pytest.mark.parametrize(
    ("gaps", "hold_s"),
    [
        ([], 10),  # nobody knows
        ([0.1] * 3, 1),  # a program that asks on and on
        ([2, 2, 2], 3),
        ([6], 9),
        ([8, 8, 8], 10),  # no longer than INTERACTIVE_HOLD_S
        ([30], 1),  # a hold would be over before
        ([30, 60, 40, 5], 1),
        ([5, 4, 60, 5], 7.5),  # mostly soon
        ([100] * 20 + [2] * 8, 3),  # what was long ago does not count
    ],
)
def test_a_hold_is_as_long_as_it_is_of_use(gaps, hold_s):
    assert after(gaps) == hold_s


@pytest.mark.parametrize("gaps", [[], [0.1], [5], [100]])
@pytest.mark.parametrize("most_s", [0.0, 0.5])
def test_the_setting_is_the_most(gaps, most_s):
    assert after(gaps, most_s=most_s) <= most_s


def test_each_person_has_own_habits():
    known = Habits()
    for who, gap in (("a", 2), ("b", 50)):
        known.came(who, 0)
        known.left(who, 1)
        known.came(who, 1 + gap)
        known.left(who, 2 + gap)
    assert [known.hold_s(who, 10) for who in "abc"] == [3, 1, 10]


def test_requests_beside_each_other_leave_no_gap():
    known = Habits()
    for now in (0, 1, 2):
        known.came("a", now)
    known.left("a", 3)
    known.left("a", 4)
    known.came("a", 6)
    assert known.hold_s("a", 10) == 3  # since the last one ended


def test_a_request_that_was_refused_tells_nothing():
    known = Habits()
    for now in range(0, 100, 8):
        known.came("a", now)
    assert known.hold_s("a", 10) == 10


def test_those_who_asked_last_are_remembered(monkeypatch):
    monkeypatch.setattr(habits, "MOST_PERSONS", 2)
    known = Habits()
    for who in "abca":
        known.came(who, 0)
        known.left(who, 1)
    for who in "abc":
        known.came(who, 3)
        known.left(who, 3)
    assert len(known._persons) == 2
