"""A server that tells how busy it is gets as many calls as it has use for."""

from dataclasses import asdict

import pytest

from batches import leases, registry
from batches.backends.in_flight import Call
from batches.backends.ollama import Ollama
from batches.backends.replies import Reply, Verdict
from batches.backends.states import Occupancy, listed_models
from batches.backends.vllm import Vllm
from batches.dispatch.sharing import ASK_STEADY_S, STEADY_ANSWERS, SharedBackend
from batches.models import Backend, Line
from tests.batches.dispatch.test_sharing import most_at_once
from tests.conftest import line
from tests.fake_backend import MODEL


@pytest.fixture
def backend(backend):
    backend.is_vllm = True
    backend.slots = 100
    backend.delay_s = 0.5
    return backend


def run(create, work, lines=24):
    batch = work.run(create([line(f"id-{number}") for number in range(lines)])["id"])
    assert batch["request_counts"]["completed"] == lines


def test_many_calls_are_in_flight_at_once(create, work, backend):
    run(create, work)
    # The first two are sent before the server has told, and may be over before the last one comes.
    assert most_at_once(backend) >= 20


def test_a_server_that_does_not_tell_begins_with_a_few(create, work, backend):
    backend.has_metrics = False
    backend.delay_s = 0.05
    run(create, work, 8)
    assert most_at_once(backend) == 2


@pytest.mark.slow
def test_the_setting_wins(create, work, backend, settings):
    settings.BACKEND_PARALLEL = 4
    run(create, work, 12)
    assert most_at_once(backend) == 5


def test_lines_that_a_full_server_refuses_are_sent_again_and_pay_nothing(create, work, backend):
    backend.slots, backend.most_waiting, backend.delay_s = 4, 10, 0.05
    backend.answers_once_full = True
    run(create, work)
    assert len(backend.seen) > 24
    assert set(Line.objects.values_list("attempts", "backend_crashes")) == {(0, 0)}


@pytest.fixture
def shared(db):
    row = Backend.objects.create(name="gpu", kind="vllm")
    return SharedBackend(row, leases.acquire("drive", backend=row), Vllm())


def told(shared, answer, in_flight):
    """Ask and be answered; whether there was anything to ask."""
    call = shared.call_beside(in_flight)
    if call is not None:
        call.result, call.reply = answer, Reply(Verdict.ANSWERED)
        shared.note_answer(call)
    return call is not None


LINE = Call(Line(), "", {}, 1.0)


def test_room_grows_as_soon_as_the_server_tells(shared):
    assert told(shared, Occupancy(0, 0), [])  # before the first line is sent
    assert shared.room == 64
    assert not told(shared, Occupancy(0, 0), [])  # nothing is in flight


def test_a_server_is_asked_seldom_once_nothing_changes(shared):
    asked = [told(shared, Occupancy(50, 5), [LINE]) for _ in range(20)]
    assert asked == [True] * (STEADY_ANSWERS + 1) + [False] * (19 - STEADY_ANSWERS)


@pytest.mark.slow
def test_a_server_that_does_not_tell_is_not_asked_all_the_time(shared):
    assert [told(shared, None, [LINE]) for _ in range(3)] == [True, False, False]
    assert shared.limit.size == 2


def test_a_question_that_was_not_answered_is_asked_again_soon_and_changes_nothing(shared):
    call = shared.call_beside([LINE])
    assert shared.call_beside([LINE, call]) is None  # it is under way
    call.reply = Reply(Verdict.UNREACHABLE)
    shared.note_answer(call)
    assert shared.limit.size == 2
    assert not told(shared, Occupancy(0, 0), [LINE])
    shared._ask_at -= ASK_STEADY_S
    assert told(shared, Occupancy(0, 0), [LINE])


def test_one_drive_asks_for_all(shared):
    younger = SharedBackend(shared._backend, leases.acquire("drive", backend=shared._backend), Vllm())
    assert younger.call_beside([LINE]) is None
    assert shared.call_beside([LINE]) is not None


def test_other_kinds_are_not_asked(db):
    row = Backend.objects.create(name="gpu", kind="ollama")
    assert SharedBackend(row, leases.acquire("drive", backend=row), Ollama()).call_beside([LINE]) is None


LORAS = {"support": MODEL, "sales": MODEL}


def mixed(models, count):
    return [line(f"{models[n % len(models)]} {n}", body={"model": models[n % len(models)]}) for n in range(count)]


def test_lora_modules_of_one_model_run_mixed(create, work, backend):
    """Lines of each are in flight beside lines of the others, and nothing is loaded or described again for them."""
    backend.models, backend.roots = [MODEL, *LORAS], LORAS
    batch = work.run(create(mixed([MODEL, *LORAS], 9))["id"])
    assert batch["request_counts"]["completed"] == 9
    last = backend.seen[-1]
    assert {each.body["model"] for each in backend.seen if each.left > last.at} == {MODEL, *LORAS}
    assert len(backend.seen) == 9


def test_what_is_loaded_together(backend, db):
    backend.models, backend.roots = [MODEL, "other", *LORAS], LORAS | {"stray": "gone"}
    backend.models.append("stray")
    row = registry.report_backend()
    assert row.base_of("support") == row.base_of("sales") == row.base_of(MODEL) == f"models/{MODEL}"
    assert row.base_of("other") == "models/other"
    assert row.base_of("stray") == "gone"
    assert row.base_of("never listed") == "never listed"
    backend.is_vllm = False
    backend.models = [MODEL, "other:1b"]
    row = registry.report_backend()
    assert (row.base_of("Gemma3:12B"), row.base_of("other:1b")) == (MODEL, "other:1b")


@pytest.mark.parametrize("card", [{"parent": 5}, {"parent": ["x"], "root": {}}, {"root": None}, {"parent": ""}, {}])
def test_odd_cards_stand_for_themselves(card):
    listed = {"data": [{"id": "m", "owned_by": "vllm"} | card]}
    [model] = listed_models(lambda _: (200, listed)) or []
    assert Backend(kind="vllm", listed=[asdict(model)]).base_of("m") == "m"


def test_a_lora_module_has_the_context_of_its_base():
    cards = [{"id": "m", "max_model_len": 2048, "parent": None}, {"id": "lora", "parent": "m"}]
    cards.append({"id": "odd", "parent": []})

    def describe(model):
        state = Vllm().describe(lambda path, body: (200, {"data": cards}), model)
        return state and state.context_tokens

    assert [describe(name) for name in ("m", "lora", "odd", "none")] == [2048, 2048, 0, None]
