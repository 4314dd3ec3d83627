"""Several model servers on one database: a model that another live server has is neither missing nor a 404."""

from datetime import timedelta

import pytest
from django.utils import timezone

from batches import registry
from batches.models import Backend, Batch, Hold, PausedModel, Pulse
from batches.status import health, progress
from tests.batches.conftest import reported
from tests.conftest import CHAT, line
from tests.fake_backend import FakeBackend


@pytest.fixture
def other(transactional_db, backend):
    """Another server beside our own, whose worker has just reported; it alone has other:1b."""
    with FakeBackend() as server:
        server.models = server.loaded = ["other:1b"]
        registry.report_backend()
        reported(server)
        Pulse.stamp("ticked")
        yield server


def ask(api, model, **changes):
    return api.post(CHAT, line("hello", body={"model": model} | changes)["body"], format="json")


@pytest.mark.parametrize("name", ["other:1b", "Library/Other:1b", "gpt-4o"])
def test_a_chat_goes_to_the_server_that_has_its_model(api, backend, other, settings, name):
    settings.MODEL_ALIASES = {"gpt-4o": "other:1b"}
    settings.BACKEND_API_KEY = "ours"
    assert ask(api, name).status_code == 200
    assert (backend.arrived(), other.arrived()) == ([], ["hello"])
    assert "Authorization" not in other.seen[0].headers  # our key is for our server
    assert Hold.objects.get().backend.url == other.url  # lines stand aside there, and nowhere else


def test_a_stream_comes_from_there_too(api, backend, other):
    response = ask(api, "other:1b", stream=True)
    assert b"[DONE]" in b"".join(response.streaming_content)
    assert (backend.arrived(), other.arrived()) == ([], ["hello"])


def test_our_own_server_goes_first(api, backend, other):
    other.models = ["gemma3:12b"]
    Backend.objects.filter(url=other.url).delete()
    reported(other)
    assert ask(api, "gemma3:12b").status_code == 200
    assert (backend.arrived(), other.arrived()) == (["hello"], [])


def test_a_model_that_our_server_has_is_answered_elsewhere_while_ours_is_away(api, backend, other):
    other.models = ["gemma3:12b"]
    Backend.objects.filter(url=other.url).delete()
    reported(other)
    Backend.objects.filter(url=backend.url).update(seen_at=timezone.now() - timedelta(minutes=5))
    backend.stop()
    assert ask(api, "gemma3:12b").status_code == 200
    assert other.arrived() == ["hello"]


@pytest.mark.parametrize("seen", ["worker_seen_at", "seen_at"])
def test_a_server_that_was_not_seen_lately_gets_no_chat(api, backend, other, seen):
    Backend.objects.filter(url=other.url).update(**{seen: timezone.now() - timedelta(minutes=5)})
    ask(api, "other:1b")
    assert (backend.arrived(), other.arrived()) == (["hello"], [])


def test_a_server_that_has_gone_away_is_named(api, backend, other):
    other.stop()
    answer = ask(api, "other:1b")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"].startswith(f"No model server answers at {other.url}")


def test_a_model_that_is_beyond_our_reach_is_no_404(api, backend, other):
    backend.refuse_missing = True
    Backend.objects.filter(url=other.url).update(name=f"{other.url} on elsewhere")
    answer = ask(api, "other:1b")
    assert answer.status_code == 503
    assert f"not at {backend.url} but at {other.url} on elsewhere" in answer.json()["error"]["message"]
    assert other.arrived() == []


def test_health_misses_no_model_that_another_server_has(api, backend, other, settings):
    settings.MODEL_NAME, settings.MODEL_NAME_IS_SET = "other:1b", True
    assert health.summary()["reason"] is None
    Backend.objects.filter(url=other.url).update(worker_seen_at=timezone.now() - timedelta(minutes=5))
    assert f"{backend.url} does not have the model other:1b" in health.summary()["reason"]


def test_a_pause_of_a_model_that_only_another_server_has_is_no_trouble(api, create, work, backend, other):
    batch = create([line("a", body={"model": "other:1b"})])["id"]
    work.validate(batch)
    for server in (backend, other):
        row = Backend.objects.get(url=server.url)
        PausedModel.pause(row, CHAT, "other:1b", f"Out of order at {server.url}.", at_least=timedelta(minutes=1))
    assert health.summary()["reason"] == f"Out of order at {other.url}."
    PausedModel.objects.filter(backend__url=backend.url).delete()
    assert progress.waiting_for(Batch.objects.get()) == f"Out of order at {other.url}."
