"""What waits for a failure to be over: one model, or the whole backend."""

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from batches import lifecycle, registry
from batches.dispatch import dispatcher
from batches.models import Backend, Batch, PausedModel
from batches.status import health
from tests.batches.dispatch.failures import BOOM, DOWN, NO_ROOM, UNCHARGED, again, charges, error_lines, prepared
from tests.conftest import line
from tests.fake_backend import TRIAL, Action, error_body

# The whole backend


def test_a_backend_that_is_away_pauses_the_work_and_charges_nobody(create, work, backend):
    batch = prepared(create, work, "ab")
    known = registry.report_backend()
    backend.stop()

    dispatcher.Dispatcher(known, should_stop=lambda: False, wake_control=lambda batch_id: None).run()

    seen = Backend.objects.get()
    assert seen.is_paused
    assert "Start it: systemctl start ollama" in seen.pause_reason
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


# One model


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
    # Five lines, maybe one in flight beside them, and a trial; later the trial alone, each time after a longer pause. A
    # server that breaks down gets the trial before any other line.
    assert len(set(backend.arrived()) - {TRIAL}) in ((2,) if action is DOWN else (5, 6))
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


@pytest.mark.parametrize("missing", [b"404 page not found", b"", {"detail": "Not Found"}, error_body("Not Found")])
def test_lines_for_an_endpoint_that_the_server_has_not_fail_at_once(create, work, backend, missing):
    for key in ("a", "b", "c", TRIAL):
        backend.always(key, Action(404, missing))
    lines = [line(name, url="/v1/responses") for name in "abc"]
    done = work.run(create(lines, endpoint="/v1/responses")["id"])
    assert done["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    for each in error_lines(work, done).values():
        error = each["response"]["body"]["error"]
        assert error["message"].startswith("This Ollama has no /v1/responses. Update Ollama")
        assert (each["response"]["status_code"], error["code"]) == (404, "unknown_url")
    assert len(backend.arrived()) <= 4  # what was in flight, and a trial for each
    assert not PausedModel.objects.exists()
    assert work.run(create([line("d")])["id"])["request_counts"]["completed"] == 1


def test_one_lines_page_of_a_proxy_says_nothing_about_the_endpoint(create, work, backend):
    backend.always("a", Action(404, b"<h1>Not Found</h1>"))
    done = work.run(create([line("a"), line("b")])["id"])
    assert done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert error_lines(work, done)["a"]["response"]["status_code"] == 404


def test_an_endpoint_at_an_address_that_lists_no_models_is_waited_for(create, work, backend):
    """Somebody else answers there, or a server that is being replaced."""
    prepared(create, work, "a")
    for key in ("a", TRIAL):
        backend.always(key, Action(404, b"404 page not found"))
    backend.lists_models = False
    for _ in range(2):
        again(work)
    assert "has no /v1/chat/completions (HTTP 404)" in PausedModel.objects.get().reason
    assert charges() == UNCHARGED


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


@pytest.mark.slow
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


@pytest.mark.parametrize("end", ["cancel", "expire"])
def test_health_forgets_a_paused_model_with_the_last_batch_that_wanted_it(api, create, work, backend, end):
    for key in ("a", TRIAL):
        backend.always(key, NO_ROOM)
    batch = prepared(create, work, "a")
    work.drive()
    reason = PausedModel.objects.get().reason
    assert reason in health.summary()["reason"]
    if end == "cancel":
        api.post(f"/v1/batches/{batch}/cancel")
    else:
        Batch.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        lifecycle.close_finished(lambda batch_id: None)
    work.finalize(batch)
    assert reason not in (health.summary()["reason"] or "")


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


@pytest.mark.slow
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


# A model that cannot be loaded


WHY = "llama-server process has terminated: error loading model: unknown architecture 'x'"


@pytest.mark.parametrize(
    "body", [{"error": WHY}, error_body(WHY), {"error": json.dumps({"error": {"code": 500, "message": WHY}})}]
)
def test_ollamas_own_words_say_why_it_cannot_load_a_model(create, work, backend, body):
    backend.on_load.append(Action(500, body))
    prepared(create, work, "a")
    work.drive()
    reason = PausedModel.objects.get().reason
    assert reason == f"Ollama cannot load gemma3:12b (HTTP 500: {WHY}). See its log."


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


def test_the_hour_goes_on_while_the_server_names_other_numbers(create, work, backend):
    """The memory that is free differs at each trial."""
    prepared(create, work, "a")
    since = set()
    for free in ("3.1", "3.0", "12"):
        words = f"model requires more system memory (5.2 GiB) than is available ({free} GiB)"
        backend.on_load.append(Action(500, error_body(words)))
        again(work)
        assert f"({free} GiB)" in PausedModel.objects.get().reason
        since.add(PausedModel.objects.get().since)
    assert len(since) == 1


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
