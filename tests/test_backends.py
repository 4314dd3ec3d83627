"""Which kind a model server is, and what its replies mean. HTTP is answered by `responses`, below requests."""

import json

import pytest
import requests
import responses

from batches import backends, presence
from batches.backends.base import Model, ModelState, Usage, Verdict
from batches.models import Backend
from tests.fake_backend import answer, error_body

URL = "http://gpu.example:8000"
CHAT = "/v1/chat/completions"


@pytest.fixture
def server(settings):
    settings.BACKEND_URL = URL
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


def lists_models(server, *models):
    server.get(f"{URL}/api/version", status=404, body="not found")
    server.get(f"{URL}/v1/models", json={"object": "list", "data": list(models)})


def test_ollama_is_recognised_by_its_version(server):
    server.get(f"{URL}/api/version", json={"version": "0.33.0"})
    server.get(
        f"{URL}/v1/models", json={"data": [{"id": "gemma3:12b", "created": 5, "owned_by": "library"}, {"id": "t"}]}
    )
    server.get(f"{URL}/api/ps", json={"models": [{"name": "t"}]})
    state = backends.probe()
    assert (state.kind, state.version, state.parallel) == ("ollama", "0.33.0", None)
    assert state.models == [Model("gemma3:12b", 5, "library"), Model("t", 0, "unknown")]
    assert state.loaded == ["t"]


def test_vllm_is_recognised_by_the_owner_of_its_models(server):
    lists_models(server, {"id": "Qwen/Qwen3-8B", "owned_by": "vllm"})
    server.get(f"{URL}/version", json={"version": "0.12.0"})
    state = backends.probe()
    assert (state.kind, state.version, state.names) == ("vllm", "0.12.0", ["Qwen/Qwen3-8B"])
    assert state.parallel is None


def test_llama_server_is_recognised_by_the_owner_of_its_model(server):
    lists_models(server, {"id": "smollm2:135m", "owned_by": "llamacpp"})
    server.get(f"{URL}/props", json={"total_slots": 4})
    state = backends.probe()
    assert (state.kind, state.parallel) == ("llama-server", 4)


def describe(kind, answers, model="m"):
    """What a kind makes of a server's answers, given by path."""
    return backends.kind_named(kind).describe(lambda path, body: answers.get(path, (404, None)), model)


def test_ollama_describes_a_model_by_what_is_loaded_and_what_it_was_made_for():
    running = [
        {"name": "tiny:latest", "context_length": 4096, "size": 11 * 2**30, "size_vram": 7 * 2**30},
        {"name": "other:latest", "context_length": 8192, "size": 1, "size_vram": 1},
    ]
    info = {"general.architecture": "llama", "llama.context_length": 32_768, "llama.rope.dimension_count": 64}
    answers = {
        "/api/ps": (200, {"models": running}),
        "/api/show": (200, {"model_info": info, "capabilities": ["completion", "tools"]}),
    }
    capabilities = frozenset({"completion", "tools"})
    assert describe("ollama", answers, "tiny") == ModelState(
        "ollama", 4096, 32_768, size=11 * 2**30, size_vram=7 * 2**30, capabilities=capabilities
    )
    assert describe("ollama", answers, "absent") == ModelState("ollama", 0, 32_768, capabilities=capabilities)
    # Of an Ollama that says nothing of it nothing is known.
    assert describe("ollama", {}) == ModelState("ollama")
    assert describe("ollama", {"/api/ps": (200, []), "/api/show": (200, {"model_info": 1})}) == ModelState("ollama")


def test_the_other_kinds_describe_their_model_by_what_they_tell():
    listed = {"data": [{"id": "m", "max_model_len": 8192, "meta": {"n_ctx_train": 32_768}}]}
    answers = {
        "/v1/models": (200, listed),
        "/props": (200, {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 4}),
    }
    assert describe("vllm", answers) == ModelState("vllm", 8192)
    assert describe("vllm", answers, "absent") is None
    assert describe("llama-server", answers, "any name") == ModelState("llama-server", 4096, 32_768)
    assert describe("llama-server", {}) == ModelState("llama-server")
    assert describe("openai", answers) is None


def test_ollama_keeps_a_model_over_a_pause_and_gives_it_up_without_loading_it():
    ollama = backends.kind_named("ollama")
    for endpoint in (CHAT, "/v1/embeddings"):
        _, body = ollama.load(endpoint, "m")
        assert body["keep_alive"] == "30m"
        assert "options" not in body
    assert ollama.unload("m") == ("/api/generate", {"model": "m", "stream": False, "keep_alive": 0})
    assert backends.kind_named("vllm").unload("m") is None


def test_what_the_server_serves_at_once_is_on_the_backends_row_and_the_setting_wins(server, settings, db):
    settings.BACKEND_NAME = URL
    lists_models(server, {"id": "m", "owned_by": "llamacpp"})
    server.get(f"{URL}/props", json={"total_slots": 4})
    presence.report_backend()
    assert Backend.objects.get(name=URL).parallel == 4
    settings.BACKEND_PARALLEL = 16
    presence.report_backend()
    assert Backend.objects.get(name=URL).parallel == 16


def test_any_server_that_lists_models_will_do(server):
    lists_models(server, {"id": "m", "owned_by": "somebody"})
    assert backends.probe().kind == "openai"


def test_a_server_that_lists_none_is_refused_with_the_setting_to_check(server):
    server.get(f"{URL}/api/version", status=404)
    server.get(f"{URL}/v1/models", status=404)
    with pytest.raises(backends.Unreachable, match="Check BACKEND_URL"):
        backends.probe()


@pytest.mark.parametrize(
    ("ollama", "local", "hint"),
    [
        (True, True, "Start it: ollama serve"),
        (True, False, "OLLAMA_HOST=0.0.0.0 ollama serve"),
        (False, True, "No model server answers at"),
    ],
)
def test_a_server_that_is_away_is_explained(server, settings, ollama, local, hint):
    settings.BACKEND_IS_OLLAMA, settings.BACKEND_IS_LOCAL = ollama, local
    server.get(f"{URL}/api/version", body=requests.ConnectionError("refused"))
    with pytest.raises(backends.Unreachable, match=hint):
        backends.probe()


def test_a_redirect_is_not_followed(server):
    server.get(f"{URL}/api/version", status=302, headers={"Location": "http://elsewhere.example/"})
    server.get(f"{URL}/v1/models", status=302, headers={"Location": "http://elsewhere.example/"})
    with pytest.raises(backends.Unreachable):
        backends.probe()
    assert {call.request.url.split("/")[2] for call in server.calls} == {"gpu.example:8000"}


def test_aliases(settings):
    settings.MODEL_ALIASES = {"gpt-4o": "gemma3:12b"}
    assert [backends.resolve_alias(name) for name in ("gpt-4o", "x")] == ["gemma3:12b", "x"]
    settings.MODEL_ALIASES = {"gpt-4o": "gemma3:12b", "*": "tiny"}
    assert [backends.resolve_alias(name) for name in ("gpt-4o", "x")] == ["gemma3:12b", "tiny"]


def test_ollama_adds_the_latest_tag_to_a_name_without_one():
    models = ["tiny:latest", "hf.co/user/repo:Q4", "gemma3:12b"]
    for name, known in (("tiny", True), ("tiny:latest", True), ("gemma3", False), ("hf.co/user/repo:Q4", True)):
        assert backends.has_model("ollama", models, name) is known


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
