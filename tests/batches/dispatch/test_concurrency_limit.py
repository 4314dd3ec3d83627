"""How many calls are in flight: as many as pay, fewer at once when the backend has too many."""

import pytest

from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Usage, Verdict
from batches.backends.states import Occupancy
from batches.dispatch.concurrency_limit import FIRST_REST_S, MEASURE_S, ConcurrencyLimit, portion
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


@pytest.mark.slow
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


# A server that tells how busy it is


class Vllm:
    """Computes so many of the calls in flight at once, and says so; its cache has room for `holds` of them."""

    def __init__(self, limit, seqs, *, holds=10_000, underway=0):
        self.limit, self.seqs, self.holds, self.underway, self.now = limit, seqs, holds, underway, 0.0

    def look(self, times=1):
        """The limit after each second."""
        sizes = []
        for _ in range(times):
            self.now += 1
            arrived = max(0, self.limit.size - self.underway)
            running = min(arrived, self.seqs)
            self.limit.note_occupancy(Occupancy(running, arrived - running, running / self.holds), self.now)
            self.limit.look(self.now, is_full=True)
            sizes.append(self.limit.size)
        return sizes


def test_it_begins_with_many_calls_if_the_server_tells_how_busy_it_is():
    limit = ConcurrencyLimit(None, most=256)
    assert (limit.size, limit.is_told) == (2, False)
    assert Vllm(limit, seqs=1000).look() == [64]
    assert limit.is_told
    assert Vllm(ConcurrencyLimit(None, most=32), seqs=1000).look() == [32]
    assert Vllm(ConcurrencyLimit(None, most=256, size=200), seqs=200).look() == [200]  # learned by another drive


@pytest.mark.parametrize(
    ("server", "size"),
    [
        ({"seqs": 1000}, 256),
        ({"seqs": 1000, "holds": 130}, 130),  # no more than the cache has room for
        ({"seqs": 1000, "holds": 64}, 64),
        ({"seqs": 110}, 144),  # as soon as one waits, the server has enough
        ({"seqs": 64}, 96),
        ({"seqs": 40}, 64),
        ({"seqs": 1000, "underway": 30}, 64),  # it computes all that arrives, so something else is too slow
        ({"seqs": 20}, 40),  # one waits for each that is computed
        ({"seqs": 3}, 16),
    ],
)
def test_it_follows_what_the_server_tells_and_stays_there(server, size):
    limit = ConcurrencyLimit(None, most=256)
    vllm = Vllm(limit, **server)
    vllm.look(30)
    assert set(vllm.look(300)) == {size}


def test_calls_that_wait_for_a_moment_change_nothing():
    limit = ConcurrencyLimit(None, most=256)
    for now in range(100):
        limit.note_occupancy(Occupancy(4, 60) if now % 3 else Occupancy(60, 4), float(now))
        assert limit.size == 64


def test_it_grows_to_what_the_cache_holds_of_the_longest_calls_however_full_it_says_to_be():
    limit = ConcurrencyLimit(None, most=256)
    for now in range(10):
        limit.note_occupancy(Occupancy(limit.size, 0, 1.0, 100.5), float(now))
    assert limit.size == 100


def test_a_server_that_refuses_gets_fewer_calls_and_no_more_at_once():
    limit = ConcurrencyLimit(None, most=256)
    vllm = Vllm(limit, seqs=1000)
    vllm.look()
    limit.note(call(Verdict.BUSY, started=vllm.now), MODEL, vllm.now)
    assert limit.size == 32
    assert set(vllm.look(int(FIRST_REST_S) - 1)) == {32}
    assert vllm.look(3)[-1] >= 48


def test_what_the_server_tells_does_not_matter_if_its_slots_are_known():
    limit = ConcurrencyLimit(4, most=256)
    assert set(Vllm(limit, seqs=1000).look(30)) == {5}
    limit.know(None)
    assert Vllm(limit, seqs=1000).look(2)[-1] >= 64
    limit.know(2)
    assert set(Vllm(limit, seqs=1000).look(30)) == {3}


@pytest.mark.slow
def test_if_the_server_tells_no_more_the_limit_is_measured_again():
    limit = ConcurrencyLimit(None, most=256)
    Vllm(limit, seqs=64).look(5)
    limit.note_occupancy(None, 10.0)
    server = Server(limit, slots=200)
    server.run(600)
    assert limit.size > 128


def test_calls_that_the_server_has_not_begun_are_those_that_it_tells():
    limit = ConcurrencyLimit(None, most=256)
    limit.note_occupancy(Occupancy(0, 0), 0.0)
    limit.note_occupancy(Occupancy(50, 14), 1.0)
    assert limit.running == 50
    limit.note_occupancy(Occupancy(50, 500), 2.0)  # those of others too
    assert limit.running == 1


def test_slots_that_are_not_counted_are_not_found_by_trying():
    server = Server(ConcurrencyLimit(None, most=9, cache_is_by_slot=True), slots=9)
    assert set(server.run(600)) == {2}
