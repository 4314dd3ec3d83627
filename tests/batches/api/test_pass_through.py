"""A person's own requests, passed through to the model server while batches stand aside."""

import json
import logging
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import timedelta

import openai
import pytest
import requests
from django.utils import timezone

from batches import registry
from batches.api import pass_through
from batches.lines.jsonl import ENDPOINTS
from batches.models import Hold
from common.models import ApiKey
from tests.conftest import CHAT, line
from tests.fake_backend import MODEL, Action, FakeBackend, answer, error_body, events
from tests.stack import Stack, eventually, free_port

PLACES = 8  # MAX_PASS_THROUGH in this process
STREAMS = 64  # MAX_PASS_THROUGH of a server where nobody sets it
TAKES_NOTHING_S = 5  # CLIENT_TIMEOUT_S here
SOON_S = 5  # more than a poll takes on a busy machine


@pytest.fixture(autouse=True)
def _few_places(monkeypatch):
    monkeypatch.setattr(pass_through, "_places", threading.BoundedSemaphore(PLACES))


@pytest.fixture
def ask(transactional_db, api, backend):
    """POST a good body with these members changed."""

    def ask(text="hello", *, url=CHAT, **changes):
        return api.post(url, line(text, url=url, body=changes)["body"], format="json")

    return ask


@pytest.fixture
def official():
    """Make official clients of a server, which are closed afterwards."""
    with ExitStack() as clients:
        yield lambda server: clients.enter_context(
            openai.OpenAI(base_url=f"{server.base}/v1", api_key="any", max_retries=0)
        )


def error_of(response):
    return response.json()["error"]


# What is sent, and what comes back


@pytest.mark.parametrize("url", ENDPOINTS)
def test_the_answer_comes_back_as_it_was_given(ask, backend, url):
    response = ask(url=url)
    assert (response.status_code, response["Content-Type"]) == (200, "application/json")
    assert response.json() == answer(url, backend.seen[0].body)
    assert backend.seen[0].path == url


def test_a_body_is_made_ready_as_a_lines_is(ask, backend, settings):
    settings.MODEL_ALIASES = {"gpt-4o-mini": MODEL}
    ask(model="gpt-4o-mini", max_tokens=None, max_completion_tokens=5)
    sent = backend.seen[0].body
    assert (sent["model"], sent["max_tokens"]) == (MODEL, 5)
    assert "max_completion_tokens" not in sent


@pytest.mark.parametrize("stream", [False, True])
def test_what_ollama_ignores_is_passed_on_and_named(ask, backend, stream):
    tool = {"type": "function", "function": {"name": "look_up"}}
    asked = {"tools": [tool], "tool_choice": "required", "n": 2, "a\nb": 1, "user": "me"}
    response = ask(stream=stream, **asked)
    assert response.status_code == 200
    assert response["x-ignored-parameters"] == "tool_choice, n, a%5Cnb"
    del asked["user"]
    assert {name: backend.seen[0].body.get(name) for name in asked} == asked
    assert "x-ignored-parameters" not in ask(user="me")


ODD = ["\ud800", "\x00", "a\ud83db", "x" * 100_000, "\U0001f600" * 1000, "a\r\nSet-Cookie: b", "\u202e", ""]


@pytest.mark.parametrize("stream", [False, True])
def test_no_name_of_a_member_breaks_the_answer_or_keeps_a_place(ask, backend, stream):
    for index, name in enumerate([*ODD, *ODD]):  # more than there are places
        response = ask(f"{index}", stream=stream, **{name: 1, f"{name}b": 2, f"{name}c": {name: 1}})
        assert response.status_code == 200
        assert 0 < len(response["x-ignored-parameters"]) <= 2000
        response.close()
    assert len([*ODD, *ODD]) > PLACES


