"""The part of the time that lines have, whatever persons do: a clock is all that it needs."""

import random

import pytest

from batches.scheduling.share import WINDOW_S, Share

TICK_S = 0.5


def play(share, closed_by, *, seconds, line_s=0.0):
    """When lines ran: for each tick, whether. `closed_by(second)` is None, "person" or "lingering", and a turn is taken
    as a drive takes it. A line that is sent stays at the server for `line_s`."""
    owed, turn, ran, busy_until = Share(share), None, [], 0.0
    for tick in range(int(seconds / TICK_S)):
        now = tick * TICK_S
        by = closed_by(now)
        if turn == "person" or (turn == "lingering" and by == "lingering"):
            by = None
        if by is None:
            busy_until = max(busy_until, now + line_s)
        runs = by is None or now < busy_until
        owed.look(now, runs=runs, waits=by is not None)
        ran.append(runs)
        if turn is not None and owed.owed_s <= 0:
            turn = None
        elif by is not None and owed.is_due(between=by == "lingering"):
            turn = by
    return ran, owed


def least(ran):
    """The smallest part of any ten minutes."""
    size = int(WINDOW_S / TICK_S)
    sums = [0]
    for each in ran:
        sums.append(sums[-1] + each)
    return min(sums[end] - sums[end - size] for end in range(size, len(sums))) / size


def every_8_s(now):
    return "person" if now % 8 < 2 else "lingering"


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.8])
@pytest.mark.parametrize(
    "closed_by",
    [
        lambda now: "person",
        lambda now: "lingering",
        every_8_s,
        lambda now: every_8_s(now) if now > 900 else None,
        lambda now: "person" if now % 40 < 38 else "lingering",
        lambda now: "person" if now % 100 < 99 else None,
        lambda now: random.Random(int(now) // 7).choice(["person", "lingering"]),
    ],
)
def test_any_ten_minutes_have_the_share_and_hardly_more(share, closed_by):
    ran, _ = play(share, closed_by, seconds=2400)
    assert least(ran) >= share - 0.005  # ticks
    tail = ran[len(ran) // 2 :]
    assert sum(tail) / len(tail) <= share * 1.2 + 0.02


def test_gaps_between_requests_are_used_first():
    ran, _ = play(0.25, every_8_s, seconds=1800)
    beside = [each for number, each in enumerate(ran) if every_8_s(number * TICK_S) == "person"]
    assert not any(beside)


def test_a_line_that_runs_longer_than_its_turn_is_counted():
    ran, _ = play(0.25, lambda now: "person", seconds=3600, line_s=60)
    assert least(ran) >= 0.25
    assert sum(ran) / len(ran) < 0.5  # 0.57 if it were not


def test_nothing_is_owed_where_nothing_was_kept_back():
    _, owed = play(0.25, lambda now: None, seconds=1200)
    assert (owed.owed_s, owed.had, owed.is_due(between=True)) == (0, None, False)


def test_none_is_none():
    ran, owed = play(0.0, lambda now: "person", seconds=1200)
    assert not any(ran)
    assert owed.had == 0


def test_what_lines_had_is_told():
    _, owed = play(0.25, every_8_s, seconds=1200)
    assert owed.had == pytest.approx(0.29, abs=0.02)


def test_time_in_which_nobody_looked_does_not_count():
    owed = Share(0.5)
    owed.look(0, runs=False, waits=True)
    owed.look(10_000, runs=False, waits=True)
    assert owed.owed_s < 4
