"""Ollama's own API and Anthropic's, passed through: who uses them is a person as under /v1."""

import hashlib
import json
import logging
from contextlib import ExitStack, suppress
from datetime import timedelta

import pytest
import requests
from django.contrib.auth.models import User
from django.test import Client
from django.urls import get_resolver
from django.utils import timezone

from batches import registry
from batches.api import ollama_urls, pass_through
from batches.models import Backend, Hold
from common.errors import ApiError
from common.models import ApiKey, Owner, Scope
from tests import fake_native
from tests.batches.conftest import reported
from tests.fake_backend import MODEL, Action, FakeBackend, answer, events

CHAT, GENERATE, EMBED, EMBEDDINGS = "/api/chat", "/api/generate", "/api/embed", "/api/embeddings"
MESSAGES = fake_native.MESSAGES
USED = [CHAT, GENERATE, EMBED, EMBEDDINGS, MESSAGES]
DIGEST = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
# Method, path and a good body of what only an administrator may do.
CHANGES = [
    ("POST", "/api/pull", {"model": "tiny"}),
    ("POST", "/api/push", {"model": MODEL}),
    ("POST", "/api/create", {"model": "mine", "from": MODEL}),
    ("POST", "/api/copy", {"source": MODEL, "destination": "mine"}),
    ("DELETE", "/api/delete", {"model": MODEL}),
    ("HEAD", f"/api/blobs/{DIGEST}", None),
    ("POST", f"/api/blobs/{DIGEST}", b"weights"),
    ("POST", "/api/me", None),
]


def body_for(path, text="hello", **changes):
    said = {"messages": [{"role": "user", "content": text}]} if path in (CHAT, MESSAGES) else {}
    said |= {GENERATE: {"prompt": text}, EMBED: {"input": text}, EMBEDDINGS: {"prompt": text}}.get(path, {})
    return {"model": MODEL} | said | changes


@pytest.fixture
def send(transactional_db, api, backend):
    """Send one of CHANGES, or another request. A stream that is not read keeps its place only until the test ends."""
    with ExitStack() as streams:

        def send(method, path, body=None, *, client=api, content_type="application/json", **options):
            content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
            options = {"HTTP_HOST": "localhost"} | options
            response = client.generic(method, path, content, content_type=content_type, **options)
            streams.callback(response.close)
            return response

        yield send


@pytest.fixture
def ask(send):
    """POST a good body with these members changed."""
    return lambda path=CHAT, text="hello", **changes: send("POST", path, body_for(path, text, **changes))


def fill(held):
    """Take all places, and tell how many that were."""
    taken = 0
    with suppress(ApiError):
        while True:
            pass_through.take_a_place(Owner(), held)
            taken += 1
    return taken


def free_places():
    with ExitStack() as held:
        return fill(held)


# What is sent, and what comes back


@pytest.mark.parametrize("path", USED)
def test_the_answer_comes_back_as_it_was_given(ask, backend, path):
    response = ask(path, stream=False, options={"num_ctx": 8192, "temperature": 0}, keep_alive="5m")
    sent = backend.seen[0].body
    kind = "application/json" if path == MESSAGES else "application/json; charset=utf-8"
    assert (response.status_code, response["Content-Type"]) == (200, kind)
    assert response.json() == answer(path, sent)
    assert sent == body_for(path, stream=False, options={"num_ctx": 8192, "temperature": 0}, keep_alive="5m")
    assert "x-ignored-parameters" not in response


@pytest.mark.parametrize("path", [CHAT, GENERATE])
@pytest.mark.parametrize("changes", [{}, {"stream": True}, {"stream": None}])
def test_a_stream_has_a_piece_for_each_record(ask, backend, path, changes):
    if changes.get("stream", 0) is None:
        backend.always("hello", Action(body=b"".join(events(path, body_for(path))), headers=NDJSON))
    response = ask(path, **changes)
    assert (response.status_code, response["Content-Type"]) == (200, "application/x-ndjson")
    assert list(response.streaming_content) == list(events(path, body_for(path)))


