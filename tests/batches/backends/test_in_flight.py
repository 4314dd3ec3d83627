"""Which calls in flight were computed beside which others, against the plain definition, on random ways of a pool."""

import random

import pytest

from batches.backends.in_flight import Call, InFlight


class Plain:
    """Looks at all calls whenever anything changes."""

    def __init__(self):
        self.calls, self.together, self.shared, self.begun = [], {}, set(), set()

    def add(self, call):
        self.calls.append(call)
        if call.is_light:
            self.begun.add(call)  # it waits for no other
        computing = self.computing
        for each in computing:
            self.together[each] = max(self.together.get(each, 1), len(computing))

    @property
    def computing(self):
        return [each for each in self.calls if not each.is_light]

    def start_clocks(self, running, is_known):
        places = running - sum(each in self.begun for each in self.computing)
        waiting = [each for each in self.computing if each not in self.begun]
        self.begun.update(waiting[: max(0, places)])
        beside = [each for each in self.computing if each in self.begun or not is_known]
        if len(beside) > 1:
            self.shared.update(beside)


@pytest.mark.parametrize("seed", range(20))
def test_each_call_knows_what_was_beside_it(seed):
    chance = random.Random(seed)
    pool, plain, over = InFlight(), Plain(), []
    for _ in range(200):
        pool.running, pool.is_known = chance.randint(1, 8), chance.random() < 0.7
        if chance.random() < 0.55 or not plain.calls:
            call = Call(None, "", {}, 1.0, is_light=chance.random() < 0.1)
            pool.add(call)
            plain.add(call)
        elif chance.random() < 0.05:
            pool.mark_shared()
            plain.shared.update(plain.calls)
        else:
            call = chance.choice(plain.calls)
            over.append(call)
            pool.remove(call)
            plain.calls.remove(call)
        pool.start_clocks()
        plain.start_clocks(pool.running, pool.is_known)
        assert list(pool) == plain.calls
        assert pool.computing == plain.computing
        for each in [*plain.calls, *over[-1:]]:
            assert each.together == plain.together.get(each, 1)
            assert each.was_shared == (each in plain.shared)
            assert (each.running_since is not None) == (each in plain.begun)


def test_a_call_that_ended_before_its_turn_keeps_its_place_and_gets_no_clock():
    pool = InFlight()
    first, second, third = (Call(None, "", {}, 1.0) for _ in range(3))
    for each in (first, second, third):
        pool.add(each)
    pool.start_clocks()
    second.finished = 1.0  # the server computes more at once than was thought
    pool.remove(first)
    pool.start_clocks()
    assert second.running_since is None
    assert third.running_since is None
    pool.remove(second)
    pool.start_clocks()
    assert third.running_since is not None
