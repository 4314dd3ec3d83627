"""A prompt that Ollama cut without a word is an error line. The numbers are those of Ollama 0.32.14 and 0.24.0."""

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from batches.backends import kind_named, ollama_context
from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Usage, Verdict
from batches.backends.states import Unchecked
from batches.dispatch import outcomes
from batches.models import Batch, Line, LineState
from batches.status import progress
from common import database
from tests.batches.dispatch.failures import again
from tests.conftest import custom_ids, line
from tests.fake_backend import Action, error_body

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
LONG = "word " * 2000
EXCEEDED = json.dumps(
    {
        "error": {
            "code": 400,
            "message": "request (16399 tokens) exceeds the available context size (4096 tokens), try increasing it",
            "type": "exceed_context_size_error",
        }
    }
)


class Server:
    """What Ollama answers to the questions of `cut_prompt`, and what it was asked."""

    def __init__(self, status=200, body=None, *, loaded=(("gemma3:12b", 4096),)):
        self.answer = (status, body if body is not None else {"prompt_eval_count": 1})
        self.loads(*loaded)
        self.asked = []
        self.looked = 0  # times it was asked what is loaded

    def loads(self, *loaded):
        self.loaded = [{"name": name, "context_length": context} for name, context in loaded]

    def __call__(self, path, body):
        if path == "/api/ps":
            assert body is None
            self.looked += 1
            return 200, {"models": self.loaded}
        self.asked.append((path, body))
        return self.answer


def cut(server, prompt_tokens, endpoint=CHAT, *, kind=None, **body):
    kind = kind or kind_named("ollama")
    found = kind.cut_prompt(server, endpoint, {"model": "gemma3:12b"} | body, Usage(prompt_tokens))
    return found.message if found else ""


def say(*texts, role="user"):
    return [{"role": role, "content": text} for text in texts]


@pytest.mark.parametrize("name", ["Gemma3:12B", "library/gemma3:12b", "registry.ollama.ai/library/gemma3:12b"])
def test_the_context_is_that_of_the_model_however_it_is_named(name):
    server = Server(400, {"error": EXCEEDED}, loaded=(("gemma3:12b", 65536), ("small:1b", 512)))
    assert cut(server, 2050, model=name, messages=say(LONG)) == ""
    assert server.asked == []


def test_a_message_that_was_halved_is_found():
    server = Server(400, {"error": EXCEEDED})
    problem = cut(server, 2050, messages=say(LONG))
    assert problem.startswith("The prompt has 16399 tokens and the context 4096.")
    assert "OLLAMA_CONTEXT_LENGTH" in problem
    path, asked = server.asked[0]
    assert path == "/api/chat"
    assert asked == {
        "model": "gemma3:12b",
        "messages": [{"role": "user", "content": LONG}],
        "truncate": False,
        "stream": False,
        "options": {"num_predict": 1},
        "keep_alive": "30m",
    }


def test_the_words_of_the_older_engine_are_known():
    server = Server(400, {"error": "the input length exceeds the context length"})
    assert cut(server, 4096, messages=say(LONG)).startswith("The prompt is longer than the context.")


def test_a_history_that_lost_its_beginning_is_found_however_little_is_left():
    assert cut(Server(400, {"error": EXCEEDED}), 30, messages=say(LONG, "ok", "what?"))


@pytest.mark.parametrize(
    ("prompt_tokens", "messages"),
    [
        (7, say("hi")),  # too short to be cut
        (2047, say(LONG)),  # a single message is cut to half the context or more
        (1000, say("word " * 700)),  # fewer bytes than the context has tokens
        (2047, [*say("be brief", role="system"), *say(LONG)]),
    ],
)
def test_where_nothing_can_have_been_cut_nothing_is_asked(prompt_tokens, messages):
    server = Server(400, {"error": EXCEEDED})
    assert cut(server, prompt_tokens, messages=messages) == ""
    assert server.asked == []


