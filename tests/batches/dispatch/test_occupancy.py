"""A server that tells how busy it is gets as many calls as it has use for."""

from dataclasses import asdict

import pytest

from batches import registry
from batches.backends.base import listed_models
from batches.backends.vllm import Vllm
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


def test_the_setting_wins(create, work, backend, settings):
    settings.BACKEND_PARALLEL = 4
    run(create, work, 12)
    assert most_at_once(backend) == 5


def test_lines_that_a_full_server_refuses_are_sent_again_and_pay_nothing(create, work, backend):
    backend.slots, backend.most_waiting, backend.delay_s = 4, 10, 0.05
    run(create, work)
    assert Backend.objects.get().concurrency_limit <= 32
    assert set(Line.objects.values_list("attempts", "backend_crashes")) == {(0, 0)}


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
