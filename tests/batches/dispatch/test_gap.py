"""The moments in which nothing of ours is at an Ollama, so that others get the model that they ask for."""

import pytest

from batches import backends, registry
from batches.backends.replies import Reply, Verdict
from batches.dispatch import gap
from batches.dispatch.gap import Gap
from batches.dispatch.questions import Purpose, Question
from batches.dispatch.readiness import Readiness
from batches.models import Hold
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
@pytest.mark.parametrize(("loaded", "is_gone"), [([MODEL], False), (["other:1b"], True), ([], True)])
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
    call.result, call.reply = ["other:1b"], Reply(Verdict.ANSWERED)
    readiness.note_answer(call)
    assert Hold.objects.filter(reason=Hold.Reason.OTHERS).exists() is (model == MODEL)


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
