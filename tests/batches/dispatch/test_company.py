"""After a breakdown under several calls: which lines are in flight together, and that none pays for its company."""

import math
import threading
import time

import pytest

from batches import leases, registry
from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Verdict
from batches.dispatch import company, outcomes
from batches.dispatch.company import Company
from batches.dispatch.questions import Purpose, Question
from batches.models import Line, LineState
from batches.scheduling import turns
from tests.batches.dispatch.failures import NO_ROOM, error_lines, prepared, two_drives
from tests.conftest import line, several_connections
from tests.fake_backend import TRIAL, Action

CRASH = Action(crash=True, delay_s=0.1)


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch):
    monkeypatch.setattr(outcomes, "LEAST_BACKOFF_S", 0.05)


@pytest.fixture
def many(settings, backend):
    """A server that computes 64 calls at once, each for long enough that all of them are there before one ends."""
    settings.BACKEND_PARALLEL = 64
    backend.delay_s = 0.2
    return backend


def names(number):
    return [f"id-{each:03}" for each in range(number)]


def charged():
    lines = Line.objects.exclude(backend_crashes=0, attempts=0)
    return dict(lines.values_list("custom_id", "backend_crashes"))


@pytest.mark.slow
@pytest.mark.parametrize("is_vllm", [False, True])  # over connections of their own, and over kept ones
def test_a_line_that_brings_the_server_down_is_found_among_64_by_halves(create, work, many, is_vllm):
    many.is_vllm, many.slots = is_vllm, 64
    poison = "id-037"
    many.always(poison, CRASH)
    batch = work.run(create([line(each) for each in names(64)])["id"])
    assert batch["request_counts"] == {"total": 64, "completed": 63, "failed": 1}
    assert error_lines(work, batch)[poison]["error"]["code"] == "backend_crash"
    assert charged() == {poison: 4}
    assert all(poison in each for each in many.crashes)
    assert len(many.crashes) <= 2 * math.log2(64)
    for times, together in enumerate(many.crashes):
        assert len(together) <= max(1, 64 / 2**times)
    assert many.crashes[-4:] == [[poison]] * 4
    # Each is sent again for a crash that it was in, and for nothing else.
    assert len([each for each in many.arrived() if each != TRIAL]) <= 64 + sum(map(len, many.crashes)) + 8


@pytest.mark.slow
@pytest.mark.parametrize("places", [(0, 31), (5, 6)])
def test_two_lines_that_bring_the_server_down_are_both_found(create, work, many, places):
    poisons = {names(32)[each]: 4 for each in places}
    for each in poisons:
        many.always(each, CRASH)
    batch = work.run(create([line(each) for each in names(32)])["id"])
    assert batch["request_counts"] == {"total": 32, "completed": 30, "failed": 2}
    assert charged() == poisons
    assert len(many.crashes) <= 2 * 2 * math.log2(32)


@pytest.mark.slow
def test_a_crash_that_is_no_lines_fault_charges_none_and_is_followed_by_no_second_one(create, work, many):
    many.on("id-020", CRASH)
    batch = work.run(create([line(each) for each in names(64)])["id"])
    assert batch["request_counts"]["completed"] == 64
    assert charged() == {}
    assert len(many.crashes) == 1
    assert len(many.arrived()) <= 2 * 64 + 1  # with one trial


