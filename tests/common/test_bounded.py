"""Questions that may hang are asked with an end to the wait."""

import threading
import time

import pytest
from django.db import InterfaceError

from common import bounded
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


def test_a_thread_that_cannot_be_started_is_no_answer_in_time_and_is_tried_again(monkeypatch):
    asking = Bounded(lambda: 7, within_s=5)

    def fail(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        for _ in range(2):
            with pytest.raises(TimeoutError, match="can't start new thread"):
                asking.ask()
    assert asking.ask() == 7


@pytest.mark.parametrize("error", [InterfaceError("gone"), OSError("gone"), ValueError("gone")])
def test_a_connection_that_cannot_be_closed_changes_no_answer(monkeypatch, error):
    class Broken:
        def close_all(self):
            raise error

    monkeypatch.setattr(bounded, "connections", Broken())
    asking = Bounded(lambda: 7, within_s=5)
    assert [asking.ask(), asking.ask()] == [7, 7]
    with pytest.raises(ZeroDivisionError):
        Bounded(lambda: 1 // 0, within_s=5).ask()


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_what_would_end_a_process_ends_only_the_question(error):
    answers = [error, 7]

    def work():
        answer = answers.pop(0)
        if answer is error:
            raise error
        return answer

    asking = Bounded(work, within_s=5)
    with pytest.raises(RuntimeError, match=type(error).__name__):
        asking.ask()
    assert asking.ask() == 7
