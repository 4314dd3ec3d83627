"""Waits for the network beside what may not wait."""

import threading
import time

import pytest
from django.db import transaction

from batchserver.request_threads import Queue, RequestThreads
from common import waits


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(waits, "EVERY_S", 0.01)


@pytest.fixture
def hanging():
    """Work that waits until the end of the test."""
    released = threading.Event()
    yield lambda: released.wait(20)
    released.set()


class Lost(Exception):
    pass


def times(most):
    """A duty that ends the wait when it is done for the `most`-th time."""
    done = []

    def duty():
        done.append(1)
        if len(done) == most:
            raise Lost

    duty.done = done
    return duty


def test_without_a_duty_the_work_is_done_here():
    assert waits.wait_for(threading.get_ident) == threading.get_ident()


def test_duties_are_done_while_the_work_waits(hanging):
    duty = times(3)
    with waits.meanwhile(duty), pytest.raises(Lost):
        waits.wait_for(hanging)
    assert len(duty.done) == 3


def test_what_the_work_returns_and_raises_comes_back():
    with waits.meanwhile(lambda: None):
        assert waits.wait_for(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            waits.wait_for(lambda: 1 / 0)


def test_inner_duties_are_done_beside_outer_ones_or_instead(hanging):
    outer, inner = times(99), times(2)
    with waits.meanwhile(outer), waits.meanwhile(inner), pytest.raises(Lost):
        waits.wait_for(hanging)
    assert outer.done
    outer, inner = times(99), times(2)
    with waits.meanwhile(outer):
        with waits.meanwhile(inner, alone=True), pytest.raises(Lost):
            waits.wait_for(hanging)
        assert not outer.done
    assert waits.wait_for(threading.get_ident) == threading.get_ident()


def test_a_wait_has_the_end_that_is_set(hanging):
    with waits.meanwhile(lambda: None, most_s=0.05), pytest.raises(TimeoutError):
        waits.wait_for(hanging)


def test_a_duty_that_waits_itself_has_no_duty(hanging):
    seen = []

    def duty():
        seen.append(waits.wait_for(threading.get_ident))
        raise Lost

    with waits.meanwhile(duty), pytest.raises(Lost):
        waits.wait_for(hanging)
    assert seen == [threading.get_ident()]


def test_no_duty_is_done_inside_a_transaction(transactional_db, hanging):
    duty = times(1)
    with waits.meanwhile(duty, most_s=0.1), transaction.atomic(), pytest.raises(TimeoutError):
        waits.wait_for(hanging)
    assert not duty.done


def test_a_request_that_waits_has_no_place(transactional_db):
    """One place, and two requests that wait for each other's work."""
    threads, queue = RequestThreads(places=1, most=4), Queue("any", 1)
    came, go = threading.Event(), threading.Event()

    def slow():
        waits.wait_for(lambda: (came.set(), go.wait(20)))
        return "slow"

    first = threads.submit(queue, slow)
    assert came.wait(20)
    assert threads.submit(queue, lambda: "quick").result(20) == "quick"
    go.set()
    assert first.result(20) == "slow"
    assert threads.submit(queue, time.monotonic).result(20) > 0
    threads.shutdown()