@pytest.mark.slow
def test_other_lines_wait_until_those_that_were_in_flight_are_answered(create, work, many, settings):
    settings.BACKEND_PARALLEL = 8
    many.on("id-003", CRASH)
    work.run(create([line(each) for each in names(24)])["id"])
    (crashed,) = many.crashes
    for beside in again(many, crashed):
        assert set(beside) <= set(crashed)
        assert len(beside) <= -(-len(crashed) // 2)


def again(backend, keys):
    """For each of these that came for the second time: what was at the server then."""
    seen = [each for each in backend.seen if each.key in keys][len(keys) :]
    return [[other.key for other in backend.seen if other.at <= each.at < other.left] for each in seen]


@pytest.mark.slow
def test_a_server_that_cannot_bear_so_many_gets_fewer_and_no_line_pays(create, work, many, settings):
    settings.BACKEND_PARALLEL = 16
    many.delay_s, many.bears = 0.1, 5
    batch = work.run(create([line(each) for each in names(80)])["id"])
    assert batch["request_counts"]["completed"] == 80
    assert charged() == {}
    at_once = [len(each) for each in many.crashes]
    # The first time may be chance. After the second, as many are in flight as went well.
    assert len(at_once) <= 8, at_once


@pytest.mark.slow
def test_a_server_that_is_started_again_costs_no_line(create, work, many):
    batch = prepared(create, work, names(64))

    def restart():
        while len(many.arrived()) < 40:
            time.sleep(0.01)
        many.stop()
        time.sleep(0.3)
        many.start()

    operator = threading.Thread(target=restart)
    operator.start()
    work.drive()
    operator.join()
    work.end_pauses()
    assert work.run(batch)["request_counts"]["completed"] == 64
    assert charged() == {}


@pytest.mark.slow
def test_what_was_found_out_outlives_the_worker(create, work, many):
    """Half of the lines were split, and the worker was killed: its successor splits no line anew."""
    batch = prepared(create, work, names(16))
    few, fewer = names(16)[:8], names(16)[8:12]
    lease = leases.acquire("drive")
    for keys, most in ((few, 4), (fewer, 2)):
        Line.objects.filter(custom_id__in=keys).update(
            most_together=most, needs_trial=True, state=LineState.RUNNING, lease=lease
        )
    leases.Lease.objects.filter(pk=lease.pk).update(pid=2**22 + 1)
    assert leases.reap() == 1
    assert work.run(batch)["request_counts"]["completed"] == 16
    lines = [each for each in many.arrived() if each != TRIAL]
    assert [set(lines[:8]), set(lines[8:12])] == [set(few), set(fewer)]
    for keys, most in ((few, 4), (fewer, 2), (names(16)[12:], 4)):
        seen = [each for each in many.seen if each.key in keys]
        assert max(sum(other.at <= each.at < other.left for other in many.seen) for each in seen) <= most


@pytest.mark.slow
def test_want_of_memory_in_company_is_charged_to_no_line(create, work, many, settings):
    settings.BACKEND_PARALLEL = 4
    for each in names(4):
        many.on(each, NO_ROOM)
    many.always("id-002", NO_ROOM)
    batch = work.run(create([line(each) for each in names(4)])["id"])
    assert batch["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    assert Line.objects.get(custom_id="id-002").attempts == 3
    assert not Line.objects.exclude(custom_id="id-002").exclude(attempts=0).exists()


@pytest.mark.slow
def test_a_line_that_takes_too_long_beside_answers_is_not_looked_for_by_halves(create, work, many, settings):
    settings.LINE_TIMEOUT_S = 1.0
    many.always("id-004", Action(hang=True))
    batch = work.run(create([line(each) for each in names(16)])["id"])
    assert error_lines(work, batch)["id-004"]["error"]["code"] == "request_timeout"
    assert many.arrived().count("id-004") == 3  # once in company, and twice alone
    assert len([each for each in many.arrived() if each != TRIAL]) == 16 + 2


@pytest.mark.slow
def test_lines_that_hang_together_are_split_too(create, work, many, settings):
    settings.LINE_TIMEOUT_S = 1.0
    settings.BACKEND_PARALLEL = 16
    for each in names(16):
        many.on(each, Action(hang=True))
    batch = work.run(create([line(each) for each in names(16)])["id"])
    assert batch["request_counts"]["completed"] == 16
    assert charged() == {}
    assert max(map(len, again(many, names(16)))) > 3  # eight, if all of them hung at once


@several_connections
def test_several_drives_find_the_line_without_hurting_each_other(create, work, many, settings):
    settings.BACKEND_PARALLEL = 16
    many.always("id-009", CRASH)
    batches = [create([line(each) for each in part])["id"] for part in (names(40)[:20], names(40)[20:])]
    for each in batches:
        work.validate(each)
    two_drives(registry.report_backend())
    assert charged() == {"id-009": 4}
    assert Line.objects.filter(state=LineState.SUCCEEDED).count() == 39
    assert many.crashes[-4:] == [["id-009"]] * 4
    assert len(many.crashes) <= 2 * math.log2(16) + 4


def test_split_lines_come_first_and_those_that_may_be_more_before_others(create, work, backend):
    prepared(create, work, names(4))
    Line.objects.filter(custom_id="id-003").update(most_together=8)
    Line.objects.filter(custom_id="id-001").update(most_together=1)
    own = registry.report_backend()
    turn = turns.next_turn(own, None)
    assert [each.custom_id for each in turn.lines()] == ["id-003", "id-001"]
    Line.objects.filter(most_together__gt=0).update(state=LineState.RUNNING)
    after = turns.next_turn(own, turn)
    assert not after.is_like(turn)
    assert [each.custom_id for each in after.lines()] == ["id-000", "id-002"]


def test_a_line_that_was_charged_waits_for_all_others_of_its_part(create, work, backend):
    """Its tries are far apart then: a server that is killed from time to time must not meet the same line each time."""
    prepared(create, work, names(4))
    Line.objects.filter(custom_id="id-000").update(most_together=1, backend_crashes=1)
    Line.objects.filter(custom_id="id-001").update(most_together=1, attempts=2)
    Line.objects.filter(custom_id="id-002").update(most_together=2, attempts=1)
    work.drive()
    assert [each for each in backend.arrived() if each != TRIAL] == ["id-002", "id-003", "id-001", "id-000"]


# Company, by itself


def a_call(most_together=None, *, is_shared=True, in_flight=16, **values):
    verdict = values.pop("verdict", Verdict.CRASHED)
    call = Call(Line(most_together=most_together), "", {}, 1.0, reply=Reply(verdict), was_shared=is_shared, **values)
    call.together = in_flight
    call.most_together = -(-min(in_flight, most_together or in_flight) // 2)
    return call


@pytest.mark.parametrize(
    ("subject", "at_work", "has_place"),
    [
        (None, [], True),
        (None, [None] * 9, True),
        (None, [None] * 10, False),
        (None, [4], False),
        (4, [None], False),
        (4, [], True),
        (4, [4, 8, 4], True),
        (4, [4, 8, 4, 8], False),
        (8, [4, 4, 4, 4], False),
        (20, [20] * 10, False),
        (1, [], True),
        (1, [8], False),
        (8, [1], False),
    ],
)
def test_who_may_be_in_flight_with_whom(subject, at_work, has_place):
    calls = [Call(Line(most_together=each), "", {}, 1.0) for each in at_work]
    assert Company().has_place_for(Line(most_together=subject), calls, 10) is has_place


def test_a_question_that_needs_the_server_alone_waits_for_all():
    load = Question(Purpose.LOAD, "", "m")
    assert Company().has_place_for(load, [], 4)
    assert not Company().has_place_for(load, [Call(Line(), "", {}, 1.0)], 4)


def place_for(group, room=64):
    calls = []
    while group.has_place_for(Line(), calls, room):
        calls.append(Call(Line(), "", {}, 1.0))
    return len(calls)


def test_one_unexplained_breakdown_changes_nothing_and_each_further_one_for_longer(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(company.time, "monotonic", lambda: now[0])
    group = Company()

    def break_down():
        for _ in range(16):
            group.note(a_call(started=now[0] - 1))
        group.note(a_call(8, in_flight=8, started=now[0]))

    break_down()
    assert place_for(group) == 64
    for rest_s in (60, 240, 960, 3600, 3600):
        now[0] += 10
        break_down()
        assert place_for(group) == 4
        now[0] += rest_s - 1
        assert place_for(group) == 4
        now[0] += 2
        assert place_for(group) == 64


def test_a_line_that_is_found_guilty_explains_the_breakdowns():
    group = Company()
    for _ in range(3):
        group.note(a_call())
    assert place_for(group) == 8
    group.note(a_call(1, is_shared=False, in_flight=1))
    assert place_for(group) == 8  # not charged: nobody knew whether the model was in order
    group.note(a_call(1, is_shared=False, in_flight=1, is_charged=True))
    assert place_for(group) == 64
    group.note(a_call())
    assert place_for(group) == 64


def test_a_call_that_took_too_long_says_nothing_about_the_company():
    group = Company()
    for _ in range(3):
        group.note(a_call(timed_out=True, verdict=Verdict.FAILED))
    assert place_for(group) == 64