def test_a_response_that_cannot_be_made_keeps_no_place(ask, backend, monkeypatch):
    def fail(*_):
        raise RuntimeError("no response")

    with monkeypatch.context() as patched:
        patched.setattr(pass_through, "_streamed", fail)
        for _ in range(PLACES + 1):
            assert ask(stream=True).status_code == 500
    assert ask().status_code == 200


@pytest.mark.parametrize("name", ODD)
def test_a_refusal_names_any_member(ask, backend, name):
    response = ask(messages=[{"role": "user", "content": [{name: {"image_url": "https://x.org/y.png"}}]}])
    assert response.status_code == 400
    assert len(error_of(response)["param"]) <= 100


def test_the_header_names_no_more_than_proxies_take(ask, backend):
    response = ask(**{f"no_such_member_{index}": 1 for index in range(1000)})
    named = response["x-ignored-parameters"].split(", ")
    assert named == [f"no_such_member_{index}" for index in range(len(named))]
    assert 1900 < len(response["x-ignored-parameters"]) <= 2000


@pytest.mark.parametrize("model", [None, ""])
def test_no_model_is_the_default_one(ask, backend, settings, model):
    settings.MODEL_NAME = "other:1b"
    ask(model=model)
    assert backend.seen[0].body["model"] == "other:1b"


def test_the_operators_key_is_sent_and_the_clients_is_not(ask, api, backend, settings):
    ask()
    settings.BACKEND_API_KEY = "of-the-operator"
    api.credentials(HTTP_AUTHORIZATION="Bearer of-the-client")
    ask()
    assert [seen.headers.get("Authorization") for seen in backend.seen] == [None, "Bearer of-the-operator"]


def test_nothing_of_the_environment_goes_along_and_no_redirect_is_followed(ask, backend, monkeypatch, tmp_path):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    backend.on("away", Action(status=307, headers={"Location": "/v1/models"}))

    assert ask().status_code == 200
    assert "Authorization" not in backend.seen[0].headers
    ask("away")
    assert [seen.path for seen in backend.seen] == [CHAT, CHAT]


@pytest.mark.parametrize("url", [each for each in ENDPOINTS if each != "/v1/embeddings"])
def test_a_stream_comes_back_as_it_was_given(ask, backend, url):
    options = {"stream_options": {"include_usage": True}} if url != "/v1/responses" else {}
    response = ask("hello", url=url, stream=True, **options)
    assert (response.status_code, response["Content-Type"]) == (200, "text/event-stream")
    sent = backend.seen[0].body
    assert sent["stream"] is True
    assert sent.get("stream_options") == options.get("stream_options")
    assert b"".join(response.streaming_content) == b"".join(events(url, sent))


def test_it_needs_a_key_as_all_of_the_api_does(ask, api, backend):
    _, secret = ApiKey.objects.make("laptop")
    assert ask().status_code == 401
    assert not backend.seen
    api.credentials(HTTP_AUTHORIZATION=f"Bearer {secret}")
    assert ask().status_code == 200


# What is refused


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model": 7}, "model", "invalid_type"),
        ({"model": {}}, "model", "invalid_type"),
        ({"model": "m" * 256}, "model", "string_above_max_length"),
        ({"model": "a\x00"}, "model", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream": 0}, "stream", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "https://x.org"}]}]},
            "messages[0].content[0].image_url",
            "unsupported_parameter",
        ),
    ],
)
def test_a_bad_body_is_refused_unsent(ask, backend, body, param, code):
    response = ask(**body)
    assert response.status_code == 400
    assert (error_of(response)["param"], error_of(response)["code"]) == (param, code)
    assert not backend.seen


@pytest.mark.parametrize("content", [b"{", b'{"temperature": NaN}', b'{"a": "\xff"}', b"[" * 100_000, b"[]", b"7"])
def test_what_is_no_json_object_is_refused(ask, api, backend, content):
    response = api.generic("POST", CHAT, content, content_type="application/json")
    assert response.status_code == 400
    assert not backend.seen


