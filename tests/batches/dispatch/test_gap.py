"""The moments in which nothing of ours is at an Ollama, so that others get the model that they ask for."""

import pytest

from batches import backends, leases, registry
from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Verdict
from batches.dispatch import gap
from batches.dispatch.gap import Gap
from batches.dispatch.questions import Purpose, Question
from batches.dispatch.readiness import Readiness
from batches.dispatch.used_beside import UsedBeside
from batches.models import Batch, Hold, Line, Part
from batches.scheduling import gate, persons
from tests.conftest import CHAT, line
from tests.fake_backend import MODEL


def test_a_gap_comes_twice_a_minute_and_lasts_until_the_server_was_idle_for_a_moment():
    each = Gap(30.0)
    assert not each.keeps_back(59.9, is_idle=False)
    assert each.keeps_back(60.1, is_idle=False)
    assert not each.is_over(60.1)
    assert each.keeps_back(60.5, is_idle=True)
    assert not each.is_over(60.55)
    assert each.keeps_back(60.55, is_idle=True)
    assert not each.keeps_back(60.65, is_idle=True)
    assert each.is_over(60.65)
    assert not each.is_over(60.65)
    assert not each.keeps_back(90, is_idle=False)
    assert each.keeps_back(90.7, is_idle=False)


def test_gaps_come_more_seldom_if_calls_take_long():
    each = Gap(0.0)
    assert each.keeps_back(60, is_idle=False)
    assert each.keeps_back(70, is_idle=True)
    assert each.is_over(70.2)
    assert not each.keeps_back(70.2 + 50 * 10, is_idle=False)
    assert each.keeps_back(70.2 + 50 * 10.3, is_idle=False)


@pytest.mark.parametrize("after_gap", [False, True])
@pytest.mark.parametrize(("loaded", "is_gone"), [({MODEL: ""}, False), ({"other:1b": ""}, True), ({}, True)])
def test_a_model_that_is_gone_after_a_gap_made_room_for_others(transactional_db, backend, after_gap, loaded, is_gone):
    own = registry.report_backend()
    own.now_has_loaded(MODEL)
    readiness = Readiness(own, backends.kind_named("ollama"), was_unused=False)
    readiness.doubt_loaded(after_gap=after_gap)
    question = Question(Purpose.LIST_LOADED, CHAT, MODEL)
    call = readiness.call(question)
    call.result, call.reply = loaded, Reply(Verdict.ANSWERED)
    readiness.note_answer(call)
    assert ("directly (another model" in gate.look(own).reason) is (after_gap and is_gone)


@pytest.mark.parametrize("model", [MODEL, "other:1b"])
def test_a_person_whom_we_serve_is_no_other(transactional_db, backend, model):
    """Lines wait for them as for any person, not until the model that they used is gone."""
    own = registry.report_backend()
    own.now_has_loaded(MODEL)
    readiness = Readiness(own, backends.kind_named("ollama"), was_unused=False)
    persons.Person(own, "a", model).leave()
    readiness.doubt_loaded(after_gap=True)
    call = readiness.call(Question(Purpose.LIST_LOADED, CHAT, MODEL))
    call.result, call.reply = {"other:1b": ""}, Reply(Verdict.ANSWERED)
    readiness.note_answer(call)
    assert Hold.objects.filter(reason=Hold.Reason.OTHERS).exists() is (model == MODEL)


def looks(each, *times, after_gap=True):
    """What the looks after several gaps say, with an answer before each."""
    found = []
    for until in times:
        each.note_answer()
        found.append(each.look(MODEL, until, after_gap=after_gap))
    return found


def test_a_time_that_the_end_of_our_calls_does_not_set_tells_of_somebody_else():
    assert looks(UsedBeside(), "1", "2", "2", "3", "3") == [False, False, True, False, True]


def test_a_request_that_hangs_for_good_is_believed_once():
    assert looks(UsedBeside(), "1", "2", "2", "2", "2") == [False, False, True, False, False]


def test_a_server_that_sets_no_time_tells_of_nobody():
    assert looks(UsedBeside(), "1", "1", "1") == [False] * 3
    assert looks(UsedBeside(), "", "1", "", "") == [False] * 4


def test_without_a_gap_or_an_answer_or_with_another_model_it_tells_nothing():
    each = UsedBeside()
    looks(each, "1", "2")
    assert looks(each, "2", after_gap=False) == [False]
    assert not each.look(MODEL, "2", after_gap=True)
    each.note_answer()
    assert not each.look("other:1b", "2", after_gap=True)
    each.note_answer()
    assert each.look("other:1b", "2", after_gap=True)


@pytest.mark.parametrize("who", ["somebody", "a person of ours", "another drive"])
def test_lines_stand_aside_for_somebody_who_uses_their_model_beside_them(transactional_db, backend, who):
    own = registry.report_backend()
    own.now_has_loaded(MODEL)
    readiness = Readiness(own, backends.kind_named("ollama"), was_unused=False)
    leases.acquire("drive", backend=own)
    if who == "a person of ours":
        persons.Person(own, "a", MODEL)
    if who == "another drive":
        leases.acquire("drive", backend=own)
    answered = Call(
        Line(batch=Batch(endpoint=CHAT), part=Part(model=MODEL)), CHAT, {}, 0.0, reply=Reply(Verdict.ANSWERED)
    )
    for until in ("1", "2", "2"):
        assert not Hold.objects.filter(reason=Hold.Reason.OTHERS).exists()
        readiness.note_line(answered)
        readiness.doubt_loaded(after_gap=True)
        call = readiness.call(Question(Purpose.LIST_LOADED, CHAT, MODEL))
        call.result, call.reply = {MODEL: until}, Reply(Verdict.ANSWERED)
        readiness.note_answer(call)
    held = list(Hold.objects.filter(reason=Hold.Reason.OTHERS).values_list("model", flat=True))
    assert held == ([MODEL] if who == "somebody" else [])


@pytest.mark.slow
@pytest.mark.parametrize("notices", [True, False])
def test_a_drive_leaves_gaps(create, work, backend, settings, monkeypatch, notices):
    settings.NOTICE_OTHERS = notices
    monkeypatch.setattr(gap, "EVERY_S", 0.5)
    backend.delay_s = 0.05
    backend.slots = 4
    work.in_flight = 3
    batch = work.run(create([line(str(number)) for number in range(60)])["id"])
    assert batch["request_counts"]["completed"] == 60
    assert backend.loads == [MODEL]
    starts = sorted((seen.at, seen.left) for seen in backend.seen)
    lefts, idle = starts[0][1], []
    for at, left in starts[1:]:
        idle.append(at - lefts)
        lefts = max(lefts, left)
    assert (max(idle) >= gap.LASTS_S) or not notices