@pytest.mark.parametrize("server", [Server(), Server(400, {"error": "long-context:7b does not support tools"})])
def test_an_answer_that_names_nothing_too_long_settles_it(server):
    assert cut(server, 3000, messages=say(LONG)) == ""
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("endpoint", "server"),
    [
        (CHAT, Server(500, {"error": EXCEEDED})),
        (CHAT, Server(500, {"error": "llama-server process no longer running: unknown"})),
        (CHAT, Server(404, {"error": "model 'gemma3:12b' not found"})),
        (CHAT, Server(499, {"error": "request canceled"})),
        (CHAT, Server(302, {})),
        (CHAT, Server(503, None)),
        (EMBEDDINGS, Server(400, {"error": "llama-server process no longer running: unknown"})),
        (EMBEDDINGS, Server(400, {"error": "connection refused"})),
        (EMBEDDINGS, Server(400, {"error": "context canceled"})),
    ],
)
def test_any_other_answer_leaves_it_open(endpoint, server):
    with pytest.raises(Unchecked):
        cut(server, 3000, endpoint, **({"input": LONG} if endpoint == EMBEDDINGS else {"messages": say(LONG)}))


def test_the_context_is_that_of_the_model_or_the_smallest_loaded():
    for loaded, asked in (
        ([("gemma3:12b", 32768), ("tiny", 512)], 0),
        ([("other", 32768), ("tiny", 512)], 1),
        ([("gemma3:12b:latest", 32768)], 0),
        ([], 1),
    ):
        server = Server(loaded=loaded)
        cut(server, 9000, messages=say(LONG))
        assert len(server.asked) == asked, loaded


def test_the_context_is_asked_for_once_for_lines_that_come_fast():
    kind, server = kind_named("ollama"), Server()
    for _ in range(20):
        assert cut(server, 700, kind=kind, messages=say("word " * 600)) == ""
        assert cut(server, 700, EMBEDDINGS, kind=kind, input="word " * 600) == ""
    assert server.looked == 1
    cut(server, 700, kind=kind, model="other", messages=say("word " * 600))
    assert server.looked == 2
    # A drive of its own knows nothing of it.
    cut(server, 700, messages=say("word " * 600))
    assert server.looked == 3


def test_a_context_that_became_smaller_is_noticed_where_an_answer_counts_too_few_tokens():
    kind, server = kind_named("ollama"), Server(400, {"error": EXCEEDED}, loaded=[("gemma3:12b", 32768)])
    assert cut(server, 2400, kind=kind, messages=say(LONG)) == ""
    server.loads(("gemma3:12b", 2048))
    assert cut(server, 1026, kind=kind, messages=say(LONG))
    assert server.looked == 2


def test_a_context_that_became_smaller_is_noticed_after_a_moment_whatever_is_counted(monkeypatch):
    kind, server = kind_named("ollama"), Server(400, {"error": EXCEEDED}, loaded=[("gemma3:12b", 32768)])
    history = say(*["word " * 500] * 4)
    assert cut(server, 2400, kind=kind, messages=history) == ""
    server.loads(("gemma3:12b", 2048))
    assert cut(server, 2046, kind=kind, messages=history) == ""
    monkeypatch.setattr(ollama_context, "REMEMBERED_S", 0.0)
    assert cut(server, 2046, kind=kind, messages=history)


def test_a_context_that_became_smaller_accuses_nobody_wrongly():
    kind, server = kind_named("ollama"), Server(loaded=[("gemma3:12b", 2048)])
    assert cut(server, 2400, kind=kind, messages=say(LONG)) == ""
    assert len(server.asked) == 1


def test_a_completion_is_asked_by_generate():
    server = Server(400, {"error": EXCEEDED})
    assert cut(server, 2050, COMPLETIONS, prompt=LONG, max_tokens=5)
    path, asked = server.asked[0]
    assert path == "/api/generate"
    assert asked["prompt"] == LONG


def test_responses_are_asked_as_a_chat():
    for given in (LONG, [{"role": "user", "content": [{"type": "input_text", "text": LONG}]}]):
        server = Server(400, {"error": EXCEEDED})
        assert cut(server, 2050, "/v1/responses", input=given, instructions="be brief")
        assert server.asked[0][1]["messages"] == [*say("be brief", role="system"), *say(LONG)]


