"""What will not fit is told on the batch, with the setting to change, before its first line is sent."""

import logging

import pytest

from batches import registry
from batches.backends import kind_named, open_calls
from batches.backends.in_flight import Call
from batches.backends.replies import Verdict
from batches.backends.states import ModelState
from batches.dispatch import context_fit
from batches.models import Batch, Part
from tests.conftest import line
from tests.fake_backend import MODEL

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
GIB = 2**30


def part_of(context_tokens=0, *, model=MODEL, endpoint=CHAT):
    return Part(batch=Batch(endpoint=endpoint), model=model, context_tokens=context_tokens)


def messages(part, state):
    return [each["message"] for each in context_fit.check(part, state)]


def test_a_context_that_is_too_small_names_what_is_needed_and_the_setting():
    state = ModelState("ollama", context_tokens=4096, most_context_tokens=131_072)
    (warning,) = context_fit.check(part_of(9187), state)
    assert (warning["code"], warning["model"]) == ("context_too_small", MODEL)
    assert "may need about 9,200 tokens, prompt and answer, and its context has 4,096." in warning["message"]
    assert "OLLAMA_CONTEXT_LENGTH=16384" in warning["message"]


@pytest.mark.parametrize(
    ("needed", "state"),
    [
        (4096, ModelState("ollama", context_tokens=4096)),
        (0, ModelState("ollama", context_tokens=4096)),  # not estimated
        (9000, ModelState("ollama")),  # the server does not say
    ],
)
def test_a_line_that_fits_or_of_which_nothing_is_known_is_no_warning(needed, state):
    assert messages(part_of(needed), state) == []


def test_no_setting_is_advised_that_the_model_cannot_follow():
    (message,) = messages(part_of(9000), ModelState("ollama", context_tokens=8192, most_context_tokens=8192))
    assert "OLLAMA_CONTEXT_LENGTH" not in message
    assert "The model was made for no more" in message
    (message,) = messages(part_of(9000), ModelState("ollama", context_tokens=4096, most_context_tokens=8192))
    assert "OLLAMA_CONTEXT_LENGTH=8192" in message
    assert "made for 8,192 at most" in message
    (message,) = messages(part_of(9000), ModelState("ollama", most_context_tokens=8192))  # not loaded
    assert "has 8,192. The model was made for no more" in message


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("vllm", "--max-model-len 16384"),
        ("llama-server", "--ctx-size 16384"),
        ("openai", "a context of 16,384 tokens"),
    ],
)
def test_each_kind_has_a_setting_of_its_own(kind, setting):
    assert setting in messages(part_of(9000), ModelState(kind, context_tokens=4096))[0]