NDJSON = {"Content-Type": "application/x-ndjson"}


def test_records_that_arrive_at_once_go_out_one_by_one(ask, backend):
    records = list(events(CHAT, body_for(CHAT)))
    backend.on("hello", Action(body=b"".join(records), headers=NDJSON))
    assert list(ask().streaming_content) == records


def test_a_stream_of_messages_comes_back_as_it_was_given(ask, backend):
    response = ask(MESSAGES, stream=True)
    assert (response.status_code, response["Content-Type"]) == (200, "text/event-stream")
    assert b"".join(response.streaming_content) == b"".join(events(MESSAGES, body_for(MESSAGES)))


@pytest.mark.parametrize("path", USED)
def test_names_of_models_are_read_as_under_v1(ask, backend, settings, path):
    settings.MODEL_NAME = "other:1b"
    settings.MODEL_ALIASES = {"gpt-4o": "big:70b"}
    for name in (None, "", "gpt-4o"):
        ask(path, model=name, stream=False)
    assert [seen.body["model"] for seen in backend.seen] == ["other:1b", "other:1b", "big:70b"]


@pytest.mark.parametrize("name", ["MODEL", "Model", "mOdEl"])
def test_no_other_name_of_a_member_hides_a_model(ask, backend, settings, name):
    """Go takes the last member of that name, in whatever case."""
    settings.MODEL_ALIASES = {"alias": MODEL}
    ask(stream=False, **{name: "alias", "\u017ftream": False})
    assert backend.seen[0].body["model"] == MODEL
    assert set(backend.seen[0].body) == {"model", "messages", "stream"}


@pytest.mark.parametrize(
    ("body", "shown"), [({}, "big:70b"), ({"model": "gpt-4o"}, "big:70b"), ({"name": MODEL, "verbose": True}, MODEL)]
)
def test_a_model_is_described_under_its_own_name_or_an_alias(api, transactional_db, backend, settings, body, shown):
    settings.MODEL_NAME, settings.MODEL_ALIASES = "gpt-4o", {"gpt-4o": "big:70b"}
    backend.events.clear()
    asked = {"model": shown} if "name" not in body else body | {"model": MODEL}
    response = api.post("/api/show", body if "name" not in body else asked, format="json")
    assert (response.status_code, backend.events) == (200, [f"describe {shown}"])
    assert not Hold.objects.exists()


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "nonsense", ""])
def test_the_type_of_a_body_does_not_matter(send, backend, content_type):
    assert send("POST", CHAT, body_for(CHAT), content_type=content_type).status_code == 200  # as curl -d sends it


def test_a_model_is_loaded_and_unloaded_without_a_prompt(send, backend):
    assert send("POST", GENERATE, {"model": MODEL}).json()["done_reason"] == "load"
    assert send("POST", GENERATE, {"model": MODEL, "keep_alive": 0}).json()["done_reason"] == "unload"
    assert (backend.loads, backend.unloads) == ([MODEL], [MODEL])


def test_the_operators_key_is_sent_and_the_clients_is_not(ask, api, backend, settings):
    settings.BACKEND_API_KEY = "of-the-operator"
    api.credentials(HTTP_AUTHORIZATION="Bearer of-the-client", HTTP_X_API_KEY="of-the-client")
    ask()
    assert backend.seen[0].headers["Authorization"] == "Bearer of-the-operator"
    assert "of-the-client" not in str(backend.seen[0].headers)


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "missing request body"),
        (b"{", "We could not parse the JSON body of your request."),
        (b'{"temperature": NaN}', "We could not parse the JSON body of your request."),
        (b"[" * 100_000, "We could not parse the JSON body of your request."),
        (b"[]", "Invalid type for 'body': expected an object, but got an array instead."),
        (b'{"model": 7}', "Invalid type for 'model': expected a string, but got an integer instead."),
        (b'{"model": "a\\u0000"}', "Invalid 'model': it holds a NUL or half a surrogate pair."),
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_bad_body_is_refused_unsent_in_the_shape_of_the_api(api, transactional_db, backend, path, content, message):
    response = api.generic("POST", path, content, content_type="application/json")
    assert response.status_code == 400
    error = response.json()["error"]
    if path == MESSAGES:
        assert (response.json()["type"], error["type"]) == ("error", "invalid_request_error")
        error = error["message"]
    assert error.startswith(message)
    assert not backend.seen
    assert not Hold.objects.exists()


