"""Whoever uses the model server without us: noticed by what it says of the models that it has loaded."""

from datetime import timedelta

import pytest
from django.db.models import F
from django.db.models.functions import Now

from batches.models import Batch, Hold, ModelUse
from batches.scheduling import gate, model_uses, others, persons
from batches.scheduling.others import Others
from tests.conftest import line
from tests.fake_backend import MODEL

OTHER = "other:1b"


@pytest.fixture(autouse=True)
def _a_while_for_each(settings):
    settings.INTERACTIVE_HOLD_S = 10.0


@pytest.fixture
def here(transactional_db, live_backend):
    live_backend.now_has_loaded(MODEL)
    return live_backend


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass, for the observer and for the rows."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def wait(self, seconds):
            self.now += seconds
            Hold.objects.update(until=F("until") - timedelta(seconds=seconds))
            ModelUse.objects.update(at=F("at") - timedelta(seconds=seconds))

    clock = Clock()
    monkeypatch.setattr(others, "time", clock)
    return clock


def told(backend):
    reason = gate.look(backend).reason
    return "" if not reason else "persons" if "person's" in reason else "others"


class Watch:
    """An observer of a server whose models were last used at some moment each."""

    def __init__(self, backend, clock, **loaded):
        self.backend, self.clock, self.observer = backend, clock, Others()
        self.loaded = dict(loaded)
        self.look()

    def look(self, *, after_s=3.0):
        self.clock.wait(after_s)
        self.observer.look(self.backend, dict(self.loaded))
        return told(self.backend)


def test_a_model_that_no_drive_loaded_keeps_lines_back_while_it_is_loaded(here, clock):
    watch = Watch(here, clock)
    assert told(here) == ""
    watch.loaded[OTHER] = "1"
    assert watch.look() == "others"
    assert f"({OTHER}" in gate.look(here).reason
    for _ in range(10):
        assert watch.look() == "others"
    del watch.loaded[OTHER]
    assert watch.look() == ""
    assert not Hold.objects.exists()


def test_a_model_that_stays_loaded_for_ever_keeps_lines_back_for_five_minutes_after_its_use(here, clock):
    watch = Watch(here, clock)
    watch.loaded[OTHER] = "1"
    assert watch.look() == "others"
    assert watch.look(after_s=290) == "others"
    assert watch.look(after_s=20) == ""
    watch.loaded[OTHER] = "2"
    assert watch.look() == "others"


def test_use_of_our_model_while_we_use_it_for_nothing_is_by_others(here, clock):
    model_uses.note(here, MODEL)
    watch = Watch(here, clock, **{MODEL: "1"})
    assert watch.look(after_s=60) == ""
    watch.loaded[MODEL] = "2"
    assert watch.look() == "others"
    assert watch.look(after_s=9) == "others"
    assert watch.look(after_s=2) == ""


@pytest.mark.parametrize("is_created_first", [True, False])
def test_a_model_that_lines_want_keeps_them_back_for_a_while_after_others_used_it(
    here, clock, create, work, is_created_first
):
    """Somebody tries a prompt at Ollama itself, and makes a batch of such prompts."""
    here.now_has_loaded("")
    if is_created_first:
        work.validate(create([line("a")])["id"])
    watch = Watch(here, clock)
    watch.loaded[MODEL] = "1"
    assert watch.look() == "others"
    if not is_created_first:
        work.validate(create([line("a")])["id"])
    assert watch.look() == "others"
    assert watch.look(after_s=8) == ""
    watch.loaded[OTHER] = "1"  # no line wants this one, so it would be unloaded for lines
    assert [watch.look(), watch.look(after_s=200)] == ["others", "others"]


@pytest.mark.parametrize("of", ["a batch that is paused", "a batch for another model"])
def test_a_model_that_no_line_wants_now_keeps_lines_back_while_it_is_loaded(here, clock, create, work, of):
    work.validate(create([line("a", body={"model": MODEL if of == "a batch that is paused" else OTHER})])["id"])
    Batch.objects.filter(status="in_progress").update(paused_at=Now() if "paused" in of else None)
    here.now_has_loaded("")
    watch = Watch(here, clock)
    watch.loaded[MODEL] = "1"
    assert [watch.look(), watch.look(after_s=200)] == ["others", "others"]


