"""Lines that need more than their model's context go to a model derived for them, and answer under the name asked for.

The fake server counts a token for each letter of a prompt, three times as many as are estimated.
"""

from itertools import pairwise

import pytest
from django.contrib.admin.utils import quote
from django.urls import reverse

from batches import leases, registry
from batches.models import Backend, Batch, Line, Part, PausedModel, Status
from common import schema
from tests.batches.conftest import results
from tests.batches.dispatch.failures import NO_ROOM, error_lines, prepared
from tests.conftest import line
from tests.fake_backend import MODEL, Action, error_body

EMBEDDINGS = "/v1/embeddings"


def derived(tokens, model=MODEL):
    return f"obs-ctx-{tokens}/{model}-obs{schema.mark()}"


def needing(tokens, *names, **body):
    """Lines that may need so many tokens, since their answers may be that long."""
    return [line(name, body={"max_tokens": tokens} | body) for name in names]


def context_events(backend):
    """What was done for a model's sake, without descriptions: several parts may ask for one."""
    return [event for event in backend.events if event.startswith(("load", "unload", "derive", "delete"))]


def sent_to(backend):
    return [(seen.key, seen.body["model"]) for seen in backend.seen]


def test_a_part_that_needs_more_gets_a_derived_model_and_answers_under_the_name_asked_for(create, work, backend):
    batch = work.run(create(needing(5000, "a", "b"))["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert {model for _, model in sent_to(backend)} == {derived(8192)}
    output, _ = results(work, batch)
    assert {each["response"]["body"]["model"] for each in output.values()} == {MODEL}
    assert batch["model"] == MODEL
    name = derived(8192)
    assert context_events(backend) == [f"load {MODEL}", f"derive {name}", f"unload {MODEL}", f"load {name}"]
    registry.report_backend()
    assert context_events(backend)[4:] == [f"unload {name}", f"delete {name}"]
    assert backend.derived == {}


def test_what_was_chosen_is_told_with_the_reason(api, create, work, backend, admin_client):
    batch = prepared(create, work, "ab", max_tokens=5000)
    work.drive()
    (told,) = api.get(f"/v1/batches/{batch}/progress").json()["contexts"]
    assert told == {
        "model": MODEL,
        "context_tokens": 8192,
        "reason": f"The longest line may need about 5,100 tokens, prompt and answer, and {MODEL} has 4,096.",
    }
    assert Batch.objects.get().warnings == []
    page = admin_client.get(reverse("admin:batches_batch_change", args=[quote(batch)])).content.decode()
    assert f"{MODEL}: 8,192 tokens. The longest line may need about 5,100 tokens" in page


@pytest.mark.parametrize("tokens", [8, 4093])
def test_a_part_that_fits_is_sent_as_it_is(create, work, backend, tokens):
    batch = work.run(create(needing(tokens, "a"))["id"])
    assert batch["request_counts"]["completed"] == 1
    assert context_events(backend) == [f"load {MODEL}"]
    assert (Part.objects.get().served_by, Part.objects.get().fit_reason) == ("", "")


@pytest.mark.parametrize(("tokens", "context"), [(4095, 8192), (8191, 16_384), (900_000, 131_072)])
def test_the_context_is_the_smallest_power_of_two_that_is_enough(create, work, backend, tokens, context):
    work.run(create(needing(tokens, "a"))["id"])
    assert sent_to(backend) == [("a", derived(context))]


def test_a_model_that_has_enough_by_itself_is_used_as_it_is(create, work, backend):
    backend.context = 32_768
    work.run(create(needing(20_000, "a"))["id"])
    assert context_events(backend) == [f"load {MODEL}"]


def test_the_switch_turns_it_off_for_a_part_that_had_one_too(create, work, backend, settings):
    batch = prepared(create, work, "a", max_tokens=5000)
    Part.objects.update(served_by=derived(8192), fitted_tokens=8192)
    settings.FIT_CONTEXT = False
    assert work.run(batch)["request_counts"]["completed"] == 1
    assert sent_to(backend) == [("a", MODEL)]
    assert context_events(backend) == [f"load {MODEL}"]
    assert "OLLAMA_CONTEXT_LENGTH=8192" in Batch.objects.get().warnings[0]["message"]


def test_embeddings_are_sent_as_they_are(create, work, backend):
    """Their inputs are cut to a batch of tokens, which no context makes larger."""
    lines = [line("a", url=EMBEDDINGS, body={"input": "x" * 15_000})]
    work.run(create(lines, endpoint=EMBEDDINGS)["id"])
    assert not any(event.startswith("derive") for event in backend.events)


# The estimate was too low


def long(custom_id, letters, **body):
    return line(custom_id, body={"messages": [{"role": "user", "content": "x" * letters}]} | body)


def test_a_prompt_that_was_cut_is_sent_again_to_a_context_that_holds_it(create, work, backend):
    batch = work.run(create([long("a", 6000), line("b")])["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert derived(8192) in [model for key, model in sent_to(backend) if key != "b"]
    assert set(Line.objects.values_list("attempts", flat=True)) == {0}
    assert Part.objects.get().context_tokens == 6008


def test_a_prompt_that_the_server_refuses_is_sent_again_too(create, work, backend):
    """Models that are rendered by a template of their own are not cut but refused."""
    message = "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it"
    backend.on("a", Action(400, error_body(message, "exceed_context_size_error")))
    batch = work.run(create([line("a")])["id"])
    assert batch["request_counts"]["completed"] == 1
    assert sent_to(backend) == [("a", MODEL), ("a", derived(16_384))]


def test_a_context_that_was_chosen_too_small_grows(create, work, backend):
    batch = work.run(create([long("a", 15_000), *needing(9000, "b", "c")])["id"])
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    loads = [event for event in context_events(backend) if event.startswith("load")]
    assert loads == [f"load {MODEL}", f"load {derived(16_384)}"]
    assert Part.objects.get().fitted_tokens == 16_384


def test_a_server_that_does_not_count_gets_the_next_power_of_two_until_it_is_enough(create, work, backend):
    no_numbers = Action(400, error_body("the input exceeds the context length", "exceed_context_size_error"))
    backend.on("a", *[no_numbers] * 3)
    batch = work.run(create(needing(600, "a"))["id"])
    assert batch["request_counts"]["completed"] == 1
    assert sent_to(backend) == [("a", MODEL), *(("a", derived(tokens)) for tokens in (8192, 16_384, 32_768))]


def test_a_prompt_beyond_the_models_own_limit_fails(create, work, backend):
    backend.made_for = 8192
    batch = work.run(create([long("a", 9000), line("b")])["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    message = error_lines(work, batch)["a"]["response"]["body"]["error"]["message"]
    assert message.startswith("The prompt has 9000 tokens and the context 8192.")
    assert "made for no more" in message
    assert "obs-ctx" not in message


# What fits onto the card


def test_a_context_that_spills_is_halved_until_all_is_on_the_gpu(api, create, work, backend):
    backend.on_gpu_up_to = 8192
    batch = prepared(create, work, "ab", max_tokens=20_000)
    work.drive()
    assert {model for _, model in sent_to(backend)} == {derived(8192)}
    loads = [event for event in context_events(backend) if event.startswith("load")]
    assert loads == [f"load {each}" for each in (MODEL, derived(32_768), derived(16_384), derived(8192))]
    (warning,) = Batch.objects.get().warnings
    assert warning["code"] == "context_too_small"
    assert "With 16,384 only 90 % of it is on the GPU." in warning["message"]
    assert "OLLAMA_KV_CACHE_TYPE=q8_0" in warning["message"]
    assert "Its lines get 8,192." in warning["message"]
    (told,) = api.get(f"/v1/batches/{batch}/progress").json()["contexts"]
    assert told["context_tokens"] == 8192
    assert "only 90 %" in told["reason"]
    registry.report_backend()
    assert backend.derived == {}


def test_a_model_that_fits_with_no_larger_context_is_used_as_it_is(create, work, backend):
    backend.on_gpu_up_to = 4096
    batch = work.run(create(needing(10_000, "a"))["id"])
    assert batch["request_counts"]["completed"] == 1
    assert sent_to(backend) == [("a", MODEL)]
    (warning,) = Batch.objects.get().warnings
    assert "With 8,192 only 90 % of it is on the GPU." in warning["message"]
    assert "Its lines get 4,096." in warning["message"]


def test_a_prompt_that_is_cut_fails_if_no_larger_context_fits(create, work, backend):
    backend.on_gpu_up_to = 8192
    batch = work.run(create([long("a", 9000), line("b")])["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    message = error_lines(work, batch)["a"]["response"]["body"]["error"]["message"]
    assert "With 16,384 only 90 % of it is on the GPU." in message


@pytest.mark.parametrize("vram", [5_000_000_000, 0])
def test_a_model_that_is_not_wholly_on_a_gpu_by_itself_gets_what_it_needs(create, work, backend, vram):
    backend.sizes = (8_000_000_000, vram)
    work.run(create(needing(10_000, "a"))["id"])
    assert sent_to(backend) == [("a", derived(16_384))]


def test_a_context_that_cannot_be_loaded_is_halved_and_pauses_nothing(create, work, backend):
    backend.on_load.extend([Action(), NO_ROOM])
    batch = work.run(create(needing(10_000, "a"))["id"])
    assert batch["request_counts"]["completed"] == 1
    assert sent_to(backend) == [("a", derived(8192))]
    assert not PausedModel.objects.exists()
    assert "Ollama cannot load it with 16,384." in Batch.objects.get().warnings[0]["message"]


def test_a_drive_that_finds_the_model_loaded_does_not_try_again_what_was_too_large(create, work, backend):
    backend.on_gpu_up_to = 8192
    prepared(create, work, "ab", max_tokens=20_000)
    Part.objects.update(served_by=derived(8192), fitted_tokens=8192, fit_reason="It was chosen before.")
    backend.derived, backend.loaded = {derived(8192): 8192}, [derived(8192)]
    work.drive()
    assert backend.loads == [derived(8192)]  # with our keep-alive
    assert "It was chosen before." in Batch.objects.get().warnings[0]["message"]
    assert not Line.objects.open().exists()


# What happens around it


def test_two_batches_of_one_model_with_different_needs_are_drained_one_after_the_other(create, work, backend):
    work.in_flight = 1
    needs = {"a": 5000, "b": 20_000, "c": 8}
    batches = {name: create(needing(tokens, *(f"{name}{n}" for n in range(4))))["id"] for name, tokens in needs.items()}
    for batch in batches.values():
        work.validate(batch)
    work.drive()
    for batch in batches.values():
        work.finalize(batch)
        assert work.batch(batch)["request_counts"] == {"total": 4, "completed": 4, "failed": 0}
    models = [model for _, model in sent_to(backend)]
    assert sorted(set(models)) == sorted([MODEL, derived(8192), derived(32_768)])
    assert sum(one != other for one, other in pairwise(models)) == 2
    registry.report_backend()
    assert backend.derived == {}


def test_a_drive_that_begins_again_goes_on_with_what_was_chosen(create, work, backend):
    prepared(create, work, "a", max_tokens=5000)
    Part.objects.update(served_by=derived(8192), fitted_tokens=8192, fit_reason="It was chosen before.")
    work.drive()
    assert sent_to(backend) == [("a", derived(8192))]
    assert [each for each in context_events(backend) if "load" in each] == [f"load {derived(8192)}"]
    assert Part.objects.get().fit_reason == "It was chosen before."


def test_a_derived_model_that_someone_deletes_is_made_again(create, work, backend):
    work.in_flight = 1
    prepared(create, work, "abc", max_tokens=5000)
    missing = error_body(f"model '{derived(8192)}' not found", "not_found_error")
    backend.on("b", Action(404, missing))
    work.drive()
    assert not Line.objects.open().exists()
    assert not PausedModel.objects.exists()
    assert context_events(backend).count(f"derive {derived(8192)}") == 2
    assert set(Line.objects.values_list("attempts", flat=True)) == {0}


def test_a_derived_model_that_never_lasts_gives_way_to_the_users_model(create, work, backend):
    prepared(create, work, "a", max_tokens=5000)
    missing = error_body(f"model '{derived(8192)}' not found", "not_found_error")
    backend.on("a", *[Action(404, missing)] * 4)
    work.drive()
    assert sent_to(backend)[-1] == ("a", MODEL)
    assert not Line.objects.open().exists()


def test_a_user_model_that_is_gone_is_told_under_its_own_name(create, work, backend):
    prepared(create, work, "a", max_tokens=5000)
    Part.objects.update(served_by=derived(8192), fitted_tokens=8192)
    backend.refuse_missing, backend.models, backend.loaded = True, ["other:1b"], []
    work.drive()
    paused = PausedModel.objects.get()
    assert paused.model == MODEL
    assert "obs-ctx" not in paused.reason
    assert f"ollama pull {MODEL}" in paused.reason
    assert backend.derived == {}


def test_no_word_of_a_refusal_names_the_derived_model(create, work, backend):
    refusal = error_body(f'"{derived(8192)}" does not support tools', "invalid_request_error")
    backend.always("a", Action(400, refusal))
    batch = work.run(create(needing(5000, "a"))["id"])
    body = error_lines(work, batch)["a"]["response"]["body"]
    assert body["error"]["message"] == f'"{MODEL}" does not support tools'


# What is left behind


@pytest.fixture
def left(create, work, backend):
    """A batch in progress whose lines need a derived model."""
    batch = prepared(create, work, "a", max_tokens=5000)
    registry.report_backend()
    Part.objects.update(served_by=derived(8192), fitted_tokens=8192)
    backend.derived = {derived(8192): 8192, derived(16_384): 16_384}
    return batch


def test_only_our_own_models_that_no_open_batch_needs_are_deleted(left, backend):
    others = "obs-ctx-8192/gemma3:12b-obs000000" if schema.mark() != "000000" else "obs-ctx-8192/x:y-obs111111"
    mine = "obs-ctx-8192/gemma3:12b"
    backend.derived |= {others: 8192, mine: 8192}
    registry.report_backend()
    assert backend.deletes == [derived(16_384)]
    Batch.objects.update(status=Status.CANCELLED)
    registry.report_backend()
    assert backend.deletes == [derived(16_384), derived(8192)]
    assert set(backend.derived) == {others, mine}


def test_what_a_drive_has_loaded_stays_until_the_drive_has_ended(left, backend):
    """The drive of another server, where the part needs no such model, may have written that on the part's row."""
    Part.objects.update(served_by="", fitted_tokens=0)
    with leases.Keeper("drive", backend=Backend.objects.get()):
        Backend.objects.update(loaded_model=derived(8192))
        registry.report_backend()
        assert backend.deletes == [derived(16_384)]
    registry.report_backend()
    assert backend.derived == {}


def test_a_paused_batch_keeps_its_model(left, api, backend):
    api.post(f"/v1/batches/{left}/pause")
    registry.report_backend()
    assert derived(8192) in backend.derived


def test_only_a_derived_model_that_is_loaded_is_unloaded(left, backend):
    """To unload it otherwise would take the user's model off the card, which shares its weights."""
    Batch.objects.update(status=Status.COMPLETED)
    backend.loaded = [MODEL]
    registry.report_backend()
    assert (len(backend.deletes), backend.unloads) == (2, [])


def test_what_cannot_be_deleted_now_is_deleted_by_the_next_probe(left, backend, monkeypatch):
    Batch.objects.update(status=Status.COMPLETED)
    monkeypatch.setattr("batches.backends.connection.Connection.send", _broken)
    registry.report_backend()
    monkeypatch.undo()
    assert backend.deletes == []
    registry.report_backend()
    assert backend.derived == {}


def _broken(*args, **kwargs):
    raise OSError("broken")


def test_derived_models_are_no_models_to_anybody(left, api, backend):
    registry.report_backend()
    assert [each["id"] for each in api.get("/v1/models").json()["data"]] == [MODEL]
    assert api.get(f"/v1/models/{derived(8192).replace('/', '%2F')}").status_code == 404
    assert Backend.objects.get().model_names == [MODEL]


def test_the_admin_names_the_users_model(left, backend, admin_client):
    backend.loaded = [derived(8192)]
    registry.report_backend()
    Backend.objects.update(loaded_model=derived(8192))
    page = admin_client.get(f"/admin/batches/backend/{Backend.objects.get().pk}/change/").content.decode()
    assert f"{MODEL} with a context of 8,192" in page
    assert "obs-ctx" not in page
