"""Lines that begin alike meet in one lane, and no lane is idle while lines wait."""

from itertools import pairwise

import pytest

from batches.dispatch.lanes import Lane, Waiting, begin_alike, choose, look_ahead
from batches.lines import prompt
from batches.models import Line


def key(header):
    body = {"messages": [{"role": "system", "content": header * 400}]}
    return prompt.order_key("/v1/chat/completions", body)


def lines(*headers):
    """Lines in the order in which they are sent."""
    made = [Line(pk=number, number=number, order_key=key(header)) for number, header in enumerate(headers, 1)]
    return sorted(made, key=lambda each: (each.order_key, each.number))


def as_numbered(*headers):
    return sorted(lines(*headers), key=lambda each: each.number)


def as_read(lines):
    return [Waiting.of(each.pk, each.order_key, each.number) for each in lines]


def step(waiting, lanes, size):
    """One claim; the headers that each lane got, and what is left."""
    chosen = choose(as_read(waiting), lanes, size)
    by_pk = {each.pk: each for each in waiting}
    got = [[by_pk.pop(each.pk) for each in share] for share in chosen]
    for lane, share in zip(lanes, got, strict=True):
        lane.add(share)
    return [each for each in waiting if each.pk in by_pk], got


def play(waiting, lanes, size):
    """Claim and send, a line of each lane in turn, until nothing is left; the lines that each lane sent."""
    sent = [[] for _ in lanes]
    while waiting or any(lane.ready for lane in lanes):
        waiting, _ = step(waiting, lanes, size)
        for lane, mine in zip(lanes, sent, strict=True):
            if lane.ready:
                mine.append(lane.ready.popleft())
    return sent


def readings(sent):
    """How often a lane had to read another beginning than that of the line before."""
    return sum(
        before is None or prompt.group(before.order_key) != prompt.group(line.order_key)
        for mine in sent
        for before, line in zip([None, *mine], mine, strict=False)
    )


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("groups", [4, 6, 11])
def test_each_beginning_is_read_about_once(groups, size):
    waiting = lines(*(chr(97 + number % groups) for number in range(groups * 8)))
    sent = play(waiting, [Lane() for _ in range(4)], size)
    assert sum(map(len, sent)) == groups * 8
    assert groups <= readings(sent) <= groups + 3  # the last groups are shared out among idle lanes


def test_no_lane_is_idle_while_lines_wait():
    lanes = [Lane() for _ in range(4)]
    _, got = step(lines(*"a" * 20), lanes, 2)
    assert [len(share) for share in got] == [2, 2, 2, 2]


def test_lanes_that_share_a_group_keep_neighbours_together():
    waiting = lines(*"a" * 40)
    lanes = [Lane(), Lane()]
    sent = play(waiting, lanes, 4)
    assert [each.number for each in sent[0]] == sorted(each.number for each in sent[0])
    jumps = [sum(b.number != a.number + 1 for a, b in pairwise(mine)) for mine in sent]
    assert sum(jumps) <= 6


def test_short_prompts_share_nothing_and_go_out_in_order():
    waiting = [Line(pk=number, number=number, order_key=b"") for number in range(1, 13)]
    _, got = step(waiting, [Lane() for _ in range(3)], 2)
    assert [[each.number for each in share] for share in got] == [[1, 4], [2, 5], [3, 6]]


def test_a_lane_that_has_enough_gets_nothing():
    lanes = [Lane(), Lane()]
    waiting, _ = step(lines(*"aabb"), lanes, 2)
    assert waiting == []
    _, got = step(lines(*"cc"), lanes, 2)
    assert got == [[], []]


def test_a_lane_gets_what_it_lacks():
    lanes = [Lane() for _ in range(2)]
    waiting, _ = step(lines(*"abcdefgh"), lanes, 4)
    lanes[0].ready.popleft()
    assert look_ahead(lanes, 4) >= 1
    _, got = step([*waiting, *lines(*"ijkl")], lanes, 4)
    assert [len(share) for share in got] == [1, 0]


def test_a_lane_without_lines_takes_over_half_of_another():
    full, idle = Lane(), Lane()
    full.add(lines(*"aaaaa"))
    idle.help(full)
    assert ([each.number for each in full.ready], [each.number for each in idle.ready]) == ([1, 2], [3, 4, 5])
    idle.help(Lane())
    assert len(idle.ready) == 3


def test_a_lane_without_lines_takes_whole_groups_of_another_rather_than_half_of_one():
    full, idle = Lane(), Lane()
    full.add(as_numbered(*"aaab"))
    first = full.send_next()
    idle.help(full)
    assert [each.number for each in idle.ready] == [4]
    full.in_flight.remove(first.pk)
    whole, other = Lane(), Lane()
    whole.add(as_numbered(*"cddd"))
    whole.send_next()
    other.help(whole)
    assert (len(whole.ready), len(other.ready)) == (0, 3)  # it has begun none of them


def test_lines_begin_alike_if_another_one_waits_or_was_the_last_of_a_lane():
    waiting = lines(*"aabc")
    lane = Lane()
    assert begin_alike(as_read(waiting), [lane]) == {1, 2}
    lane.add([Line(pk=9, number=9, order_key=key("c"))])
    assert begin_alike(as_read(waiting), [lane, Lane()]) == {1, 2, 4}
    short = [Line(pk=number, number=number, order_key=b"") for number in range(3)]
    assert begin_alike(as_read(short), [lane]) == set()