def test_use_by_us_is_none_by_others(here, clock):
    watch = Watch(here, clock, **{MODEL: "1"})
    for use in range(20):
        model_uses.note(here, "GEMMA3:12b" if use % 2 else MODEL)  # two names of one model
        watch.loaded[MODEL] = f"after {use}"
        assert watch.look() == ""
    # A line that ends right after the last note of it.
    watch.loaded[MODEL] = "last"
    assert watch.look() == ""


def test_a_model_of_others_is_seen_beside_ours_at_work(here, clock):
    watch = Watch(here, clock, **{MODEL: "1"})
    for use in range(3):
        model_uses.note(here, MODEL)
        watch.loaded[MODEL] = f"after {use}"
        assert watch.look() == ""
    model_uses.note(here, MODEL)
    watch.loaded |= {MODEL: "3", OTHER: "1"}
    assert watch.look() == "others"


def test_a_model_that_a_person_asks_us_for_is_no_ones_else(here, clock, settings):
    settings.INTERACTIVE_HOLD_S = 0
    watch = Watch(here, clock)
    person = persons.Person(here, "somebody", OTHER)
    watch.loaded[OTHER] = "loading"
    assert watch.look() == "persons"
    person.leave()
    watch.loaded[OTHER] = "used"
    assert watch.look() == ""
    for _ in range(200):  # it stays for a while
        assert watch.look() == ""


def test_what_is_loaded_at_first_keeps_nothing_back_before_it_is_used(here, clock):
    """Somebody tried a model, and then started this server."""
    watch = Watch(here, clock, **{MODEL: "1", OTHER: "1"})
    assert [told(here), watch.look(), watch.look()] == ["", "", ""]
    watch.loaded[OTHER] = "2"
    assert watch.look() == "others"


def test_a_model_that_a_server_of_ours_derived_is_ours(here, clock):
    watch = Watch(here, clock, **{"obs-ctx-8192/gemma3:12b-obs3f9a2c": "1"})
    watch.loaded |= {"obs-ctx-16384/gemma3:12b-obs3f9a2c": "1", "obs-ctx-8192/gemma3:12b-obs3f9a2c": "2"}
    watch.loaded["hf.co/obs-ctx-8192-unsloth/gemma-3-GGUF:Q4-obs3f9a2c"] = "1"
    assert watch.look() == ""
    watch.loaded["obs-not/ours:latest"] = "1"
    assert watch.look() == "others"


def test_a_setting_turns_it_off(here, clock, settings):
    watch = Watch(here, clock)
    watch.loaded[OTHER] = "1"
    assert watch.look() == "others"
    settings.NOTICE_OTHERS = False
    assert watch.look() == ""
    watch.loaded[OTHER] = "2"
    assert watch.look() == ""


def test_those_who_come_often_are_waited_for_as_persons_are(here, clock, settings):
    watch = Watch(here, clock, **{MODEL: "1"})
    for use in range(4):
        watch.loaded[MODEL] = f"use {use}"
        clock.wait(57)
        watch.look()
    assert told(here) == "others"
    assert watch.look() == ""  # who comes once a minute is not waited for


def test_no_hold_is_left_by_a_setting_of_0(here, clock, settings):
    settings.INTERACTIVE_HOLD_S = 0
    watch = Watch(here, clock, **{MODEL: "1"})
    watch.loaded[MODEL] = "2"
    assert watch.look() == ""


def test_lines_have_their_share_between_the_uses_of_others(here, clock):
    watch = Watch(here, clock)
    watch.loaded[OTHER] = "1"
    assert watch.look() == "others"
    persons.give_share(here, between=True)
    assert told(here) == ""
    persons.end_share(here)
    assert told(here) == "others"


def test_a_killed_worker_holds_nothing_for_long(here, clock):
    watch = Watch(here, clock)
    watch.loaded[OTHER] = "1"
    assert watch.look() == "others"
    clock.wait(16)
    assert told(here) == ""


def test_old_uses_are_forgotten(here, clock):
    model_uses.note(here, MODEL)
    clock.wait(3500)
    model_uses.note(here, OTHER)
    model_uses.forget_old()
    assert ModelUse.objects.count() == 2
    clock.wait(200)
    model_uses.forget_old()
    assert ModelUse.objects.count() == 1


def test_a_server_that_loads_nothing_by_itself_has_no_uses(here):
    here.kind = "vllm"
    model_uses.note(here, MODEL)
    assert not ModelUse.objects.exists()
