"""Several model servers on one database: a model that another live server has is neither missing nor a 404."""

from datetime import timedelta

import pytest
from django.utils import timezone

from batches import registry
from batches.api import pass_through
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


# A web server without a model server of its own


@pytest.fixture
def alone(transactional_db, settings):
    """Nobody listens where this process is configured to find a model server, and no worker looks after it."""
    settings.BACKEND_URL = "http://127.0.0.1:9"
    settings.BACKEND_NAME = "http://127.0.0.1:9 on the web host"
    Pulse.stamp("ticked")


@pytest.fixture
def first(alone):
    with FakeBackend() as server:
        server.models = server.loaded = ["first:1b"]
        reported(server)
        yield server


@pytest.fixture
def second(alone):
    with FakeBackend() as server:
        server.models = server.loaded = ["second:1b"]
        reported(server)
        yield server


def test_it_has_the_models_of_all_live_servers(api, first, second, settings):
    assert [each["id"] for each in api.get("/v1/models").json()["data"]] == ["first:1b", "second:1b"]
    assert api.get("/v1/models/second:1b?context=true").json()["context_tokens"] == 131_072
    assert [each["name"] for each in api.get("/api/tags").json()["models"]] == ["first:1b", "second:1b"]
    assert [each["name"] for each in api.get("/api/ps").json()["models"]] == ["first:1b", "second:1b"]
    assert api.get("/api/version").status_code == 200
    for model in ("first:1b", "second:1b"):
        assert ask(api, model).status_code == 200
        body = {"model": model, "messages": [{"role": "user", "content": "native"}], "stream": False}
        assert api.post("/api/chat", body, format="json").status_code == 200
        assert api.post("/api/show", {"model": model}, format="json").status_code == 200
    assert first.arrived() == second.arrived() == ["hello", "native"]
    # Each web server would leave a row of its own, of a model server that nobody looks after.
    assert not Backend.objects.filter(name=settings.BACKEND_NAME).exists()


def test_its_health_is_that_of_the_live_servers(api, first, second, settings):
    settings.MODEL_NAME, settings.MODEL_NAME_IS_SET = "second:1b", True
    told = health.summary()
    assert (told["status"], told["reason"]) == ("ok", None)
    assert [each["url"] for each in told["backends"]] == [first.url, second.url]
    settings.MODEL_NAME = "none:1b"
    assert "does not have the model none:1b" in health.summary()["reason"]


def test_a_model_that_no_live_server_has_is_a_404_that_says_what_to_type(api, first, second):
    for path, body in (
        (CHAT, line("hello", body={"model": "none:1b"})["body"]),
        ("/v1/completions", {"model": "none:1b", "prompt": "hello"}),
        ("/v1/embeddings", {"model": "none:1b", "input": "hello"}),
        ("/api/chat", {"model": "none:1b", "messages": []}),
        ("/api/generate", {"model": "none:1b", "prompt": "hello"}),
        ("/api/show", {"model": "none:1b"}),
        ("/v1/messages", {"model": "none:1b", "messages": [], "max_tokens": 1}),
    ):
        answer = api.post(path, body, format="json")
        assert answer.status_code == 404, path
        assert "The model 'none:1b' does not exist. Install it: ollama pull none:1b" in str(answer.json())
    assert first.arrived() == second.arrived() == []


def test_a_server_that_its_own_machine_alone_reaches_is_named_with_what_to_set(api, first, second):
    Backend.objects.filter(url=second.url).update(name=f"{second.url} on gpubox")
    for path, body in (
        (CHAT, line("hello", body={"model": "second:1b"})["body"]),
        ("/api/chat", {"model": "second:1b", "messages": []}),
        ("/api/show", {"model": "second:1b"}),
    ):
        answer = api.post(path, body, format="json")
        assert answer.status_code == 503, path
        told = str(answer.json())
        assert f"{second.url} is an address of the machine gpubox alone: set OLLAMA_BASE_URL there" in told
    assert second.arrived() == []
    # What it has can be asked for in batches, and nothing is missing.
    assert [each["id"] for each in api.get("/v1/models").json()["data"]] == ["first:1b", "second:1b"]
    assert [each["name"] for each in api.get("/api/tags").json()["models"]] == ["first:1b"]


def test_if_no_server_can_be_reached_it_says_what_to_set_there(api, first):
    Backend.objects.update(name=f"{first.url} on gpubox")
    for path in ("/api/tags", "/api/ps", "/api/version"):
        answer = api.get(path)
        assert answer.status_code == 503
        assert "is an address of the machine gpubox alone: set OLLAMA_BASE_URL there" in str(answer.json())


def test_a_server_elsewhere_that_hangs_is_told_at_once(api, first, monkeypatch):
    monkeypatch.setattr(pass_through, "SHORT_ANSWER_S", 0.2)
    first.is_hung = True
    Backend.objects.get(url=first.url).pause("x")
    answer = ask(api, "first:1b")
    assert answer.status_code == 503
    assert f"Ollama takes connections at {first.url} and does not answer: it hangs." in str(answer.json())


def test_a_spare_server_that_is_away_is_missed_by_nobody_while_another_answers(api, first, settings):
    settings.BACKEND_OPTIONAL = True
    registry.report_backend()
    assert [each["url"] for each in health.summary()["backends"]] == [first.url]
    assert health.summary()["status"] == "ok"
    # Alone it is the one that batches wait for.
    Backend.objects.filter(url=first.url).update(worker_seen_at=timezone.now() - timedelta(minutes=5))
    registry.report_backend()
    assert "does not answer at http://127.0.0.1:9" in health.summary()["reason"]


def test_a_spare_server_that_answers_is_used(api, backend, other, settings):
    settings.BACKEND_OPTIONAL = True
    registry.report_backend()
    assert {each["url"] for each in health.summary()["backends"]} == {backend.url, other.url}
