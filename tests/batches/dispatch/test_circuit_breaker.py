"""Whose fault a failure is, and what waits for it: a line, one model, or the whole backend."""

from datetime import timedelta

import pytest
from django.utils import timezone

from batches import registry
from batches.dispatch import dispatcher, questions
from batches.models import Backend, Batch, Line, LineState, PausedModel
from batches.status import health
from tests.conftest import custom_ids, line
from tests.fake_backend import TRIAL, Action, error_body

BOOM = Action(500, error_body("boom"))
NO_ROOM = Action(500, error_body("model requires more system memory (9.9 GiB) than is available"))
UNCHARGED = {(LineState.PENDING, 0, 0)}


def charges(**which):
    return set(Line.objects.filter(**which).values_list("state", "attempts", "backend_crashes"))


def again(work):
    """Another drive, with all waiting over."""
    Line.objects.update(not_before=None)
    Backend.objects.update(resume_at=None)
    PausedModel.objects.update(resume_at=timezone.now() - timedelta(seconds=1))
    work.drive()


def prepared(create, work, names, **body):
    batch = create([line(name, body=body) for name in names])["id"]
    work.validate(batch)
    return batch


def error_lines(work, batch):
    return {each["custom_id"]: each for each in work.content(batch["error_file_id"])}


# The whole backend


def test_a_backend_that_is_away_pauses_the_work_and_charges_nobody(create, work, backend):
    batch = prepared(create, work, "ab")
    known = registry.report_backend()
    backend.stop()

    dispatcher.Dispatcher(known, should_stop=lambda: False, wake_control=lambda batch_id: None).run()

    seen = Backend.objects.get()
    assert seen.is_paused
    assert "Start it: ollama serve" in seen.pause_reason
    assert charges() == UNCHARGED
    assert health.summary()["reason"] is not None

    backend.start()
    assert work.run(batch)["request_counts"]["completed"] == 2
    assert not Backend.objects.get().is_paused


def test_a_refused_host_header_pauses_with_what_to_change(create, work, backend):
    for key in ("a", "b", TRIAL):
        backend.on(key, Action(403, b""))
    batch = prepared(create, work, "abc")

    work.drive()

    assert "Host header" in Backend.objects.get().pause_reason
    asked = backend.arrived()
    assert sorted(asked) == sorted(["a", "b", TRIAL])
    assert charges() == UNCHARGED
    work.drive()  # too early for another trial
    assert backend.arrived() == asked
    assert work.run(batch)["request_counts"]["completed"] == 3


