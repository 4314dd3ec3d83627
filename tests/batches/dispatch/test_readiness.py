"""A model is loaded before its first line is sent, and its slots are counted."""

import pytest

from batches.backends.ollama import Ollama
from batches.dispatch import readiness
from batches.dispatch.questions import Purpose, Question
from batches.models import Backend, Batch, Part, PausedModel
from tests.batches.dispatch.failures import NO_ROOM, UNCHARGED, charges, prepared
from tests.conftest import CHAT, line
from tests.fake_backend import COUNTING, MODEL, Action, error_body


def test_a_model_is_loaded_before_its_first_line_and_its_lines_stay_together(create, work, backend):
    backend.models = ["gemma3:12b", "other:1b"]
    models = ["gemma3:12b", "gemma3:12b", "other:1b", "gemma3:12b"]
    batch = work.run(create([line(f"id-{n}", body={"model": model}) for n, model in enumerate(models)])["id"])
    assert batch["request_counts"]["completed"] == 4
    assert backend.loads == ["gemma3:12b", "other:1b"]


def test_a_model_that_lines_name_in_several_ways_is_loaded_once(create, work, backend):
    """The server was never seen when the file was read, so the lines keep the names that they have."""
    backend.models = backend.loaded = ["gemma3:12b", "other:1b"]
    names = ["Gemma3:12b", "library/gemma3:12b", "gemma3:12b"]
    batch = create([line(f"id-{n}", body={"model": name}) for n, name in enumerate([*names, "other:1b", *names])])["id"]
    work.validate(batch)
    assert Part.objects.count() == 4
    work.drive()
    assert Batch.objects.get().completed == 7
    loads = [name.lower().removeprefix("library/") for name in backend.loads]
    assert sorted(loads) == ["gemma3:12b", "other:1b"]
    assert len(backend.unloads) == 1


def test_a_model_for_embeddings_is_loaded_by_its_own_way(create, work, backend):
    work.run(create([line("a", url="/v1/embeddings")], endpoint="/v1/embeddings")["id"])
    assert backend.loads == ["gemma3:12b"]
    assert backend.load_paths == ["/api/embed"]


def test_a_model_that_cannot_be_loaded_pauses_before_any_line_is_sent(create, work, backend):
    backend.on_load.extend([NO_ROOM] * 3)
    batch = prepared(create, work, "ab")
    work.drive()
    assert backend.arrived() == []
    assert charges() == UNCHARGED
    reason = PausedModel.objects.get().reason
    assert reason.startswith("Ollama cannot load gemma3:12b (HTTP 500: model requires more system memory")
    assert work.run(batch)["request_counts"]["completed"] == 2


@pytest.mark.slow
def test_loading_has_a_time_limit_of_its_own(create, work, backend, settings):
    settings.LINE_TIMEOUT_S, settings.MODEL_LOAD_TIMEOUT_S = 0.2, 30
    backend.on_load.append(Action(delay_s=1))
    assert work.run(prepared(create, work, "a"))["request_counts"]["completed"] == 1

    settings.MODEL_LOAD_TIMEOUT_S = 0.3
    backend.on_load.append(Action(delay_s=3))
    prepared(create, work, "b")
    work.drive()
    assert "Restart it: systemctl restart ollama" in PausedModel.objects.get().reason


def counts(backend):
    """How often the slots were counted."""
    return backend.arrived().count(COUNTING) // 9


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 3])
def test_slots_are_counted_once_for_each_loaded_model(create, work, backend, monkeypatch, slots):
    monkeypatch.setattr(readiness, "WORTH_COUNTING", 5)
    backend.slots = slots
    for expected in (1, 1):  # the second drive finds the model still loaded
        batch = work.run(create([line(f"id-{number}") for number in range(8)])["id"])
        assert batch["request_counts"]["completed"] == 8
        assert (Backend.objects.get().counted_slots, counts(backend)) == (slots, expected)

    backend.loaded = []  # the server was started again, with another number
    backend.slots = 2
    work.run(create([line(f"id-{number}") for number in range(8)])["id"])
    assert (Backend.objects.get().counted_slots, counts(backend)) == (2, 2)


@pytest.mark.slow
def test_slots_that_were_just_counted_begin_with_different_groups(create, work, backend, monkeypatch):
    """Or each of them reads the same beginning."""
    monkeypatch.setattr(readiness, "WORTH_COUNTING", 5)
    backend.slots = 2
    for number in range(12):
        backend.always(str(number), Action(delay_s=0.05))

    def chat(number):
        messages = [{"role": "system", "content": "ab"[number % 2] * 400}, {"role": "user", "content": f"{number}"}]
        return line(f"id-{number}", body={"messages": messages})

    work.run(create([chat(number) for number in range(12)])["id"])
    first, second = [key for key in backend.arrived() if key.isdigit()][:2]
    assert int(first) % 2 != int(second) % 2


def test_slots_are_not_counted_for_a_few_lines_or_if_they_are_told(create, work, backend, settings, monkeypatch):
    monkeypatch.setattr(readiness, "WORTH_COUNTING", 5)
    work.run(create([line(f"id-{number}") for number in range(4)])["id"])
    settings.BACKEND_PARALLEL = 1
    work.run(create([line(f"id-{number}") for number in range(8)])["id"])
    assert counts(backend) == 0


def test_a_model_whose_slots_cannot_be_counted_is_asked_once(create, work, backend, monkeypatch):
    monkeypatch.setattr(readiness, "WORTH_COUNTING", 5)
    asked = [body["prompt"] for _, body in Ollama().slot_requests("")]
    for text in asked:
        backend.always(text, Action(500, error_body("no")))
    batch = work.run(create([line(f"id-{number}") for number in range(12)])["id"])
    assert batch["request_counts"]["completed"] == 12
    assert Backend.objects.get().counted_slots is None
    assert all(1 <= backend.arrived().count(text) <= 9 for text in asked)


@pytest.mark.parametrize(("line_s", "trial_s"), [(None, 120), (1, 10), (60, 60), (500, 120)])
def test_a_trial_may_take_no_longer_than_a_line(settings, line_s, trial_s):
    settings.LINE_TIMEOUT_S = line_s
    question = Question(Purpose.TRIAL, CHAT, MODEL)
    assert question.call(Ollama(), is_loaded=True).timeout_s == trial_s
    assert question.call(Ollama(), is_loaded=False).timeout_s == settings.MODEL_LOAD_TIMEOUT_S