def test_tools_images_and_calls_go_along():
    server = Server()
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    picture = [
        {"type": "text", "text": LONG},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
    ]
    messages = [
        {"role": "user", "content": picture},
        {"role": "assistant", "content": None, "tool_calls": [call, "odd"]},
        {"role": "tool", "tool_call_id": "call_1", "content": "result"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    cut(server, 3000, messages=messages, tools=tools)
    asked = server.asked[0][1]
    assert asked["tools"] == tools
    assert asked["messages"] == [
        {"role": "user", "content": LONG, "images": ["QUJD"]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "result"},
    ]

    server = Server()
    items = [
        {"type": "message", "role": "user", "content": LONG},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "not json"},
        {"type": "function_call_output", "call_id": "call_1", "output": "result"},
    ]
    cut(server, 3000, "/v1/responses", input=items)
    assert server.asked[0][1]["messages"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "result"},
    ]


def test_an_embedding_that_lost_its_end_is_found():
    server = Server(400, {"error": "the input length exceeds the context length"})
    assert cut(server, 2046, EMBEDDINGS, input=["hi", LONG])
    assert server.asked == [
        (
            "/api/embed",
            {"model": "gemma3:12b", "input": [LONG], "truncate": False, "stream": False, "keep_alive": "30m"},
        )
    ]
    server = Server(400, {"error": "the input length exceeds the context length"})
    assert cut(server, 1900, EMBEDDINGS, input=LONG) == ""
    assert cut(server, 2100, EMBEDDINGS, input=["hi"] * 2100) == ""
    assert server.asked == []


def test_its_line_is_an_error_line_and_not_an_answer(create, work, backend, settings):
    settings.FIT_CONTEXT = False
    long, fitting = "x" * 5000, "y" * 4000
    lines = [line(name, body={"messages": say(text)}) for name, text in (("long", long), ("fits", fitting), ("a", "a"))]
    batch = work.run(create(lines)["id"])
    assert custom_ids(work.content(batch["output_file_id"])) == ["fits", "a"]
    (error,) = work.content(batch["error_file_id"])
    assert (error["custom_id"], error["error"]) == ("long", None)
    assert error["response"]["status_code"] == 400
    refusal = error["response"]["body"]["error"]
    assert (refusal["type"], refusal["code"]) == ("invalid_request_error", "context_length_exceeded")
    assert "has 5000 tokens and the context 4096" in refusal["message"]
    # Asked once: it is nobody's fault but the line's.
    assert sorted(backend.arrived()) == sorted([long, fitting, "a"])


CRASHED = error_body("llama-server process no longer running: unknown")


UNANSWERED = [
    (CHAT, Action(reset=True)),
    (CHAT, Action(500, CRASHED)),
    (CHAT, Action(503, {"error": "server busy, please try again.  maximum pending requests exceeded"})),
    (CHAT, Action(404, {"error": "model 'gemma3:12b' not found"})),
    (CHAT, Action(403, "no such route at this proxy")),
    (EMBEDDINGS, Action(reset=True)),
    (EMBEDDINGS, Action(400, {"error": "connection refused"})),
]


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr("batches.backends.calls.CHECK_PAUSES_S", (0.0, 0.0))


def sent(create, work, endpoint, *texts):
    """A batch of these texts, not sent yet."""
    bodies = [{"messages": say(text, text)} if endpoint == CHAT else {"input": text} for text in texts]
    lines = [line(f"line-{number}", url=endpoint, body=body) for number, body in enumerate(bodies)]
    batch = create(lines, endpoint=endpoint)["id"]
    work.validate(batch)
    return batch