def test_a_body_has_a_limit(ask, settings, backend):
    settings.MAX_LINE_BYTES = 1024
    assert ask("a" * 900).status_code == 200
    response = ask("a" * 1024)
    assert response.status_code == 413
    assert "MAX_LINE_BYTES" in error_of(response)["message"]
    assert len(backend.seen) == 1


def test_a_body_may_be_as_large_as_a_line(ask, backend):
    assert ask("a" * 3 * 2**20).status_code == 200


def test_the_wrong_type_and_method_are_refused(ask, api):
    assert api.post(CHAT, "a=b", content_type="application/x-www-form-urlencoded").status_code == 415
    assert api.get(CHAT).status_code == 405


# When the model server fails


@pytest.mark.parametrize(
    ("action", "status", "expected"),
    [
        (Action(400, error_body("no such role", "invalid_request_error")), 400, {"message": "no such role"}),
        (
            Action(400, {"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n": 1}}),
            400,
            {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"},
        ),
        (Action(422, {"detail": "not so"}), 422, {"message": "not so", "type": "api_error"}),
        (Action(500, {"error": "out of memory"}), 500, {"message": "out of memory"}),
        (Action(500, b"oh"), 500, {"message": "oh"}),
        (Action(404, b"404 page not found"), 404, {"code": "unknown_url"}),
        (
            Action(404, error_body(f"model '{MODEL}' not found", "not_found_error")),
            404,
            {
                "message": f"The model '{MODEL}' does not exist. Install it: ollama pull {MODEL}",
                "param": "model",
                "code": "model_not_found",
            },
        ),
        (Action(403, b""), 502, {"type": "server_error"}),
        (Action(307, b"", headers={"Location": "http://127.0.0.1:9/"}), 502, {"type": "server_error"}),
        (Action(reset=True), 502, {"type": "server_error"}),
        (Action(cut_after=10), 502, {"type": "server_error"}),
        (Action(200, b"x" * 3000), 502, {"message": "The reply is larger than 2048 bytes (MAX_REPLY_BYTES)."}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_its_errors_come_in_the_envelope(ask, backend, settings, action, status, expected, stream):
    settings.MAX_REPLY_BYTES = 2048
    action.body = action.body if action.body is not None or not stream else b'{"a": 1}          '
    backend.on("hello", action)
    response = ask(stream=stream)
    assert response.status_code == status
    assert expected.items() <= error_of(response).items()
    assert ask().status_code == 200


@pytest.mark.slow
def test_a_runner_that_died_under_embeddings_is_told_as_what_clients_try_again(api, backend):
    backend.on("hello", Action(400, error_body("llama-server process no longer running: unknown")))
    response = api.post("/v1/embeddings", line("hello", url="/v1/embeddings")["body"], format="json")
    assert (response.status_code, error_of(response)["type"]) == (500, "api_error")


def test_what_is_no_json_is_no_answer(ask, backend):
    backend.on("hello", Action(200, b"<html>", headers={"Content-Type": "text/html"}))
    response = ask()
    assert (response.status_code, error_of(response)["type"]) == (502, "server_error")


def test_a_busy_server_says_when_to_come_again(ask, backend):
    backend.on("hello", Action(503, error_body("server busy"), headers={"Retry-After": "7"}))
    response = ask()
    assert (response.status_code, response["Retry-After"]) == (503, "7")


@pytest.mark.parametrize("known", [True, False])
def test_a_server_that_is_away_is_told_with_what_to_do(ask, backend, known):
    if known:
        ask()
    backend.stop()
    response = ask()
    assert (response.status_code, response["Retry-After"]) == (503, "5")
    assert "Start it: systemctl start ollama" in error_of(response)["message"]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("known", [True, False])
def test_a_server_that_hangs_is_told_at_once_with_what_to_do(ask, backend, monkeypatch, known, stream):
    """`known`: the health probe has noticed it, so that nobody waits for a second question."""
    monkeypatch.setattr(pass_through, "SHORT_ANSWER_S", 0.2)
    if not known:
        monkeypatch.setattr(pass_through, "ASKED_AFTER_S", 0.5)
        monkeypatch.setattr(pass_through, "LIGHT_ANSWER_S", 0.2)
    ask()
    backend.is_hung = True
    if known:
        registry.own_backend().pause("x")
    response = ask(stream=stream)
    assert (response.status_code, response["Retry-After"]) == (503, "5")
    assert "Restart it: systemctl restart ollama" in error_of(response)["message"]


@pytest.mark.slow
def test_a_server_that_computes_for_long_is_waited_for(ask, backend, monkeypatch):
    for name in ("ASKED_AFTER_S", "ASKED_EVERY_S"):
        monkeypatch.setattr(pass_through, name, 0.1)
    backend.delay_s = 2.0
    assert ask().status_code == 200
    registry.own_backend().pause("its card is full, as a trial said")
    assert ask().status_code == 200


def test_one_that_says_nothing_is_given_up(ask, backend, settings):
    settings.MODEL_LOAD_TIMEOUT_S, settings.LINE_TIMEOUT_S = 0.1, 0.1
    backend.on("hello", Action(hang=True))
    assert ask().status_code == 502
    eventually(lambda: backend.seen[0].gone, within_s=5, what="the end of the call")


@pytest.mark.parametrize(("break_after", "events_before"), [(0, 0), (100, 0), (200, 1)])
def test_a_stream_that_breaks_ends_with_an_error_event(ask, backend, break_after, events_before):
    backend.on("hello", Action(break_after=break_after))
    *whole, error, end = b"".join(ask(stream=True).streaming_content).split(b"\n\n")
    assert whole == b"".join(events(CHAT, backend.seen[0].body)).split(b"\n\n")[: len(whole)]
    assert len(whole) == events_before
    assert "broke the connection" in json.loads(error.removeprefix(b"data: "))["error"]["message"]
    assert end == b""


def test_a_stream_that_ends_early_without_a_word_ends_with_an_error_event(ask, backend):
    cut = b"".join(events(CHAT, {"messages": [{"content": "x"}]})).removesuffix(b"data: [DONE]\n\n")
    backend.on("hello", Action(body=cut, headers={"Content-Type": "text/event-stream"}))
    said = b"".join(ask(stream=True).streaming_content)
    assert said.startswith(cut)
    assert "before the answer was whole" in json.loads(said[len(cut) :].removeprefix(b"data: "))["error"]["message"]


def test_no_prompt_is_logged(ask, backend, caplog):
    caplog.set_level(logging.DEBUG)
    for action in (Action(), Action(reset=True), Action(400, error_body("secret")), Action(cut_after=5)):
        backend.on("secret", action)
        ask("secret")
    backend.on("secret", Action(break_after=20))
    list(ask("secret", stream=True).streaming_content)
    backend.stop()
    ask("secret")
    ours = [each.getMessage() for each in caplog.records if each.name.startswith(("batch", "files"))]
    assert len(ours) == 3
    assert "secret" not in "".join(ours)


# Batches stand aside


@pytest.mark.parametrize("stream", [False, True])
def test_the_hold_goes_on_for_a_while_after(ask, backend, settings, stream):
    settings.INTERACTIVE_HOLD_S = 60
    response = ask(stream=stream)
    if stream:
        assert Hold.objects.get().until < timezone.now() + timedelta(seconds=16)
        b"".join(response.streaming_content)
    assert timedelta(seconds=50) < Hold.objects.get().until - timezone.now() < timedelta(seconds=61)


@pytest.mark.parametrize("action", [Action(500, b"oh"), Action(reset=True)])
def test_a_failure_ends_it_too(ask, backend, settings, action):
    settings.INTERACTIVE_HOLD_S = 0
    backend.on("hello", action)
    assert ask().status_code >= 500
    assert not Hold.objects.exists()


def test_a_stream_that_nobody_begins_to_read_holds_nothing(ask, backend, settings):
    settings.INTERACTIVE_HOLD_S = 0
    for _ in range(PLACES + 1):
        backend.on("hello", Action(pause_s=60))
        response = ask(stream=True)
        assert response.status_code == 200
        response.close()
    assert not Hold.objects.exists()
    eventually(lambda: all(seen.gone for seen in backend.seen), within_s=5, what="the end of the calls")


def test_a_paused_backend_is_asked_all_the_same(ask, backend):
    registry.report_backend().pause("by a person")
    Hold.objects.create(reason=Hold.Reason.PAUSED)
    assert ask().status_code == 200


# Whole servers


@pytest.fixture(scope="module")
def pair(tmp_path_factory, processes):
    """A server and its fake model server, for tests that leave both as they were: a start takes longer than most."""
    with FakeBackend() as fake:
        environment = {"OLLAMA_BASE_URL": fake.url, "INTERACTIVE_HOLD_S": "0"}
        environment["CLIENT_TIMEOUT_S"] = str(TAKES_NOTHING_S)
        server = Stack(tmp_path_factory.mktemp("shared") / "data", environment)
        server.start()
        yield server, fake
        server.stop()


@pytest.fixture
def shared(pair):
    server, fake = pair
    eventually(lambda: not held_until(server), within_s=10, what="the end of the holds of the test before")
    fake.seen.clear()
    return server, fake


def post(server, text="hello", *, timeout=60, stream=False):
    body = line(text, body={"stream": stream})["body"]
    return requests.post(f"{server.base}{CHAT}", json=body, timeout=timeout, stream=stream)


def held_until(server):
    """Seconds for which each hold of the server goes on."""
    with closing(sqlite3.connect(server.data_dir / "db.sqlite3")) as database:
        rows = database.execute("SELECT (julianday(until) - julianday('now')) * 86400 FROM batches_hold").fetchall()
    return sorted(seconds for (seconds,) in rows if seconds > 0)


def test_events_come_as_they_are_made(shared, official):
    server, fake = shared
    client = official(server)
    fake.on("hello", Action(pause_s=0.5))
    times = []
    with post(server, stream=True) as response:
        assert response.headers["x-request-id"].startswith("req_")
        assert {"openai-processing-ms", "openai-version"} <= {name.lower() for name in response.headers}
        for event in response.iter_lines():
            if event:
                times.append(time.monotonic())
    assert len(times) == 4
    assert times[-1] - times[0] > 1
    eventually(lambda: fake.seen[0].answered)  # the client has the last event before the server knows

    text = "".join(
        chunk.choices[0].delta.content for chunk in client.chat.completions.create(stream=True, **line("hi")["body"])
    )
    assert text == "answertohi"
    # A break in the middle is an error for the official client, after what came.
    fake.on("hello", Action(break_after=250))
    stream = client.chat.completions.create(stream=True, **line("hello")["body"])
    assert next(stream).choices[0].delta.content == "answer"
    with pytest.raises(openai.APIError, match="broke the connection"):
        list(stream)


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_ends_the_call(shared, stream):
    server, fake = shared
    # Before a header came, and in the middle of a stream that is silent for long.
    for action in [Action(hang=True)] + [Action(pause_s=60)] * stream:
        fake.on("hello", action)
        with ThreadPoolExecutor() as pool:
            if action.hang:
                pool.submit(post, server, stream=stream, timeout=2).exception()
            else:
                post(server, stream=stream).close()
            seen = fake.seen[-1]
            eventually(lambda seen=seen: seen.gone, within_s=2, what="the end of the call")
        eventually(lambda: not held_until(server), within_s=2, what="the end of the hold")
    assert requests.get(f"{server.base}/v1/batches", timeout=5).status_code == 200


def test_a_client_that_takes_nothing_keeps_its_place_no_longer(shared):
    server, fake = shared
    # More than all buffers on the way to it hold.
    events = b'data: {"choices": []}\n\n' * 1_000_000
    stream = Action(body=events, headers={"Content-Type": pass_through.EVENT_STREAM})
    fake.on("hello", stream, stream)
    with ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(post(server, stream=True))
        assert len(held_until(server)) == 2
        within_s = TAKES_NOTHING_S + 15
        eventually(lambda: not held_until(server), within_s=within_s, what="the end of the holds")


def test_there_is_always_room_to_poll(shared):
    server, fake = shared
    fake.always("long", Action(pause_s=60))
    many = range(STREAMS)
    with ExitStack() as clients, ThreadPoolExecutor(16) as pool:
        begun = [clients.enter_context(each) for each in pool.map(lambda _: post(server, "long", stream=True), many)]
        streams = [each.iter_content(1) for each in begun]
        assert all(next(stream) for stream in streams)
        assert len(fake.seen) == len(held_until(server)) == STREAMS

        started = time.monotonic()
        refused = post(server)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        for _ in range(5):
            assert requests.get(f"{server.base}/v1/batches", timeout=5).status_code == 200
        assert time.monotonic() - started < SOON_S
        assert not any(seen.gone for seen in fake.seen)
    eventually(lambda: post(server).status_code == 200, within_s=10, what="a free place")


def test_a_killed_web_process_holds_nothing_for_long(stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url)
    fake.on("long", Action(hang=True))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(post, server, "long")
        # Renewed by a call of which nothing comes for long.
        started = time.monotonic()
        eventually(lambda: fake.seen, what="the call")
        eventually(lambda: time.monotonic() > started + 7 and held_until(server)[0] > 12, within_s=20, what="renewal")
        server.kill("gunicorn")
        assert isinstance(call.exception(), requests.ConnectionError)
    assert len(held_until(server)) == 1
    eventually(lambda: not held_until(server), within_s=16, what="the end of the hold")
    eventually(lambda: fake.seen[0].gone, within_s=2, what="the end of the call")


def test_chunked_bodies_arrive_whole(shared):
    server, fake = shared
    content = json.dumps(line("a" * 3 * 2**20)["body"]).encode()
    pieces = (content[start : start + 2**16] for start in range(0, len(content), 2**16))
    response = requests.post(
        f"{server.base}{CHAT}", data=pieces, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert response.status_code == 200
    assert fake.seen[0].body == json.loads(content)


def test_a_server_that_is_down_is_told(stack, official):
    server = stack(OLLAMA_BASE_URL=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(openai.InternalServerError, match="Start it: systemctl start ollama") as refused:
        official(server).chat.completions.create(**line("hello")["body"])
    assert refused.value.status_code == 503


def test_the_official_client_chats_with_a_real_model(stack, official):
    client = official(stack(BACKEND_URL="embedded"))
    asked = {
        "model": "gpt-4o-mini",
        "temperature": 0,
        "messages": [
            {"role": "system", "content": "You answer in one short sentence."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
    }
    whole = client.chat.completions.create(max_completion_tokens=16, **asked)
    assert "Paris" in whole.choices[0].message.content
    assert 1 <= whole.usage.completion_tokens <= 16

    chunks = list(
        client.chat.completions.create(
            max_completion_tokens=16, stream=True, stream_options={"include_usage": True}, **asked
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 5
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    vectors = client.embeddings.create(model="any", input=["one", "two"]).data
    assert [len(each.embedding) > 100 for each in vectors] == [True, True]
    assert client.completions.create(model="any", prompt="Once upon", max_tokens=4).choices[0].text
    assert client.responses.create(model="any", input="Hi", max_output_tokens=8).output_text
    seen = [event.type for event in client.responses.create(model="any", input="Hi", max_output_tokens=8, stream=True)]
    assert seen[0] == "response.created"
    assert seen[-1] in ("response.completed", "response.incomplete")

    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="any", messages=[{"role": "user", "content": "word " * 6000}])
    assert refused.value.code == "context_length_exceeded"
