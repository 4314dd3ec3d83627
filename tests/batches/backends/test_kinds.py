"""Which kind a model server is, and what it tells. HTTP is answered by a small real server."""

import socket

import pytest
from pytest_httpserver import HTTPServer

from batches import backends, registry
from batches.backends import llama_router
from batches.backends.replies import Verdict
from batches.backends.states import Model, ModelState, NotDone
from batches.models import Backend

CHAT = "/v1/chat/completions"


class Server:
    """Answers GETs; whatever it was not told about is a 404."""

    def __init__(self, http: HTTPServer) -> None:
        self.http = http

    def get(self, path, json=None, *, status=200, headers=None):
        handler = self.http.expect_request(path, method="GET")
        if json is not None:
            handler.respond_with_json(json)
        else:
            handler.respond_with_data("not found", status=status, headers=headers)

    def lists_models(self, *models):
        self.get("/v1/models", {"object": "list", "data": list(models)})


@pytest.fixture
def server(settings):
    with HTTPServer() as http:
        http.no_handler_status_code = 404
        settings.BACKEND_URL = http.url_for("").rstrip("/")
        yield Server(http)


def test_ollama_is_recognised_by_its_version(server):
    server.get("/api/version", {"version": "0.33.0"})
    server.get("/v1/models", {"data": [{"id": "gemma3:12b", "created": 5, "owned_by": "library"}, {"id": "t"}]})
    server.get("/api/ps", {"models": [{"name": "t"}]})
    state = backends.probe()
    assert (state.kind, state.version, state.parallel) == ("ollama", "0.33.0", None)
    assert state.models == [Model("gemma3:12b", 5, "library"), Model("t", 0, "unknown")]
    assert state.loaded == ["t"]


def test_of_two_runners_of_one_name_the_one_that_is_used_tells(server):
    """A model that was pulled anew while it was loaded: the list begins with what stays longest."""
    server.get("/api/version", {"version": "0.33.0"})
    server.lists_models({"id": "m", "owned_by": "library"})
    server.get("/api/ps", {"models": [{"name": "m", "expires_at": "later"}, {"name": "m", "expires_at": "earlier"}]})
    assert backends.probe().loaded_until == {"m": "later"}


def test_what_tells_a_version_alone_is_no_ollama(server):
    server.get("/api/version", {"version": "1.2.3"})
    server.lists_models({"id": "a", "owned_by": "gateway"})
    assert backends.probe().kind == "openai"


def test_llama_swap_is_recognised_by_the_owner_of_its_models(server):
    """It tells its version as Ollama does, and has nothing else of Ollama's."""
    server.get("/api/version", {"version": "0", "commit": "abcd1234", "build_date": "unknown"})
    server.lists_models({"id": "a", "owned_by": "llama-swap"}, {"id": "b", "owned_by": "llama-swap"})
    states = {"a": "ready", "b": "starting"}
    server.get("/running", {"running": [{"model": name, "state": state} for name, state in states.items()]})
    state = backends.probe()
    assert (state.kind, state.version, state.names, state.loaded) == ("llama-swap", "0", ["a", "b"], ["a"])


def test_other_names_of_a_model_of_llama_swap_are_loaded_with_it(server):
    other = {"meta": {"llamaswap": {"type": "alias", "modelID": "a"}}}
    entries = [{"id": "a"}, {"id": "also a"} | other, {"id": "b"}]
    server.lists_models(*({"owned_by": "llama-swap"} | each for each in entries))
    server.get("/running", {"running": [{"model": "a", "state": "ready"}]})
    state = backends.probe()
    assert state.loaded == ["a", "also a"]
    assert [model.root for model in state.models] == ["", "a", ""]


def test_an_old_llama_swap_tells_no_version(server):
    server.lists_models({"id": "a", "owned_by": "llama-swap"})
    state = backends.probe()
    assert (state.kind, state.version, state.loaded) == ("llama-swap", "", [])


def test_vllm_is_recognised_by_the_owner_of_its_models(server):
    server.lists_models({"id": "Qwen/Qwen3-8B", "owned_by": "vllm"})
    server.get("/version", {"version": "0.12.0"})
    state = backends.probe()
    assert (state.kind, state.version, state.names) == ("vllm", "0.12.0", ["Qwen/Qwen3-8B"])
    assert state.parallel is None


def test_llama_server_is_recognised_by_the_owner_of_its_model(server):
    server.lists_models({"id": "smollm2:135m", "owned_by": "llamacpp"})
    server.get("/props", {"total_slots": 4})
    state = backends.probe()
    assert (state.kind, state.parallel) == ("llama-server", 4)


def test_the_slots_of_a_llama_server_that_does_not_tell_them_are_counted(server):
    server.lists_models({"id": "smollm2:135m", "owned_by": "llamacpp"})
    state = backends.probe()
    assert (state.kind, state.parallel) == ("llama-server", None)
    assert len(backends.kind_named(state.kind).slot_requests("smollm2:135m")) == 2
    assert backends.kind_named("vllm").slot_requests("m") == []


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
    settings.BACKEND_NAME = "gpu"
    server.lists_models({"id": "m", "owned_by": "llamacpp"})
    server.get("/props", {"total_slots": 4})
    registry.report_backend()
    assert Backend.objects.get(name="gpu").parallel == 4
    settings.BACKEND_PARALLEL = 16
    registry.report_backend()
    assert Backend.objects.get(name="gpu").parallel == 16


def test_any_server_that_lists_models_will_do(server):
    server.lists_models({"id": "m", "owned_by": "somebody"})
    assert backends.probe().kind == "openai"