def test_a_body_has_a_limit(ask, settings, backend):
    settings.MAX_LINE_BYTES = 1024
    assert ask(text="a" * 900).status_code == 200
    response = ask(text="a" * 1024)
    assert (response.status_code, "MAX_LINE_BYTES" in response.json()["error"]) == (413, True)
    assert len(backend.seen) == 1


def test_a_compressed_body_is_refused(api, transactional_db, backend):
    response = api.generic("POST", CHAT, b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert (response.status_code, "uncompressed" in response.json()["error"]) == (415, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "/api/user/keys/x", 404),
        ("POST", "/api/signout", 404),
        ("GET", "/api/status", 404),
        ("POST", "/api/experimental/web_search", 404),
        ("POST", "/api/chat/", 404),
        ("POST", "/api//chat", 404),
        ("POST", "/api/../v1/chat/completions", 404),
        ("POST", "/api/chat%2f..%2fpull", 404),
        ("GET", "/api/blobs/..%2f..%2fapi%2ftags", 404),
        ("HEAD", "/api/blobs/sha256:ab", 400),
        ("POST", "/api/blobs/sha256:" + "a" * 63 + "%0a", 400),
        ("POST", "/api/blobs/..", 400),
        ("GET", "/api/chat", 405),
        ("POST", "/api/tags", 405),
        ("POST", "/api/delete", 405),
        ("GET", f"/api/blobs/{DIGEST}", 405),
    ],
)
def test_no_other_address_reaches_ollama(api, transactional_db, backend, method, path, status):
    response = api.generic(method, path, b"{}", content_type="application/json", HTTP_HOST="localhost")
    assert response.status_code == status
    if method != "HEAD":
        assert set(response.json()) == {"error"}
        assert isinstance(response.json()["error"], str)
    assert (backend.events, backend.changes, backend.blobs) == ([], [], {})


