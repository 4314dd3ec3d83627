"""Calls in flight, against a real socket: how long they took, and that one that was cut leaves nothing behind."""

import time

import pytest

from batches import backends, registry
from batches.backends.calls import Call
from batches.backends.replies import Verdict
from tests.conftest import CHAT, line
from tests.fake_backend import Action
from tests.stack import eventually


@pytest.fixture
def pool(db, backend):
    pool = backends.open_calls(registry.report_backend().kind)
    yield pool
    pool.close()


def call(text, timeout_s=10.0):
    return Call(None, CHAT, line(text)["body"], timeout_s)


def finished(pool, call):
    while call in pool.in_flight:
        pool.wait(0.1)
    return call


def test_a_call_that_ended_before_it_was_its_turn_took_no_negative_time(pool, backend):
    backend.on("first", Action(delay_s=1.0))
    first, second = call("first"), call("second")
    pool.submit(first)
    pool.submit(second)  # behind it, as far as is known
    eventually(lambda: second.finished, within_s=5)
    pool.running = 2  # the window has grown meanwhile
    time.sleep(0.1)
    pool.submit(call("third"))
    for each in (first, second):
        assert finished(pool, each).verdict is Verdict.ANSWERED
    assert 0 < second.duration_s < first.duration_s


def test_a_question_after_a_call_that_was_cut_is_asked(pool, backend):
    backend.on("long", Action(hang=True))
    long = call("long")
    pool.submit(long)
    eventually(lambda: backend.seen, within_s=5)
    pool.cut(long)
    assert finished(pool, long).verdict is Verdict.CUT
    # By the same thread, over a new connection, and with a GET.
    question = Call(None, "", {}, 5.0, lambda ask: ask("/v1/models", None))
    pool.submit(question)
    assert finished(pool, question).verdict is Verdict.ANSWERED
    assert question.result[0] == 200
