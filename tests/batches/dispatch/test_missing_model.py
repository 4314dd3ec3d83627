"""A model that goes missing after its lines were taken in: they wait for it, uncharged, and fail after long."""

from datetime import timedelta

import pytest
from django.utils import timezone

from batches import registry
from batches.models import Backend, Batch, LineState, PausedModel
from batches.status import health, progress
from tests.batches.dispatch.failures import UNCHARGED, again, charges, error_lines, prepared
from tests.conftest import line
from tests.fake_backend import MODEL, FakeBackend

MISSING = f"does not have the model {MODEL} any more."
PULL = f"Install it: ollama pull {MODEL}"


@pytest.fixture
def backend(backend):
    backend.refuse_missing = True
    return backend


def gone(backend, *left):
    """`ollama rm`, or another store: the model is neither listed nor answered for."""
    backend.models = list(left)


def test_it_pauses_with_the_hint_to_pull_it_and_goes_on_when_it_is_there_again(create, work, backend):
    batch = prepared(create, work, "abcd")
    gone(backend, "other:1b")
    for _ in range(3):
        again(work)
    paused = PausedModel.objects.get()
    assert MISSING in paused.reason
    assert "It lists other:1b." in paused.reason
    assert paused.reason.endswith(PULL)
    assert paused.reason in health.summary()["reason"]
    assert progress.waiting_for(Batch.objects.get()) == paused.reason
    assert charges() == UNCHARGED

    gone(backend, "other:1b", MODEL)
    registry.report_backend()
    assert PausedModel.objects.all().due().exists()  # at once, whatever is left of the pause
    work.drive()
    assert not PausedModel.objects.exists()
    assert work.run(batch)["request_counts"] == {"total": 4, "completed": 4, "failed": 0}


@pytest.mark.parametrize("in_flight", [1, 4])
def test_one_that_goes_while_lines_are_sent_loses_none(create, work, backend, monkeypatch, in_flight):
    work.in_flight = in_flight
    names = [f"id-{number:02}" for number in range(12)]
    batch = prepared(create, work, names)
    take = backend.take

    def remove(seen):
        if seen.key == "id-05":
            gone(backend)
        return take(seen)

    monkeypatch.setattr(backend, "take", remove)
    work.drive()
    assert MISSING in PausedModel.objects.get().reason
    assert (Batch.objects.get().failed, 0 < Batch.objects.get().completed < len(names)) == (0, True)
    assert charges(state=LineState.PENDING) == UNCHARGED
    monkeypatch.setattr(backend, "take", take)
    gone(backend, MODEL)
    assert work.run(batch)["request_counts"] == {"total": 12, "completed": 12, "failed": 0}


def test_a_server_that_loads_nothing_itself_is_asked_by_a_trial(create, work, backend, monkeypatch):
    monkeypatch.setattr("batches.backends.ollama.Ollama.load", lambda *_: None)
    batch = prepared(create, work, "ab")
    gone(backend)
    work.drive()
    assert MISSING in PausedModel.objects.get().reason
    assert charges() == UNCHARGED
    gone(backend, MODEL)
    assert work.run(batch)["request_counts"]["completed"] == 2


def test_an_empty_store_is_told_as_that(create, work, backend):
    prepared(create, work, "a")
    gone(backend)
    work.drive()
    reason = PausedModel.objects.get().reason
    assert "It lists no model. Was it started as another user, or with another OLLAMA_MODELS" in reason


def test_other_models_go_on(create, work, backend):
    backend.models = [MODEL, "other:1b"]
    batch = create([line("a"), line("b", body={"model": "other:1b"})])["id"]
    work.validate(batch)
    gone(backend, "other:1b")
    work.drive()
    assert work.batch(batch)["request_counts"] == {"total": 2, "completed": 1, "failed": 0}


def test_its_lines_fail_after_the_patience_with_the_hint_and_the_list(create, work, backend):
    batch = prepared(create, work, "ab")
    gone(backend, "other:1b", "tiny:latest")
    again(work)
    PausedModel.objects.update(since=timezone.now() - timedelta(minutes=59))
    gone(backend, "other:1b")  # another list is the same reason
    again(work)
    assert charges() == UNCHARGED
    assert PausedModel.objects.get().resume_at < timezone.now() + timedelta(seconds=70)  # not after the hour
    PausedModel.objects.update(since=timezone.now() - timedelta(minutes=60))
    again(work)
    done = work.run(batch)
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 2, "completed": 0, "failed": 2})
    for each in error_lines(work, done).values():
        error = each["response"]["body"]["error"]
        assert (each["response"]["status_code"], error["code"], error["param"]) == (404, "model_not_found", "model")
        assert error["message"] == f"Ollama at {backend.url} {MISSING} It lists other:1b. {PULL}"
    assert not PausedModel.objects.exists()


@pytest.mark.parametrize(("patience_s", "failed"), [(0, 1), (0.5, 0), (3600, 0)])
def test_the_patience_is_a_setting(create, work, backend, settings, patience_s, failed):
    settings.MODEL_MISSING_PATIENCE_S = patience_s
    batch = prepared(create, work, "a")
    gone(backend)
    work.drive()
    work.fail_lines(batch)
    assert Batch.objects.get().failed == failed
    if not failed and patience_s < 5:
        assert PausedModel.objects.get().resume_at < timezone.now() + timedelta(seconds=2)


def test_a_model_that_nobody_can_pull_is_to_be_created_again(create, work, backend):
    backend.models = ["gpt-4o:latest", "gemma3:12b"]
    registry.report_backend()
    batch = create([line("a", body={"model": "gpt-4o"})])["id"]
    work.validate(batch)
    gone(backend, "gemma3:12b")
    work.drive()
    reason = PausedModel.objects.get().reason
    assert "Create it again, or give its name to another model (ollama cp gemma3:12b gpt-4o:latest)." in reason
    assert reason.endswith(": MODEL_ALIASES=gpt-4o:latest=gemma3:12b")


def test_a_model_that_another_server_has_is_not_missing(create, work, backend):
    with FakeBackend() as other:
        now = timezone.now()
        row = {"url": other.url, "kind": "ollama", "worker_seen_at": now, "seen_at": now}
        Backend.objects.create(name=other.url, listed=[{"id": MODEL}], **row)
        prepared(create, work, "a")
        gone(backend)
        PausedModel.objects.all().delete()
        work.drive()
        PausedModel.objects.update(since=timezone.now() - timedelta(hours=2))
        again(work)
        assert charges() == UNCHARGED
        assert health.summary()["reason"] in (None, "The control worker has not ticked lately.")


def test_at_intake_nothing_waits(create, work, backend):
    gone(backend, "other:1b")
    registry.report_backend()
    batch = create([line("a")])["id"]
    work.validate(batch)
    assert work.batch(batch)["status"] == "failed"
