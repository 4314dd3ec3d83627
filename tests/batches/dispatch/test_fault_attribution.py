"""Whose fault a failure is: the line's own, or that of a model or server that fails everything."""

from datetime import timedelta

import pytest
from django.utils import timezone

from batches.dispatch import outcomes, questions
from batches.models import Batch, Line, LineState, PausedModel
from tests.batches.dispatch.failures import BOOM, DOWN, NO_ROOM, UNCHARGED, again, charges, error_lines, prepared
from tests.conftest import custom_ids, line
from tests.fake_backend import TRIAL, Action, error_body


def test_what_looks_like_configuration_is_the_lines_affair_if_a_trial_goes_well(create, work, backend):
    backend.always("a", Action(403, b""))
    batch = work.run(create([line("a"), line("b")])["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert error_lines(work, batch)["a"]["response"]["status_code"] == 403


def test_a_few_lines_of_a_model_that_fails_everything_lose_none(create, work, backend):
    for key in ("a", "b", TRIAL):
        backend.always(key, BOOM)
    batch = prepared(create, work, "ab")
    for _ in range(6):
        again(work)
    assert charges() == UNCHARGED
    assert [backend.arrived().count(key) for key in ("a", "b")] == [1, 1]
    backend.forget()
    assert work.run(batch)["request_counts"]["completed"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "action", [Action(400, error_body("no max_tokens")), Action(404, error_body("no such adapter"))]
)
def test_a_model_that_refuses_a_trial_is_in_order(create, work, backend, action):
    backend.always(TRIAL, action)
    for number in range(6):
        backend.always(f"bad-{number}", BOOM)
    batch = work.run(create([line(f"bad-{number}") for number in range(6)] + [line("good")])["id"])
    assert batch["request_counts"] == {"total": 7, "completed": 1, "failed": 6}


@pytest.mark.slow
def test_many_bad_lines_in_a_row_do_not_pause_a_model_in_order(create, work, backend):
    names = [f"bad-{number}" for number in range(12)]
    for name in names:
        backend.always(name, Action(500, error_body("invalid tool call arguments")))
    batch = work.run(create([line(name) for name in [*names, "good"]])["id"])
    assert batch["request_counts"] == {"total": 13, "completed": 1, "failed": 12}
    assert set(Line.objects.exclude(custom_id="good").values_list("attempts", flat=True)) == {3}
    assert TRIAL in backend.arrived()
    assert not PausedModel.objects.exists()


def test_what_looks_like_no_room_is_the_lines_affair_if_a_trial_goes_well(create, work, backend):
    """A prompt so long that its own context does not fit beside the model, say."""
    work.in_flight = 1  # among several nobody could tell whose fault it is (test_company)
    backend.always("a", NO_ROOM)
    batch = work.run(create([line("a"), line("b")])["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert backend.arrived().count("a") == 3
    assert not PausedModel.objects.exists()


def test_a_line_that_brings_the_backend_down_each_time_is_given_up_and_its_neighbours_pay_nothing(
    create, work, backend
):
    """The server is not there again at once: what comes behind the line fails too, and so does a trial."""
    work.in_flight = 1  # among several nobody could tell whose fault it is (test_sharing)
    for key in ("poison", "b", "c", TRIAL):
        backend.always(key, DOWN)
    batch = prepared(create, work, ["a", "poison", "b", "c"])
    for _ in range(3):
        again(work)
    assert PausedModel.objects.exists()
    assert charges(custom_id="poison") == {(LineState.PENDING, 0, 1)}
    assert charges(custom_id__in=["b", "c"]) == UNCHARGED

    backend.forget()
    backend.always("poison", DOWN)
    done = work.run(batch)
    assert done["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    assert error_lines(work, done)["poison"]["error"]["code"] == "backend_crash"
    arrived = backend.arrived()
    assert arrived.count("poison") == 4
    crashes = dict(Line.objects.values_list("custom_id", "backend_crashes"))
    assert crashes == {"a": 0, "poison": 4, "b": 0, "c": 0}


@pytest.mark.slow
def test_a_line_that_wedges_the_backend_is_given_up_after_its_second_timeout(
    create, work, backend, settings, monkeypatch
):
    work.in_flight = 1  # among several nobody could tell whose fault it is (test_sharing)
    settings.LINE_TIMEOUT_S = 1.0
    monkeypatch.setattr(questions, "TRIAL_TIMEOUT_S", 1.0)
    hang = Action(hang=True)
    backend.always("a", hang)
    backend.on(TRIAL, hang)
    batch = prepared(create, work, ["first", "a", "b"])
    work.drive()
    assert charges(custom_id="a") == {(LineState.PENDING, 2, 0)}
    again(work)
    # The trial before its last try was not answered either.
    assert "takes requests for gemma3:12b and does not answer them" in PausedModel.objects.get().reason
    done = work.run(batch)
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert error_lines(work, done)["a"]["error"]["code"] == "request_timeout"
    assert backend.arrived().count("a") == 2


@pytest.mark.parametrize(
    "refusal",
    [
        error_body("Response with id 'resp_my_model_1' not found.", "invalid_request_error")
        | {"error": {"message": "Response with id 'resp_my_model_1' not found.", "param": "response_id", "code": 404}},
        error_body("Prompt template 'model' not found", "not_found_error"),
        error_body("model_file 'x' not found", "not_found_error"),
        error_body("model 'other' not found", "not_found_error"),
        {"error": {"message": "No such thing.", "param": "model", "code": "model_not_found"}},
        {"detail": "The file 'model' was not found"},
        b"<h1>model gone</h1>",
    ],
)
def test_what_one_line_is_told_is_no_evidence_about_its_model(create, work, backend, refusal):
    work.in_flight = 1
    backend.always("odd", Action(404, refusal))
    batch = work.run(create([line(name) for name in ["odd", "a", "b"]])["id"])
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert error_lines(work, batch)["odd"]["response"]["status_code"] == 404
    assert not PausedModel.objects.exists()


def test_embeddings_outlive_a_runner_that_dies(create, work, backend):
    """Ollama answers 400 for it, as for a fault of the input."""
    for name, words in (("a", "llama-server process no longer running: unknown"), ("b", "connection refused")):
        backend.on(name, Action(400, error_body(words, "invalid_request_error")))
    backend.always("bad", Action(400, error_body("invalid input type", "invalid_request_error")))
    lines = [line(name, url="/v1/embeddings") for name in ("a", "b", "bad", "c")]
    batch = work.run(create(lines, endpoint="/v1/embeddings")["id"])
    assert batch["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    assert list(error_lines(work, batch)) == ["bad"]
    assert backend.arrived().count("bad") == 1


def test_a_try_that_would_end_after_the_window_is_not_begun(create, work, backend, monkeypatch):
    monkeypatch.setattr(outcomes, "LEAST_BACKOFF_S", 3600.0)
    monkeypatch.setattr(outcomes, "MOST_BACKOFF_S", 3600.0)
    backend.always("b", BOOM)  # also alone: a failure beside "a" is not charged
    batch = prepared(create, work, "ab")
    Batch.objects.update(expires_at=timezone.now() + timedelta(minutes=5))
    work.drive()
    assert charges(custom_id="b") == {(LineState.FAILED, 1, 0)}
    done = work.run(batch)
    assert (done["status"], error_lines(work, done)["b"]["response"]["status_code"]) == ("completed", 500)


def test_a_line_that_is_killed_with_its_worker_a_hundred_times_is_not_given_up(create, work, backend):
    batch = prepared(create, work, "a")
    Line.objects.update(lost_claims=100)
    assert custom_ids(work.content(work.run(batch)["output_file_id"])) == ["a"]
