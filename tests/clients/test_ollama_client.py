"""Ollama's own client for Python, pointed at us: each call comes back as from an Ollama.

In this process: the client's requests go to the WSGI application, and the application's to the fake model server.
"""

import hashlib

import httpx
import ollama
import pytest

from batchserver import wsgi
from tests.fake_backend import MODEL, Action

ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def client(transactional_db, backend):
    with ollama.Client("http://localhost:4080", transport=httpx.WSGITransport(app=wsgi.application)) as client:
        yield client


def test_every_call_to_a_model(client, backend):
    assert client.chat(**ASKED).message.content == "answer to hello"
    parts = list(client.chat(**ASKED, stream=True))
    assert [part.message.content for part in parts] == ["answer", "to", "hello", ""]
    assert [part.done for part in parts] == [False, False, False, True]
    assert client.generate(MODEL, "hello").response == "answer to hello"
    assert "".join(part.response for part in client.generate(MODEL, "hello", stream=True)) == "answertohello"
    assert client.embed(MODEL, ["one", "two"]).embeddings == [[0.5, 0.25]]
    assert client.embeddings(MODEL, "one").embedding == [0.5, 0.25]
    assert client.show(MODEL).capabilities == ["completion"]
    assert [model.model for model in client.list().models] == [MODEL]
    assert [model.name for model in client.ps().models] == [MODEL]


def test_every_change_of_models(client, backend, tmp_path):
    assert [step.status for step in client.pull("tiny", stream=True)] == ["pulling manifest", "success"]
    assert client.push(MODEL).status == "success"
    assert client.copy(MODEL, "mine").status == "success"
    assert client.delete(MODEL).status == "success"
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"weights")
    digest = client.create_blob(weights)
    assert client.create("mine", files={"model.gguf": digest}, stream=False).status == "success"
    assert backend.blobs == {f"sha256:{hashlib.sha256(b'weights').hexdigest()}": b"weights"}


def test_errors_are_its_own(client, backend):
    backend.on("hello", Action(404, {"error": "model 'x' not found"}))
    with pytest.raises(ollama.ResponseError, match="model 'x' not found") as missing:
        client.chat(**ASKED)
    assert missing.value.status_code == 404
    backend.on("hello", Action(break_after=150))
    with pytest.raises(ollama.ResponseError, match="broke the connection"):
        list(client.chat(**ASKED, stream=True))
    with pytest.raises(ollama.ResponseError, match="file does not exist"):
        list(client.pull("no:where", stream=True))
    backend.stop()
    with pytest.raises(ollama.ResponseError, match="Start it: systemctl start ollama") as away:
        client.generate(MODEL, "hello")
    assert away.value.status_code == 503