def test_what_looks_like_configuration_is_the_lines_affair_if_a_trial_goes_well(create, work, backend):
    backend.always("a", Action(403, b""))
    batch = work.run(create([line("a"), line("b")])["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert error_lines(work, batch)["a"]["response"]["status_code"] == 403


# One model


DOWN = Action(reset=True, delay_s=0.15)  # not at once: that would be a kept connection that just closes


@pytest.mark.parametrize("action", [BOOM, DOWN], ids=["500", "down"])
def test_a_model_that_fails_everything_pauses_and_charges_nobody(create, work, backend, action):
    names = [f"id-{number}" for number in range(40)]
    for key in [*names, TRIAL]:
        backend.always(key, action)
    batch = prepared(create, work, names)

    pauses = []
    for _ in range(4):
        again(work)
        seen = PausedModel.objects.get()
        pauses.append(seen.resume_at - timezone.now())

    assert charges() == UNCHARGED
    assert "fails every request of gemma3:12b, the plainest too" in seen.reason
    assert seen.reason in health.summary()["reason"]
    # Five lines, maybe one in flight beside them, and a trial; later the trial alone, each time after a longer pause.
    assert len(set(backend.arrived()) - {TRIAL}) in (5, 6)
    assert backend.arrived().count(TRIAL) == 4
    assert pauses == sorted(pauses)
    assert pauses[-1] > pauses[0] * 3
    work.drive()  # too early
    assert backend.arrived().count(TRIAL) == 4

    backend.forget()
    again(work)
    assert backend.arrived().count(TRIAL) == 5  # one is enough
    assert not PausedModel.objects.exists()
    assert work.run(batch)["request_counts"] == {"total": 40, "completed": 40, "failed": 0}


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


def test_an_endpoint_that_the_server_does_not_have_is_named(create, work, backend):
    for key in ("a", TRIAL):
        backend.always(key, Action(404, b"404 page not found"))
    work.validate(create([line("a", url="/v1/responses")], endpoint="/v1/responses")["id"])
    other = create([line("b")])["id"]
    work.validate(other)
    for _ in range(2):
        again(work)
    assert "has no /v1/responses (HTTP 404). Update it, or check its address." in PausedModel.objects.get().reason
    assert work.run(other)["request_counts"]["completed"] == 1


def test_other_models_go_on(create, work, backend):
    backend.models = ["gemma3:12b", "other:1b"]
    for key in ("a", TRIAL):
        backend.always(key, NO_ROOM)
    broken = create([line("a"), line("b", body={"model": "other:1b"})])["id"]
    later = create([line("c", body={"model": "other:1b"})])["id"]
    for batch in (broken, later):
        work.validate(batch)
    work.drive()
    assert backend.arrived()[:2] == ["a", TRIAL]
    assert sorted(backend.arrived()[2:]) == ["b", "c"]
    assert PausedModel.objects.get().model == "gemma3:12b"
    assert work.run(later)["status"] == "completed"
    assert work.batch(broken)["request_counts"] == {"total": 2, "completed": 1, "failed": 0}


def test_other_models_get_their_turn_beside_one_that_hangs(create, work, backend, settings):
    """Each trial of it takes as long as a loading may, and is followed by as long a time for the others."""
    settings.MODEL_LOAD_TIMEOUT_S = 1.0
    backend.models = ["gemma3:12b", "other:1b"]
    backend.on_load.append(Action(delay_s=2))
    batch = create([line("a"), line("b", body={"model": "other:1b"})])["id"]
    work.validate(batch)
    work.drive()
    assert backend.arrived() == ["b"]  # by the same drive
    assert backend.loads == ["gemma3:12b", "other:1b"]
    PausedModel.objects.update(failed_trials=0)
    PausedModel.pause(Backend.objects.get(), "/v1/chat/completions", "gemma3:12b", "x", at_least=timedelta(minutes=15))
    assert PausedModel.objects.get().resume_at > timezone.now() + timedelta(minutes=14)


def test_of_two_drives_one_tries_a_paused_model_again(db):
    paused = PausedModel.pause(registry.own_backend(), "/v1/embeddings", "m", "x", at_least=timedelta())
    assert not paused.take()  # too early
    PausedModel.objects.update(resume_at=timezone.now() - timedelta(seconds=1))
    assert paused.take()
    assert not paused.take()


@pytest.mark.parametrize(
    "action", [Action(400, error_body("no max_tokens")), Action(404, error_body("model 'x' gone"))]
)
def test_a_model_that_refuses_a_trial_is_in_order(create, work, backend, action):
    backend.always(TRIAL, action)
    for number in range(6):
        backend.always(f"bad-{number}", BOOM)
    batch = work.run(create([line(f"bad-{number}") for number in range(6)] + [line("good")])["id"])
    assert batch["request_counts"] == {"total": 7, "completed": 1, "failed": 6}


def test_many_bad_lines_in_a_row_do_not_pause_a_model_in_order(create, work, backend):
    names = [f"bad-{number}" for number in range(12)]
    for name in names:
        backend.always(name, Action(500, error_body("invalid tool call arguments")))
    batch = work.run(create([line(name) for name in [*names, "good"]])["id"])
    assert batch["request_counts"] == {"total": 13, "completed": 1, "failed": 12}
    assert set(Line.objects.exclude(custom_id="good").values_list("attempts", flat=True)) == {3}
    assert TRIAL in backend.arrived()
    assert not PausedModel.objects.exists()


def test_nobody_waits_for_a_model_that_nobody_wants_any_more(api, create, work, backend):
    for key in ("a", TRIAL):
        backend.always(key, NO_ROOM)
    broken = prepared(create, work, "a")
    work.drive()
    assert PausedModel.objects.exists()
    api.post(f"/v1/batches/{broken}/cancel")
    work.finalize(broken)
    again(work)
    assert not PausedModel.objects.exists()
    assert backend.arrived() == ["a", TRIAL]


def test_a_backend_that_was_restarted_is_tried_at_once(create, work, backend):
    for key in ("a", TRIAL):
        backend.on(key, NO_ROOM)
    prepared(create, work, "a")
    work.drive()
    backend.stop()
    assert "does not answer" in registry.report_backend().pause_reason
    assert not PausedModel.objects.all().due().exists()
    backend.start()
    assert not registry.report_backend().is_paused
    assert PausedModel.objects.all().due().exists()


def test_good_answers_are_stored_before_a_trial(create, work, backend):
    backend.always("c", Action(403, b""))
    stored = []

    def look():
        if TRIAL in backend.arrived():
            stored.append(Batch.objects.get().completed)
        return False

    backend.on(TRIAL, Action(delay_s=1.5))
    prepared(create, work, "abc")
    work.drive(should_stop=look)
    assert stored[0] == 2


# Loading


def test_a_model_is_loaded_before_its_first_line_and_its_lines_stay_together(create, work, backend):
    backend.models = ["gemma3:12b", "other:1b"]
    models = ["gemma3:12b", "gemma3:12b", "other:1b", "gemma3:12b"]
    batch = work.run(create([line(f"id-{n}", body={"model": model}) for n, model in enumerate(models)])["id"])
    assert batch["request_counts"]["completed"] == 4
    assert backend.loads == ["gemma3:12b", "other:1b"]


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
    assert "Ollama cannot load gemma3:12b (HTTP 500)" in PausedModel.objects.get().reason
    assert work.run(batch)["request_counts"]["completed"] == 2


def test_loading_has_a_time_limit_of_its_own(create, work, backend, settings):
    settings.LINE_TIMEOUT_S, settings.MODEL_LOAD_TIMEOUT_S = 0.2, 30
    backend.on_load.append(Action(delay_s=1))
    assert work.run(prepared(create, work, "a"))["request_counts"]["completed"] == 1

    settings.MODEL_LOAD_TIMEOUT_S = 0.3
    backend.on_load.append(Action(delay_s=3))
    prepared(create, work, "b")
    work.drive()
    assert "Restart it: systemctl restart ollama" in PausedModel.objects.get().reason


def test_lines_of_a_model_that_cannot_be_loaded_for_an_hour_fail_with_the_reason(create, work, backend):
    for key in ("a", "b", TRIAL):
        backend.always(key, NO_ROOM)
    backend.models = ["gemma3:12b", "other:1b"]
    batch = create([line("a"), line("b"), line("c", body={"model": "other:1b"})])["id"]
    work.validate(batch)
    work.drive()
    assert work.batch(batch)["request_counts"] == {"total": 3, "completed": 1, "failed": 0}
    PausedModel.objects.update(since=timezone.now() - timedelta(minutes=61))
    again(work)
    done = work.run(batch)
    assert done["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    for name in "ab":
        refusal = error_lines(work, done)[name]["response"]
        assert refusal["status_code"] == 500
        assert "requires more system memory" in refusal["body"]["error"]["message"]
    assert not PausedModel.objects.exists()


def test_the_hour_begins_anew_with_another_reason_and_when_the_backend_comes_back(create, work, backend):
    for key in ("a", TRIAL):
        backend.always(key, BOOM)
    batch = prepared(create, work, "a")
    for _ in range(2):
        again(work)
    hour_ago = timezone.now() - timedelta(minutes=61)
    PausedModel.objects.update(since=hour_ago)
    backend.always(TRIAL, NO_ROOM)
    again(work)
    assert charges() == UNCHARGED
    PausedModel.objects.update(since=hour_ago)
    backend.stop()
    registry.report_backend()
    backend.start()
    registry.report_backend()
    again(work)
    assert charges() == UNCHARGED
    backend.forget()
    assert work.run(batch)["request_counts"]["completed"] == 1


def test_what_looks_like_no_room_is_the_lines_affair_if_a_trial_goes_well(create, work, backend):
    """A prompt so long that its own context does not fit beside the model, say."""
    backend.always("a", NO_ROOM)
    batch = work.run(create([line("a"), line("b")])["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert backend.arrived().count("a") == 3
    assert not PausedModel.objects.exists()


# One line


def test_a_line_that_brings_the_backend_down_twice_is_given_up_and_its_neighbours_pay_nothing(create, work, backend):
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
    assert arrived.count("poison") == 2
    crashes = dict(Line.objects.values_list("custom_id", "backend_crashes"))
    assert crashes == {"a": 0, "poison": 2, "b": 0, "c": 0}


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


def test_a_try_that_would_end_after_the_window_is_not_begun(create, work, backend):
    backend.on("b", BOOM)
    batch = prepared(create, work, "ab")
    Batch.objects.update(expires_at=timezone.now() + timedelta(seconds=0.7))  # a backoff is longer
    work.drive()
    assert charges(custom_id="b") == {(LineState.FAILED, 1, 0)}
    done = work.run(batch)
    assert (done["status"], error_lines(work, done)["b"]["response"]["status_code"]) == ("completed", 500)


def test_a_line_that_is_killed_with_its_worker_a_hundred_times_is_not_given_up(create, work, backend):
    batch = prepared(create, work, "a")
    Line.objects.update(lost_claims=100)
    assert custom_ids(work.content(work.run(batch)["output_file_id"])) == ["a"]