def test_a_server_that_lists_none_is_refused_with_the_setting_to_check(server):
    server.get("/api/version", status=404)
    server.get("/v1/models", status=404)
    with pytest.raises(backends.Unreachable, match="Check BACKEND_URL"):
        backends.probe()


@pytest.mark.parametrize(
    ("ollama", "local", "hint"),
    [
        (True, True, "Start it: systemctl start ollama"),
        (True, False, "OLLAMA_HOST=0.0.0.0 ollama serve"),
        (False, True, "No model server answers at"),
    ],
)
def test_a_server_that_is_away_is_explained(settings, ollama, local, hint):
    settings.BACKEND_IS_OLLAMA, settings.BACKEND_IS_LOCAL = ollama, local
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        settings.BACKEND_URL = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(backends.Unreachable, match=hint):
            backends.probe()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ollama", "hint"),
    [
        (True, "Ollama takes connections at .* systemctl restart ollama"),
        (False, "The model server takes .* Restart it"),
    ],
)
def test_a_server_that_hangs_is_not_told_to_be_started(settings, monkeypatch, ollama, hint):
    settings.BACKEND_IS_OLLAMA, settings.BACKEND_IS_LOCAL = ollama, True
    monkeypatch.setattr("batches.backends.connection.QUESTION_TIMEOUT_S", 0.2)
    monkeypatch.setattr("batches.backends.connection.CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        settings.BACKEND_URL = f"http://127.0.0.1:{listening.getsockname()[1]}"
        for _ in range(3):  # the last ones are not even connected: nobody accepts
            with pytest.raises(backends.Unreachable, match=hint) as told:
                backends.probe()
            assert "tart it:" not in str(told.value).replace("Restart it:", "")
            assert backends.is_silent(0.2)


def test_a_redirect_is_not_followed(server):
    for path in ("/api/version", "/v1/models"):
        server.get(path, status=302, headers={"Location": server.http.url_for("/elsewhere")})
    server.get("/elsewhere", {"version": "0.33.0"})
    with pytest.raises(backends.Unreachable):
        backends.probe()
    assert "/elsewhere" not in {request.path for request, _ in server.http.log}


def test_aliases(settings):
    settings.MODEL_ALIASES = {"gpt-4o": "gemma3:12b"}
    assert [backends.resolve_alias(name) for name in ("gpt-4o", "x")] == ["gemma3:12b", "x"]
    settings.MODEL_ALIASES = {"gpt-4o": "gemma3:12b", "*": "tiny"}
    assert [backends.resolve_alias(name) for name in ("gpt-4o", "x")] == ["gemma3:12b", "tiny"]


def router_card(name, value, **status):
    meta = {"n_ctx": 512, "n_ctx_train": 8192} if value == "loaded" else None
    card = {"id": name, "object": "model", "owned_by": "llamacpp", "created": 5, "meta": meta}
    return card | {"status": {"value": value, "args": ["llama-server"]} | status}


@pytest.mark.parametrize(("states", "loaded", "slots"), [("ul", ["b"], 2), ("uu", [], None), ("ll", ["a", "b"], None)])
def test_a_llama_server_without_a_model_is_a_router(server, states, loaded, slots):
    values = {"u": "unloaded", "l": "loaded"}
    server.lists_models(*(router_card(name, values[each]) for name, each in zip("ab", states, strict=True)))
    server.http.expect_request("/props", query_string="model=b").respond_with_json({"total_slots": 2})
    server.get("/props", {"role": "router", "default_generation_settings": {"n_ctx": 0}})
    state = backends.probe()
    assert (state.kind, state.names, state.loaded, state.parallel) == ("llama-router", ["a", "b"], loaded, slots)


def test_a_router_describes_a_model_that_is_loaded_and_loads_none_to_describe_it():
    answers = {
        "/v1/models": (200, {"data": [router_card("a b", "loaded"), router_card("c", "unloaded")]}),
        "/props?model=a%20b": (200, {"default_generation_settings": {"n_ctx": 512}}),
    }
    state = describe("llama-router", answers, "a b")
    assert (state.context_tokens, state.most_context_tokens) == (512, 8192)
    assert describe("llama-router", answers, "c") is None
    assert describe("llama-router", answers, "gone") is None
    assert backends.kind_named("llama-router").loaded(lambda path, body: answers[path]) == {"a b": ""}


def router_loads(*states):
    """What loading the model m asks a router whose list says these states, one after the other."""
    asked, left = [], list(states)

    def exchange(path, body):
        asked.append((path, body))
        if body is not None:
            return 400 if states[0][0] == "loaded" else 200, {}
        value, status = left.pop(0) if len(left) > 1 else left[0]
        return 200, {"data": [router_card("m", value, **status)]}

    backends.kind_named("llama-router").load(CHAT, "m")(exchange)
    return asked


def test_a_router_is_asked_until_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(llama_router, "LOOK_EVERY_S", 0.0)
    order, look = ("/models/load", {"model": "m"}), ("/v1/models", None)
    assert router_loads(("loading", {}), ("loading", {}), ("loaded", {})) == [order, look, look, look]
    assert router_loads(("loaded", {})) == [order, look]


def test_a_model_whose_process_does_not_come_up_cannot_be_loaded(monkeypatch):
    monkeypatch.setattr(llama_router, "LOOK_EVERY_S", 0.0)
    with pytest.raises(NotDone) as error:
        router_loads(("loading", {}), ("unloaded", {"failed": True, "exit_code": 1}))
    assert (error.value.reply.verdict, error.value.reply.status) == (Verdict.UNLOADABLE, 500)
    assert "its process ended with 1" in error.value.reply.body