def test_a_model_that_spilled_to_the_cpu():
    (warning,) = context_fit.check(part_of(), ModelState("ollama", size=10 * GIB, size_vram=7 * GIB + GIB // 8))
    assert warning["code"] == "model_on_cpu"
    assert warning["message"].startswith(f"Only 71 % of {MODEL} is on the GPU")
    assert "OLLAMA_NUM_PARALLEL" in warning["message"]
    assert messages(part_of(), ModelState("ollama", size=10 * GIB))[0].startswith(f"{MODEL} is not on a GPU")
    assert messages(part_of(), ModelState("ollama", size=10 * GIB, size_vram=10 * GIB)) == []


@pytest.mark.parametrize(
    ("endpoint", "capabilities", "warned"),
    [
        (EMBEDDINGS, {"completion", "vision"}, True),
        (EMBEDDINGS, {"embedding"}, False),
        (EMBEDDINGS, set(), False),
        (CHAT, {"embedding"}, True),
        (CHAT, {"completion", "tools"}, False),
        (CHAT, set(), False),
    ],
)
def test_a_model_that_was_made_for_something_else(endpoint, capabilities, warned):
    found = context_fit.check(part_of(endpoint=endpoint), ModelState("ollama", capabilities=frozenset(capabilities)))
    assert [each["code"] for each in found] == ["wrong_model"] * warned


@pytest.fixture
def part(create, work):
    batch = create([line("a")])
    work.validate(batch["id"])
    part = Batch.objects.get(pk=batch["id"]).parts.get()
    part.context_tokens = 9000
    part.save()
    return part


def stored(part):
    return Batch.objects.get(pk=part.batch_id).warnings


TIGHT = ModelState("ollama", context_tokens=4096)


def test_what_is_found_is_stored_once_and_logged_once(part, backend, caplog):
    with caplog.at_level(logging.WARNING, "batches.dispatch.context_fit"):
        context_fit.report(part, TIGHT)
        context_fit.report(part, TIGHT)
    assert stored(part) == context_fit.check(part, TIGHT)
    assert len(caplog.records) == 1
    assert part.batch_id in caplog.text
    assert "OLLAMA_CONTEXT_LENGTH=16384" in caplog.text


def test_a_part_that_another_drive_gave_another_context_meanwhile_is_compared_all_the_same(part, backend):
    fit = context_fit.ContextFit()
    assert fit.has_to_ask(part)
    part.served_by = "obs-ctx-16384/gemma3:12b"  # as the row says now
    fit.note(part.model, TIGHT)
    assert stored(part)


def test_what_is_found_later_takes_the_place_of_what_was_found_before(part, backend, caplog):
    spilled = [ModelState("ollama", size=10, size_vram=vram) for vram in (7, 6)]
    others = [{"code": "slow", "message": "from elsewhere"}, *context_fit.check(part_of(9000, model="other"), TIGHT)]
    Batch.objects.filter(pk=part.batch_id).update(warnings=others)
    context_fit.report(part, spilled[0])
    assert stored(part) == others + context_fit.check(part, spilled[0])
    context_fit.report(part, spilled[1])
    assert stored(part) == others + context_fit.check(part, spilled[1])
    caplog.clear()
    context_fit.report(part, ModelState("ollama"))  # mended
    assert stored(part) == others
    assert caplog.text == ""


@pytest.fixture
def calls(backend, db):
    """The calls of a drive."""
    pool = open_calls(registry.report_backend().kind)
    yield pool
    pool.close()


def finished(calls, call):
    calls.submit(call)
    for _ in range(50):
        if done := calls.wait(0.1):
            return done[0]
    raise AssertionError("the call never came back")


def test_the_question_is_put_in_a_thread_of_the_calls(calls, backend):
    backend.context, backend.sizes = 8192, (9_000_000_000, 6_000_000_000)
    call = finished(calls, Call(None, "", {}, 10.0, ask=lambda ask: kind_named("ollama").describe(ask, MODEL)))
    assert call.verdict is Verdict.ANSWERED
    assert call.result == ModelState(
        "ollama", 8192, 131_072, size=9_000_000_000, size_vram=6_000_000_000, capabilities=frozenset({"completion"})
    )


def test_a_question_to_a_server_that_is_away_says_so_and_has_no_result(calls, backend):
    backend.stop()
    call = finished(calls, Call(None, "", {}, 10.0, ask=lambda ask: ask("/api/ps", None)))
    assert (call.verdict, call.result) == (Verdict.UNREACHABLE, None)


def test_a_bug_fails_its_call_and_not_the_thread(calls):
    call = finished(calls, Call(None, "", {}, 10.0, ask=lambda ask: 1 / 0))
    assert (call.verdict, call.reply.code, call.result) == (Verdict.FAILED, "internal_error", None)
    assert finished(calls, Call(None, "", {}, 10.0, ask=lambda ask: 1)).result == 1


def test_a_question_can_be_cut(calls, backend):
    backend.native_delay_s = 30.0
    body = {"model": MODEL, "truncate": False, "messages": [{"content": "x"}]}
    call = Call(None, "", {}, 0.3, ask=lambda ask: ask("/api/chat", body))
    assert finished(calls, call).result is None
    assert call.timed_out
    assert call.duration_s < 5.0
