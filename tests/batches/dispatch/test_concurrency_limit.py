"""How many calls are in flight: as many as pay, fewer at once when the backend has too many."""

import pytest

from batches.backends.calls import Call
from batches.backends.replies import Reply, Usage, Verdict
from batches.dispatch.concurrency_limit import MEASURE_S, ConcurrencyLimit, portion
from tests.fake_backend import MODEL


def call(verdict=Verdict.ANSWERED, *, tokens=100, started=0.0, timed_out=False):
    reply = Reply(verdict, usage=Usage(output_tokens=tokens))
    return Call(None, "", {}, 0.0, started=started, timed_out=timed_out, reply=reply)


class Server:
    """Computes so many calls at once, each at the same speed."""

    def __init__(self, window, slots):
        self.window, self.slots, self.now = window, slots, 0.0

    def run(self, seconds, *, is_full=True):
        """The window's size after each second."""
        sizes = []
        for _ in range(seconds):
            self.now += 1
            for _ in range(10 * min(self.window.size, self.slots)):
                self.window.note(call(started=self.now), MODEL, self.now)
            self.window.look(self.now, is_full=is_full)
            sizes.append(self.window.size)
        return sizes


def test_it_is_one_more_than_the_backend_serves_at_once():
    assert ConcurrencyLimit(4, most=64).size == 5
    assert ConcurrencyLimit(None, most=64).size == 2


def test_what_is_known_is_not_exceeded():
    server = Server(ConcurrencyLimit(4, most=64), slots=64)
    assert set(server.run(300)) == {5}


@pytest.mark.parametrize(("slots", "least", "most"), [(8, 8, 12), (100, 60, 64)])
def test_it_grows_while_that_pays(slots, least, most):
    server = Server(ConcurrencyLimit(None, most=64), slots)
    server.run(600)
    assert least <= min(server.run(60))
    assert server.window.size <= most * 1.5


def test_a_server_of_one_call_at_a_time_keeps_two_nearly_always():
    server = Server(ConcurrencyLimit(None, most=9), slots=1)
    sizes = server.run(1800)
    assert max(sizes) == 3
    assert sizes.count(2) / len(sizes) > 0.9
    assert server.window.running == 1


def test_it_learns_nothing_while_there_is_little_to_send():
    server = Server(ConcurrencyLimit(None, most=64), slots=64)
    assert set(server.run(300, is_full=False)) == {2}


@pytest.mark.parametrize("failed", [{"verdict": Verdict.BUSY}, {"verdict": Verdict.FAILED, "timed_out": True}])
def test_it_shrinks_once_for_calls_that_fail_together_and_comes_back(failed):
    window = ConcurrencyLimit(15, most=64)
    for _ in range(16):
        window.note(call(started=1.0, **failed), MODEL, 10.0)
    assert window.size == 8
    for _ in range(16):
        window.note(call(started=11.0, **failed), MODEL, 20.0)
    assert window.size == 4
    server = Server(window, slots=64)
    server.now = 20.0
    server.run(int(MEASURE_S + 2) * 13)
    assert window.size == 16


def test_it_is_never_less_than_one():
    window = ConcurrencyLimit(None, most=9)
    for now in range(0, 600, 10):
        window.note(call(Verdict.BUSY, started=now), MODEL, now + 6)
    assert window.size == 1


def test_what_another_drive_found_counts():
    window = ConcurrencyLimit(None, most=9)
    window.adopt(6)
    assert window.size == 6
    assert ConcurrencyLimit(None, most=9, size=6).size == 6
    assert ConcurrencyLimit(None, most=9, size=60).size == 9
    assert ConcurrencyLimit(2, most=9, size=60).size == 3  # what is known wins
    known = ConcurrencyLimit(2, most=9)
    known.adopt(60)
    assert known.size == 3


def test_drives_share_it():
    assert [portion(5, [7, 8, 9], own) for own in (7, 8, 9)] == [2, 2, 1]
    assert [portion(2, [7, 8, 9], own) for own in (7, 8, 9)] == [1, 1, 1]
    assert portion(2, [7], 7) == 2
    assert portion(4, [], 7) == 4
