"""When a drive asks the database for lines, and for how many."""

import time

import pytest

from batches import leases, registry
from batches.dispatch import line_buffer
from batches.dispatch.line_buffer import LineBuffer
from batches.models import Line, LineState
from tests.conftest import line


def test_lines_that_it_handed_back_are_claimed_again_once_it_asks_for_more(create, work):
    """As when a person came and went: what is in its hands is all there is, until it gives it back."""
    work.validate(create([line("a"), line("b")])["id"])
    lines = LineBuffer(registry.own_backend(), leases.acquire("drive"))
    for _ in range(3):
        lines.refill(4, [])
    assert [each.custom_id for each in lines] == ["a", "b"]
    lines.hand_back()
    lines.refill(4, [])
    assert [each.custom_id for each in lines] == ["a", "b"]


@pytest.fixture
def buffer(create, work):
    """Of a drive with four lanes, on a batch of 100 lines."""
    work.validate(create([line(f"id-{number}") for number in range(100)])["id"])
    lines = LineBuffer(registry.own_backend(), leases.acquire("drive"))
    lines.use_lanes(4)
    return lines


def send(lines, count, *, takes_s=0.0):
    """Send so many lines, and have them answered at one moment."""
    sent = [lines.take() for _ in range(count)]
    time.sleep(takes_s)
    for each in sent:
        lines.done(each)
    lines.answered(count)


def test_slow_answers_that_come_at_one_moment_keep_few_lines_from_other_drives(buffer, monkeypatch):
    """Four slots that began together end together. At the end of a batch other drives have nothing to do while one of
    them has lines for minutes."""
    monkeypatch.setattr(line_buffer, "CLAIM_FOR_S", 0.05)  # and they take as long
    buffer.refill(5, [])
    assert len(buffer) == 4
    send(buffer, 4, takes_s=0.05)
    buffer.refill(5, [])
    assert len(buffer) == 4
    assert Line.objects.filter(state=LineState.RUNNING).count() == 8  # nothing is stored here


def test_a_head_that_was_told_before_the_lanes_changed_is_sent_once(buffer):
    buffer.refill(5, [])
    told = buffer.head
    buffer.use_lanes(1)
    sent = [buffer.take().custom_id for _ in range(4)]
    assert sorted(sent) == sorted({*sent, told.custom_id})
    assert not len(buffer)


def test_who_answers_fast_claims_many_lines_at_once(buffer, monkeypatch):
    """At most four times as many each time: a few fast answers do not say that all will be."""
    monkeypatch.setattr(line_buffer, "CLAIM_FOR_S", 1000.0)
    buffer.refill(5, [])
    claimed = []
    for _ in range(2):
        send(buffer, 4)
        buffer.refill(5, [])
        claimed.append(len(buffer))
    assert claimed == [16, 32]


def test_answers_that_came_long_ago_do_not_count(buffer, monkeypatch):
    monkeypatch.setattr(line_buffer, "CLAIM_FOR_S", 0.01)
    buffer.refill(5, [])
    buffer.answered(60)
    send(buffer, 4, takes_s=0.02)
    buffer.refill(5, [])
    assert len(buffer) == 4