def test_an_answer_to_a_bug_has_the_shape_too_and_is_logged(ask, backend, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no response")

    monkeypatch.setattr(pass_through, "_streamed", fail)
    free = free_places()
    response = ask()
    assert (response.status_code, type(response.json()["error"])) == (500, str)
    assert free_places() == free
    assert "django.request" in {each.name for each in caplog.records}


# When Ollama fails


@pytest.mark.parametrize(
    ("action", "status", "expected"),
    [
        (Action(404, {"error": "model 'x' not found"}), 404, "model 'x' not found"),
        (Action(400, {"error": '"x" does not support tools'}), 400, '"x" does not support tools'),
        (Action(500, {"error": "llama-server process has terminated"}), 500, "llama-server process has terminated"),
        (Action(401, {"error": "unauthorized", "signin_url": "https://ollama.com/x"}), 401, "unauthorized"),
        (Action(404, b"404 page not found", headers={"Content-Type": "text/plain"}), 404, "This Ollama has no "),
        (Action(502, b"<html>", headers={"Content-Type": "text/html"}), 502, "Ollama answered with something that is"),
        (Action(403, b"", headers={"Content-Type": ""}), 502, "Ollama refuses our Host header"),
        (Action(307, b"", headers={"Location": "http://127.0.0.1:9/"}), 502, "Ollama sends us elsewhere (HTTP 307)."),
        (Action(reset=True), 502, "The model server broke the connection"),
        (Action(cut_after=10), 502, "The model server broke the connection"),
        (Action(200, b"x" * 3000), 502, "The reply is larger than 2048 bytes (MAX_REPLY_BYTES)."),
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_its_errors_come_back_in_their_shape(ask, backend, settings, path, action, status, expected):
    settings.MAX_REPLY_BYTES = 2048
    action.body = action.body if action.body is not None else b'{"a": 1}          '
    backend.on("hello", action)
    response = ask(path)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["message"] if isinstance(error, dict) else error).startswith(expected)
    if isinstance(action.body, dict):
        assert response.json() == action.body
    assert ask(path).status_code == 200


def test_its_own_500_is_no_bug_of_ours_in_the_log(ask, backend, caplog):
    backend.on("hello", Action(500, {"error": "llama-server process has terminated"}))
    assert ask().status_code == 500
    assert "django.request" not in {each.name for each in caplog.records}


def test_a_busy_one_says_when_to_come_again(ask, backend):
    backend.on("hello", Action(503, {"error": "server busy"}, headers={"Retry-After": "7"}))
    response = ask()
    assert (response.status_code, response["Retry-After"]) == (503, "7")


@pytest.mark.parametrize("path", [CHAT, "/api/show", MESSAGES])
def test_one_that_is_away_is_told_with_what_to_do(ask, backend, path):
    registry.report_backend()
    backend.stop()
    response = ask(path)
    assert (response.status_code, response["Retry-After"]) == (503, "5")
    assert "Start it: systemctl start ollama" in response.content.decode()


@pytest.mark.parametrize(("break_after", "whole"), [(0, 0), (50, 0), (200, 2)])
@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_a_stream_that_breaks_ends_with_a_record_of_the_error(ask, backend, path, break_after, whole):
    backend.on("hello", Action(break_after=break_after))
    *before, error = list(ask(path).streaming_content)
    assert before == list(events(path, body_for(path)))[: len(before)]
    assert len(before) >= min(whole, 1)
    assert "broke the connection" in json.loads(error)["error"]
    assert error.endswith(b"\n")


def test_a_stream_that_ends_early_without_a_word_ends_with_a_record_of_the_error(ask, backend):
    *records, _ = events(CHAT, body_for(CHAT))
    told = json.dumps({"message": {"content": 'the key "done":true'}, "done": False}, separators=(",", ":"))
    call = {"message": {"tool_calls": [{"function": {"arguments": {"done": True, "error": ""}}}]}, "done": False}
    records += [told.encode() + b"\n", json.dumps(call, separators=(",", ":")).encode() + b"\n"]
    backend.on("hello", Action(body=b"".join(records), headers=NDJSON))
    *before, error = list(ask().streaming_content)
    assert before == records
    assert "before the answer was whole" in json.loads(error)["error"]


def test_its_own_last_word_is_enough(ask, backend):
    *records, _ = events(CHAT, body_for(CHAT))
    records.append(b'{"error":"an error was encountered while running the model"}\n')
    backend.on("hello", Action(body=b"".join(records), headers=NDJSON))
    assert list(ask().streaming_content) == records


def test_messages_that_break_end_with_an_event_of_the_error(ask, backend):
    backend.on("hello", Action(break_after=150))
    said = b"".join(ask(MESSAGES, stream=True).streaming_content)
    name, data = said.rstrip(b"\n").split(b"\n")[-2:]
    assert name == b"event: error"
    error = json.loads(data.removeprefix(b"data: "))
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    assert "broke the connection" in error["error"]["message"]


def test_no_prompt_is_logged(ask, backend, caplog):
    caplog.set_level(logging.DEBUG)
    for action in (Action(), Action(reset=True), Action(400, {"error": "secret"}), Action(break_after=20)):
        backend.on("secret", action)
        response = ask(text="secret")
        b"".join(response.streaming_content if response.streaming else [])
    ours = [each.getMessage() for each in caplog.records if each.name.startswith(("batch", "files", "common"))]
    assert len(ours) == 2
    assert "secret" not in "".join(ours)


# Batches stand aside


@pytest.mark.parametrize("path", USED)
def test_who_asks_a_model_holds_lines_back_until_a_while_after(ask, backend, settings, path):
    settings.INTERACTIVE_HOLD_S = 60
    response = ask(path)
    if response.streaming:
        assert Hold.objects.get().until < timezone.now() + timedelta(seconds=16)
        b"".join(response.streaming_content)
    assert timedelta(seconds=50) < Hold.objects.get().until - timezone.now() < timedelta(seconds=61)
    assert Hold.objects.get().backend.url == backend.url


def test_what_uses_no_model_holds_nothing_back(send, backend):
    for method, path, body in CHANGES:
        response = send(method, path, body)
        b"".join(response.streaming_content if response.streaming else [])
    for path in ("/api/tags", "/api/ps", "/api/version"):
        assert send("GET", path).status_code == 200
    assert not Hold.objects.exists()


def test_a_full_house_refuses_models_and_answers_what_polls(ask, send, backend):
    with ExitStack() as held:
        fill(held)
        for path in (CHAT, MESSAGES):
            refused = ask(path)
            assert (refused.status_code, refused["Retry-After"]) == (429, "5")
        assert send("POST", "/api/pull", {"model": "tiny"}).status_code == 429
        assert send("POST", f"/api/blobs/{DIGEST}", b"weights").status_code == 429
        for path in ("/api/tags", "/api/ps", "/api/version"):
            assert send("GET", path).status_code == 200
        assert send("POST", "/api/show", {"model": MODEL}).status_code == 200
    assert not backend.seen
    assert ask().status_code == 200


# Which models there are


def test_the_lists_and_the_version_are_its_own(send, backend):
    for path in ("/api/tags", "/api/ps", "/api/version"):
        response = send("GET", path)
        assert response["Content-Type"] == "application/json; charset=utf-8"
        assert send("HEAD", path).status_code == 200
        assert response.content == raw(backend, path)


def raw(backend, path):
    return requests.get(backend.url + path, timeout=5).content


def test_models_that_we_made_are_listed_as_what_they_were_made_of(send, backend):
    made = [f"obs-ctx-16384/{MODEL}-obs3f9a2c", "hf.co/obs-ctx-8192-someone/model:Q4-obs000000"]
    users = [MODEL, "obs-ctx/mine:latest", "obs-ctx-16384/mine:latest", "hf.co/someone/b\u00e4r:latest"]
    backend.models = [*made, *users]
    backend.loaded = [*made, MODEL]
    assert [each["name"] for each in send("GET", "/api/tags").json()["models"]] == users
    loaded = send("GET", "/api/ps").json()["models"]
    assert [each["name"] for each in loaded] == [MODEL, "hf.co/someone/model:Q4", MODEL]
    assert [each.get("model", each["name"]) for each in loaded] == [each["name"] for each in loaded]
    assert len({each["size"] for each in loaded}) == 1


@pytest.fixture
def other(transactional_db, backend):
    """Another Ollama whose worker has just reported; it alone has other:1b."""
    with FakeBackend() as server:
        server.models = server.loaded = ["other:1b", MODEL]
        registry.report_backend()
        reported(server)
        yield server


@pytest.mark.parametrize("path", USED)
def test_a_request_goes_to_the_ollama_that_has_its_model(ask, backend, other, settings, path):
    settings.BACKEND_API_KEY = "ours"
    assert ask(path, model="Other:1B").status_code == 200
    assert (backend.arrived(), other.arrived()) == ([], ["hello"])
    assert "Authorization" not in other.seen[0].headers
    assert ask(path).status_code == 200
    assert (backend.arrived(), other.arrived()) == (["hello"], ["hello"])


def test_the_lists_are_those_of_all(send, backend, other):
    assert [each["name"] for each in send("GET", "/api/tags").json()["models"]] == [MODEL, "other:1b"]
    assert [each["name"] for each in send("GET", "/api/ps").json()["models"]] == [MODEL, "other:1b", MODEL]
    backend.stop()
    assert [each["name"] for each in send("GET", "/api/tags").json()["models"]] == ["other:1b", MODEL]
    other.stop()
    assert send("GET", "/api/tags").status_code == 503


def test_a_model_is_changed_where_it_is(send, backend, other):
    assert send("DELETE", "/api/delete", {"model": "other:1b"}).status_code == 200
    assert send("POST", "/api/copy", {"source": "other:1b", "destination": "mine"}).status_code == 200
    send("POST", "/api/pull", {"model": "other:1b"})
    assert [path for _, path, _ in other.changes] == ["/api/delete", "/api/copy"]
    assert [path for _, path, _ in backend.changes] == ["/api/pull"]


# Only where the server is an Ollama


@pytest.mark.parametrize("path", [*USED, "/api/show", "/api/tags", "/api/ps", "/api/version", "/api/pull"])
def test_another_kind_of_server_is_a_clear_404(api, send, transactional_db, backend, path):
    Backend.objects.create(name=backend.url, url=backend.url, kind="vllm", worker_seen_at=timezone.now())
    response = send("GET" if path in ("/api/tags", "/api/ps", "/api/version") else "POST", path, body_for(path))
    assert response.status_code == 404
    assert f"{path} is passed through to an Ollama alone, and the model server at {backend.url}" in str(response.json())
    assert not backend.events
    assert api.get("/").status_code == 302


def test_an_ollama_beside_it_is_used(ask, send, backend, other):
    Backend.objects.filter(url=backend.url).update(kind="vllm")
    assert ask().status_code == 200
    assert ask(model="nowhere").status_code == 200
    assert send("GET", "/api/version").status_code == 200
    assert (backend.arrived(), other.arrived()) == ([], ["hello", "hello"])


@pytest.mark.parametrize("known", [True, False])
def test_the_root_is_ollamas_for_its_clients_and_the_admins_for_browsers(api, transactional_db, backend, known):
    if known:
        registry.report_backend()
    backend.stop()
    for headers in ({}, {"Accept": "application/json"}, {"Accept": "*/*"}):
        response = api.get("/", headers=headers)
        assert (response.status_code, response.content) == (200, b"Ollama is running")
        assert response["Content-Type"] == "text/plain; charset=utf-8"
    assert api.head("/").status_code == 200
    assert api.get("/", headers={"Accept": "text/html,application/xhtml+xml"})["Location"] == "/admin/"


# Who may change models


def test_changes_go_on_as_they_came(send, backend):
    for method, path, body in CHANGES[:5]:
        response = send(method, path, body)
        content = b"".join(response.streaming_content) if response.streaming else response.content
        streamed = path not in ("/api/copy", "/api/delete")
        assert content == (b'{"status":"pulling manifest"}\n{"status":"success"}\n' if streamed else b"")
        assert response.get("Content-Type") == ("application/x-ndjson" if streamed else None)
    assert backend.changes == CHANGES[:5]
    missing = send("DELETE", "/api/delete", {"model": "nowhere"})
    assert (missing.status_code, missing.json()) == (404, {"error": "model 'nowhere' not found"})
    failed = send("POST", "/api/pull", {"model": "no:where"})
    assert b"".join(failed.streaming_content).endswith(b'{"error":"pull model manifest: file does not exist"}\n')
    assert send("POST", "/api/pull", {"model": "tiny", "stream": False}).json() == {"status": "success"}


def test_an_alias_is_no_name_of_a_model_to_change(send, backend, settings):
    settings.MODEL_ALIASES = {"gpt-4o": MODEL, "*": MODEL}
    assert send("DELETE", "/api/delete", {"model": "gpt-4o"}).status_code == 404
    assert send("DELETE", "/api/delete", {}).status_code == 404
    assert [body for _, _, body in backend.changes] == [{"model": "gpt-4o"}, {}]


def test_every_address_is_open_to_all_or_an_administrators():
    """A new address has to be said to be one or the other."""
    addresses = {
        f"/api/{each.pattern}".replace("<str:digest>", DIGEST) for each in get_resolver(ollama_urls).url_patterns
    }
    anybodys = {"/api/show", "/api/tags", "/api/ps", "/api/version"} | set(USED) - {MESSAGES}
    assert addresses - anybodys == {path for _, path, _ in CHANGES}


def tried(send, **options):
    """Try each of CHANGES: the statuses of the answers, and what they say."""
    answers = [send(method, path, body, **options) for method, path, body in CHANGES]
    said = [b"" if answer.streaming else answer.content for answer in answers]
    return {answer.status_code for answer in answers}, [each for each in said if each]


def is_untouched(backend):
    return (backend.changes, backend.blobs) == ([], {})


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_without_keys_models_are_changed_from_this_machine(send, backend, address):
    assert tried(send, REMOTE_ADDR=address)[0] <= {200, 201, 404}  # the blob was not there


@pytest.mark.parametrize(
    "options",
    [
        {"REMOTE_ADDR": "192.168.1.7"},
        {"REMOTE_ADDR": "::ffff:192.168.1.7"},
        {"REMOTE_ADDR": ""},
        {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "127.0.0.1"},
        {"REMOTE_ADDR": "127.0.0.1", "HTTP_FORWARDED": "for=127.0.0.1"},
        {"REMOTE_ADDR": "127.0.0.1", "HTTP_VIA": "1.1 proxy"},
        {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_REAL_IP": "10.0.0.1"},
        {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "testserver"},
    ],
)
def test_without_keys_models_are_changed_from_no_other_machine(send, backend, options):
    statuses, said = tried(send, **options)
    assert statuses == {403}
    assert all(b"manage.py create_api_key NAME" in each for each in said)
    assert is_untouched(backend)


def test_behind_a_tls_proxy_nobody_is_known_to_be_on_this_machine(send, backend, settings):
    settings.BEHIND_TLS = True
    assert tried(send)[0] == {403}
    assert is_untouched(backend)


def test_no_page_elsewhere_changes_models(send, backend):
    statuses, _ = tried(send, headers={"Origin": "http://evil.example"})
    assert statuses == {403, 404}  # to look for a blob changes nothing, and the page cannot read the answer
    assert is_untouched(backend)


def test_a_key_changes_models_if_it_is_an_administrators(send, backend):
    _, plain = ApiKey.objects.make("laptop")
    _, admins = ApiKey.objects.make("owner", scopes=list(Scope))
    assert tried(send)[0] == {401}
    assert tried(send, headers={"Authorization": "Bearer sk-wrong"})[0] == {401}
    statuses, said = tried(send, headers={"Authorization": f"Bearer {plain}"})
    assert statuses == {403}
    assert all(b"lacks the scope 'admin'" in each for each in said)
    assert is_untouched(backend)
    headers = {"Authorization": f"Bearer {admins}", "X-Forwarded-For": "10.0.0.1"}
    assert tried(send, headers=headers, REMOTE_ADDR="192.168.1.7")[0] <= {200, 201, 404}


@pytest.mark.parametrize("with_key", [True, False])
def test_the_administrators_session_changes_models(send, backend, with_key):
    if with_key:
        ApiKey.objects.make("laptop")
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(User.objects.create_superuser("admin"))
    browser.get("/admin/password_change/")  # a page with a form
    token = browser.cookies["csrftoken"].value
    remote = {"client": browser, "REMOTE_ADDR": "192.168.1.7"}
    assert tried(send, **remote)[0] == {403, 404}  # as from a page elsewhere
    assert is_untouched(backend)
    assert tried(send, headers={"X-CSRFToken": token}, **remote)[0] <= {200, 201, 404}
    assert len(backend.blobs) == 1


def test_the_session_of_somebody_else_does_not(send, backend):
    ApiKey.objects.make("laptop")
    browser = Client()
    browser.force_login(User.objects.create_user("guest", is_staff=True))
    assert tried(send, client=browser)[0] == {401}
    assert is_untouched(backend)


def test_a_plain_key_may_use_models(ask, send, backend):
    _, secret = ApiKey.objects.make("laptop")
    key = {"headers": {"Authorization": f"Bearer {secret}"}}
    assert ask().status_code == 401
    assert set(ask().json()) == {"error"}
    assert send("GET", "/api/tags").status_code == 401
    assert send("POST", CHAT, body_for(CHAT), **key).status_code == 200
    assert send("GET", "/api/tags", **key).status_code == 200


def test_the_command_that_can_send_no_key_is_told(send, backend):
    ApiKey.objects.make("laptop")
    refused = send("GET", "/api/tags", headers={"User-Agent": "ollama/0.33.0 (amd64 linux) Go/go1.26"})
    assert (refused.status_code, "cannot send one" in refused.json()["error"]) == (403, True)


# Blobs


def test_a_blob_is_sent_once(send, backend):
    path = f"/api/blobs/{DIGEST}"
    assert send("HEAD", path).status_code == 404
    assert send("POST", path, b"weights").status_code == 201
    assert backend.blobs == {DIGEST: b"weights"}
    assert send("HEAD", path).status_code == 200
    backend.blobs[DIGEST] = b"kept"
    assert send("POST", path, b"weights").status_code == 200
    assert backend.blobs == {DIGEST: b"kept"}


def test_a_blob_is_handed_on_in_pieces(send, backend, settings, monkeypatch):
    settings.MAX_LINE_BYTES = settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1024
    content = bytes(range(256)) * 10_000
    path = f"/api/blobs/sha256:{hashlib.sha256(content).hexdigest()}"
    assert send("POST", path, content).status_code == 201
    assert list(backend.blobs.values()) == [content]


def test_a_blob_that_is_another_is_refused_as_ollama_says_it(send, backend):
    response = send("POST", f"/api/blobs/{DIGEST}", b"other weights")
    assert (response.status_code, "digest mismatch" in response.json()["error"]) == (400, True)
    assert backend.blobs == {}


def test_a_blob_for_an_ollama_that_is_away(send, backend):
    registry.report_backend()
    backend.stop()
    assert send("POST", f"/api/blobs/{DIGEST}", b"weights").status_code == 503


# Anthropic's


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "mine"}, {"Type": "web_search_20250305"}]}, "tools[1].type"),
        ({"tools": [{"type": "custom", "TYPE": "web_search"}]}, "tools[0].type"),
        ({"Tools": [{"type": "web_fetch_20250910"}]}, "tools[0].type"),
        ({"TOOL\u017f": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "code_execution_20250825"}]}, "tools[0].type"),
        ({"tools": [{"type": ["web_search"]}]}, "tools[0].type"),
        ({"mcp_servers": [{"type": "url", "url": "https://x.org"}]}, "mcp_servers"),
    ],
)
def test_no_prompt_leaves_the_house_by_a_hosted_tool(ask, backend, changes, param):
    response = ask(MESSAGES, **changes)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(f"{param}: Nothing but functions is called here")
    assert not backend.seen


@pytest.mark.parametrize("kind", [None, "", "custom", "bash_20250124", "text_editor_20250728", "computer_20250124"])
def test_tools_that_the_caller_runs_go_on(ask, backend, kind):
    tools = [{"type": kind, "name": "look_up", "input_schema": {"type": "object"}}]
    assert ask(MESSAGES, tools=tools).status_code == 200
    assert backend.seen[0].body["tools"] == tools


def test_its_clients_send_the_key_in_a_header_of_their_own(send, backend):
    _, secret = ApiKey.objects.make("laptop")
    refused = send("POST", MESSAGES, body_for(MESSAGES))
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert send("POST", MESSAGES, body_for(MESSAGES), headers={"x-api-key": secret}).status_code == 200
    assert send("POST", f"{MESSAGES}/count_tokens", {}).json()["type"] == "error"