@pytest.mark.parametrize(("endpoint", "action"), UNANSWERED)
def test_a_question_that_is_not_answered_lets_no_answer_through(
    create, work, backend, at_once, endpoint, action, settings
):
    """The line is sent again, and pays nothing."""
    settings.FIT_CONTEXT = False
    for _ in range(4):
        backend.on_check.append(action)
    batch = sent(create, work, endpoint, "x" * 5000, "a")
    for _ in range(8):
        again(work)
    charged = set(Line.objects.values_list("attempts", "backend_crashes"))
    done = work.run(batch)
    assert charged == {(0, 0)}
    assert custom_ids(work.content(done["output_file_id"])) == ["line-1"]
    (error,) = work.content(done["error_file_id"])
    assert error["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert not backend.on_check


@pytest.mark.parametrize(("endpoint", "action"), UNANSWERED)
def test_a_question_is_asked_again_before_its_answer_is_given_up(create, work, backend, at_once, endpoint, action):
    backend.on_check.extend([action] * 2)
    text = "x" * 4000
    done = work.run(sent(create, work, endpoint, text))
    assert done["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert not backend.on_check
    assert len(backend.arrived()) == 1


def test_an_answer_that_cannot_be_checked_is_waited_for_longer_and_told(create, work, backend, at_once, caplog):
    backend.on_check.extend([Action(500, CRASHED)] * 9)
    text = "x" * 3000
    batch = Batch.objects.get(pk=sent(create, work, CHAT, text))
    waits = []
    for _ in range(3):
        again(work)
        waits.append(Line.objects.get().not_before - timezone.now())
    assert timedelta() < waits[0] < timedelta(seconds=2) < timedelta(seconds=50) < waits[1]
    assert waits[2] > timedelta(seconds=50)
    reason = "The model server did not say whether it read the whole prompt (HTTP 500 from /api/chat)."
    assert progress.waiting_for(batch) == progress.of(batch).waiting_for
    assert progress.waiting_for(batch) == (
        f"Line 1 waits for another try, because an answer could not be used. {reason} See its log."
    )
    assert caplog.text.count(reason) == 1
    again(work)
    assert progress.waiting_for(batch) is None
    assert work.run(batch.pk)["request_counts"]["completed"] == 1


def test_a_line_whose_answer_cannot_be_checked_leaves_the_server_to_others(create, work):
    sent(create, work, CHAT, "x" * 3000)
    row = Line.objects.select_related("batch").get()
    call = Call(row, CHAT, {}, 10.0, duration_s=12.0)
    reply = Reply(Verdict.UNCHECKED, code="prompt_unchecked", message="?")
    for seconds in (1, 120):
        values = outcomes.of(None, row, reply, call, busy_s=0.0, now=database.now())
        Line.objects.update(**values)
        row.refresh_from_db()
        assert timedelta(seconds=seconds - 1) < row.not_before - timezone.now() < timedelta(seconds=1.5 * seconds)
    call.duration_s = 1800.0
    Line.objects.update(**outcomes.of(None, row, reply, call, busy_s=0.0, now=database.now()))
    row.refresh_from_db()
    assert Line.objects.claimable().exists() is False  # not longer than any backoff may be


@pytest.mark.slow
def test_a_question_that_hangs_is_cut_at_the_deadline_and_lets_no_answer_through(create, work, backend, settings):
    settings.LINE_TIMEOUT_S = 1.0
    backend.on_check.append(Action(hang=True))
    batch = create([line("long", body={"messages": say("x" * 3000, "x" * 3000)})])["id"]
    work.validate(batch)
    work.drive()
    assert set(Line.objects.values_list("state", "attempts")) == {(LineState.PENDING, 0)}
    assert work.run(batch)["request_counts"]["failed"] == 0
    assert len(backend.arrived()) == 3  # a trial between the two


@pytest.mark.slow
def test_a_question_has_the_time_of_an_answer_to_itself(create, work, backend, settings):
    settings.LINE_TIMEOUT_S = 2.0
    backend.delay_s = backend.native_delay_s = 1.2
    batch = work.run(create([line("long", body={"messages": say("x" * 3000, "x" * 3000)})])["id"])
    assert batch["request_counts"]["completed"] == 1
    assert len(backend.arrived()) == 1


def test_every_answer_has_an_id_of_its_own(create, work, backend):
    batch = work.run(create([line(name) for name in "abc"])["id"])
    ids = [each["response"]["body"]["id"] for each in work.content(batch["output_file_id"])]
    assert len(set(ids)) == 3
    assert all(id_.startswith("chatcmpl-") and len(id_) == len("chatcmpl-") + 32 for id_ in ids)


def test_the_items_of_a_response_have_ids_of_their_own_too():
    body = {"id": "resp_246835", "output": [{"id": "msg_473801", "type": "message"}, "odd"], "model": "m"}
    one, two = (kind_named("ollama").hand_out(body) for _ in range(2))
    assert one["id"].startswith("resp_")
    assert one["output"][0]["id"].startswith("msg_")
    assert one["output"][1] == "odd"
    assert {one["id"], one["output"][0]["id"]}.isdisjoint({two["id"], two["output"][0]["id"], "resp_246835"})
    assert kind_named("vllm").hand_out(body) == body
    assert kind_named("ollama").hand_out({"object": "list"}) == {"object": "list"}
