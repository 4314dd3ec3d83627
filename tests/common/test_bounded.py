"""Questions that may hang are asked with an end to the wait."""

import threading
import time

import pytest

from common.bounded import Bounded


def test_it_gives_the_answer_or_the_error():
    assert Bounded(lambda: 7, within_s=5).ask() == 7
    with pytest.raises(ZeroDivisionError):
        Bounded(lambda: 1 // 0, within_s=5).ask()


def test_a_question_that_hangs_keeps_one_thread_and_nobody_for_long():
    end, asked = threading.Event(), []

    def hang() -> str:
        asked.append(1)
        end.wait(60)
        return "late"

    hanging = Bounded(hang, within_s=0.05)
    started = time.monotonic()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            hanging.ask()
    assert time.monotonic() - started < 5
    assert len(asked) == 1

    answer = hanging.begin()  # of the question that hangs
    end.set()
    for thread in threading.enumerate():
        if thread.name == "bounded":
            thread.join(10)
    assert answer() == "late"
    assert hanging.ask() == "late"
    assert len(asked) == 2
