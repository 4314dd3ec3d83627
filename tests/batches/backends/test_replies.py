"""What the replies of each kind of model server mean."""

import json

import pytest

from batches import backends
from batches.backends.replies import Usage, Verdict
from tests.fake_backend import answer, error_body

CHAT = "/v1/chat/completions"


def judge(kind, status, body, endpoint=CHAT):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return backends.kind_named(kind).judge(endpoint, status, content)


ASKED = {"model": "m", "input": "x", "prompt": "x", "messages": [{"content": "x"}]}
ZERO = {"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    ("kind", "status", "body", "endpoint", "verdict"),
    [
        ("ollama", 404, error_body("model 'x' not found"), CHAT, Verdict.MODEL_MISSING),
        (
            "ollama",
            404,
            error_body('model "x" not found, try pulling it first'),
            "/v1/embeddings",
            Verdict.MODEL_MISSING,
        ),
        # No word of the API: an old Ollama without this endpoint, or a wrong address.
        ("ollama", 404, b"404 page not found", "/v1/responses", Verdict.FAILED),
        ("vllm", 404, error_body("no such thing"), CHAT, Verdict.REFUSED),
        ("ollama", 400, error_body("embedding contains NaN or Inf"), "/v1/embeddings", Verdict.FAILED),
        ("ollama", 500, error_body("model requires more system memory"), CHAT, Verdict.UNLOADABLE),
        ("ollama", 500, error_body("llama-server process has terminated: signal: killed"), CHAT, Verdict.UNLOADABLE),
        ("ollama", 403, b"", CHAT, Verdict.MISCONFIGURED),
        ("ollama", 403, {"error": "cloud models are disabled"}, CHAT, Verdict.REFUSED),
        ("ollama", 401, {"error": "unauthorized"}, CHAT, Verdict.REFUSED),
        ("vllm", 401, error_body("Unauthorized"), CHAT, Verdict.MISCONFIGURED),
        ("ollama", 504, b"", CHAT, Verdict.FAILED),
        ("openai", 200, b'{"data": [1e999]}', "/v1/embeddings", Verdict.FAILED),
        ("ollama", 400, error_body("[] is too short - 'messages'"), CHAT, Verdict.REFUSED),
        ("ollama", 400, error_body("do embedding request: EOF"), "/v1/embeddings", Verdict.CRASHED),
        ("ollama", 400, error_body("do embedding request: EOF"), CHAT, Verdict.REFUSED),
        ("ollama", 500, error_body("model runner has unexpectedly stopped"), CHAT, Verdict.CRASHED),
        ("ollama", 500, error_body("template: nope"), CHAT, Verdict.FAILED),
        ("ollama", 501, error_body("This server does not support embeddings."), "/v1/embeddings", Verdict.REFUSED),
        ("ollama", 503, error_body("server busy, please try again.  maximum pending"), CHAT, Verdict.BUSY),
        ("ollama", 429, error_body("slow down"), CHAT, Verdict.BUSY),
        ("vllm", 404, error_body("The model `x` does not exist."), CHAT, Verdict.MODEL_MISSING),
        ("llama-server", 400, error_body("exceeds the available context size"), CHAT, Verdict.REFUSED),
        ("llama-server", 503, error_body("Loading model"), CHAT, Verdict.BUSY),
        ("openai", 302, b"", CHAT, Verdict.MISCONFIGURED),
        ("openai", 200, b"", CHAT, Verdict.FAILED),
        # A runner that repeats itself is stopped without a final record: no finish_reason, or no tokens.
        ("ollama", 200, answer(CHAT, ASKED) | {"usage": ZERO}, CHAT, Verdict.FAILED),
        ("ollama", 200, answer("/v1/completions", ASKED) | {"usage": ZERO}, "/v1/completions", Verdict.FAILED),
        ("ollama", 200, answer("/v1/responses", ASKED) | {"usage": ZERO}, "/v1/responses", Verdict.FAILED),
    ],
)
def test_verdicts(kind, status, body, endpoint, verdict):
    reply = judge(kind, status, body, endpoint)
    assert reply.verdict is verdict
    if verdict is Verdict.MISCONFIGURED:
        assert reply.message


def test_an_error_that_is_no_json_is_put_in_the_envelope():
    reply = judge("ollama", 500, b"<h1>Bad</h1>")
    assert json.loads(reply.body)["error"]["message"] == "<h1>Bad</h1>"


@pytest.mark.parametrize("endpoint", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses"])
def test_a_good_answer_of_each_endpoint(endpoint):
    body = answer(endpoint, ASKED)
    reply = judge("ollama", 200, body, endpoint)
    assert (reply.verdict, reply.usage.input_tokens) == (Verdict.ANSWERED, 7)
    handed_out = json.loads(reply.body)
    assert handed_out | {"id": None} == body | {"id": None}


def test_usage_under_both_namings():
    details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
    chat = answer(CHAT, {"messages": [{"content": "x"}]})
    chat["usage"] |= details
    assert judge("openai", 200, chat).usage == Usage(7, 2, 3, 1)
    body = answer("/v1/responses", {"input": "x"})
    body["usage"] |= {"input_tokens_details": {"cached_tokens": 4}, "output_tokens": -1}
    assert judge("openai", 200, body, "/v1/responses").usage == Usage(7, 4, 0, 0)
