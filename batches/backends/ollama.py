"""Ollama, as its source says that it behaves (server/routes.go, server/sched.go, openai/openai.go)."""

import re
import secrets
import sys
from collections.abc import Mapping
from typing import ClassVar

from batches.backends import error_bodies, ollama_context, ollama_derived, ollama_names, slots
from batches.backends.base import BackendKind
from batches.backends.parameters import ollama as parameters
from batches.backends.purposes import Purpose
from batches.backends.replies import JSON, SERVER_ERRORS, Usage, Verdict, count, output_tokens
from batches.backends.rules import Rule, verdict_of
from batches.backends.states import (
    Ask,
    CutPrompt,
    Derived,
    Exchange,
    Model,
    ModelState,
    PromptCache,
    State,
    Unchecked,
    listed_models,
)

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
EMBEDDINGS = "/v1/embeddings"

# Go's words for a connection to the runner that cannot be had or breaks.
BROKEN_CONNECTION = r"(?:Post|Get|Head) \"http|(?:dial|read|write) tcp |(?:unexpected )?EOF$"
# The runner died or does not answer; the next request starts it anew (llm/llama_server.go: getServerStatus, Chat,
# Completion; llm/server.go of Ollama before 0.30). Only what stands at the beginning is Ollama's: behind it may stand
# words of the line or of its answer.
RUNNER_DIED = re.compile(
    r"model runner has unexpectedly stopped|an (?:unknown )?error was encountered while running the model"
    r"|llama(?:-server| runner) process no longer running|unexpected server status: |no slots available after "
    r"|server not responding|connection refused$|health resp: |read health response: |health unmarshal: "
    r"|llama-server error: |(?:error|failed) reading ll(?:ama-server|m) |POST predict: |CUDA error"
    rf"|(?:llama-server apply-template error: )?(?:{BROKEN_CONNECTION})"
)
# What quotes the line or the answer of the model: no word of it says anything about the server.
QUOTATIONS = re.compile(
    r"llama-server returned invalid tool call|(?:failed|error|unable) (?:to )?(?:pars|marshal|unmarshal)"
    r"|template: |tool '|invalid ",
    re.IGNORECASE,
)
# The runner did not come up: no room on the card, a damaged or unsuitable model.
NO_ROOM = (
    "out of memory",
    "out-of-memory",
    "cudaMalloc failed",
    "requires more system memory",
    "memory layout cannot be allocated",
    "unable to load full model",
)
NOT_LOADED = (
    "timed out waiting for",
    "may be incompatible with your version",
    "failed to load model",
    "error starting llama-server",
    "llama-server startup failed",
    "llama-server binary not found",
    "exceeds file size",
)
# What EmbeddingsMiddleware, EmbedHandler and the runner's own checks say of an input (middleware/openai.go,
# server/routes.go, tools/server of llama.cpp).
EMBEDDING_INPUT_ERRORS = re.compile(
    r"json: cannot unmarshal .{1,40} into Go (?:value of type|struct field) \w+Request\b"
    r"|invalid (?:input|model name|value for '|dimensions|truncate|option)|missing request body"
    r"|(the )?input (length )?(after truncation )?exceeds|input is too |input content |pooling type "
    r"|\"(input|content|prompt)\" |(?:model|input) is required"
    r"|\S+ does not support (?:chat|completion|embeddings?|generate|insert|vision|tools|thinking)\b",
    re.IGNORECASE,
)

# How long a model stays on the card after its last answer. sched.go, useLoadedRunner: the time that the loading request
# says stays in force for requests that say none, as those under /v1 do; processCompleted starts the time anew after
# each. So the model outlasts a pause, whatever OLLAMA_KEEP_ALIVE is (0 would load the model for each line), and is gone
# within the day. Never send options of the runner with it, such as num_ctx: a later request without them would load the
# model again (needsReload).
KEEP_ALIVE = "30m"


class Ollama(BackendKind):
    name = "ollama"
    title = "Ollama"
    tables = parameters.TABLES
    loads_on_demand = True
    cache = PromptCache.BY_SLOT
    library_models: ClassVar[Mapping[Purpose, str]] = {
        Purpose.TEXTS: "gemma3:12b",
        Purpose.EMBEDDINGS: "nomic-embed-text",
    }
    derives = True
    most_in_flight = 9  # OLLAMA_NUM_PARALLEL is 1 unless set, and seldom above 8 on one card

    def __init__(self) -> None:
        self._contexts = ollama_context.Contexts()

    rules: ClassVar[tuple[Rule, ...]] = (
        # EmbedHandler answers 400 whatever fails, a dead runner included, so what is no known fault of the input is
        # taken for a crash.
        Rule(Verdict.REFUSED, (400,), endpoint=EMBEDDINGS, begins=EMBEDDING_INPUT_ERRORS),
        Rule(Verdict.REFUSED, (400,), endpoint=EMBEDDINGS, says=lambda error: error.is_refusal),
        Rule(Verdict.FAILED, (400,), ("NaN or Inf",), endpoint=EMBEDDINGS),
        Rule(Verdict.UNLOADABLE, (400,), NO_ROOM, endpoint=EMBEDDINGS),
        Rule(Verdict.CRASHED, (400,), endpoint=EMBEDDINGS),
        Rule(Verdict.REFUSED, SERVER_ERRORS, says=lambda error: error.is_refusal),
        Rule(Verdict.FAILED, SERVER_ERRORS, begins=QUOTATIONS),
        Rule(Verdict.CRASHED, SERVER_ERRORS, begins=RUNNER_DIED),
        Rule(Verdict.UNLOADABLE, SERVER_ERRORS, (*NO_ROOM, *NOT_LOADED)),
        # The runner was killed while it came up. A load that ends so says something about the model, a line does not.
        Rule(Verdict.UNLOADABLE, SERVER_ERRORS, ("process has terminated",), endpoint="/api/"),
        Rule(Verdict.CRASHED, SERVER_ERRORS, ("process has terminated",)),
        # A refused cloud model has a body; without a body, Ollama refuses our Host header.
        Rule(Verdict.REFUSED, (401, 403), says=lambda error: error.is_api_error),
        *BackendKind.rules,
    )

    def recognise(self, ask: Ask) -> State | None:
        status, body = ask("/api/version")
        if status != 200 or not isinstance(body, dict) or "version" not in body:
            return None
        status, answer = ask("/api/ps")
        if status == 404:
            return None  # something else that tells its version there, such as llama-swap
        loaded = ollama_context.loaded_in(answer)
        listed = listed_models(ask) or []
        models = [model for model in listed if not ollama_derived.read(model.id)]
        derived = [model.id for model in listed if ollama_derived.read(model.id)]
        # Ollama does not tell how many requests a model answers at once (OLLAMA_NUM_PARALLEL).
        until = _until(loaded)
        return State(self.name, str(body["version"]), models, list(loaded), loaded_until=until, derived=derived)

    def models(self, ask: Ask) -> list[Model] | None:
        listed = super().models(ask)
        return listed and [model for model in listed if not ollama_derived.read(model.id)]

    def describe(self, exchange: Exchange, model: str) -> ModelState | None:
        loaded = ollama_context.model_in(ollama_context.loaded_models(lambda path: exchange(path, None)), model)
        _, shown = exchange("/api/show", {"model": model})
        shown = shown if isinstance(shown, dict) else {}
        info, capabilities = shown.get("model_info"), shown.get("capabilities")
        # The key begins with the architecture: gemma3.context_length.
        lengths = [info[key] for key in info if key.endswith(".context_length")] if isinstance(info, dict) else []
        return ModelState(
            self.name,
            context_tokens=count(loaded, "context_length"),
            most_context_tokens=next((length for length in lengths if isinstance(length, int)), 0),
            size=count(loaded, "size", below=2**63),
            size_vram=count(loaded, "size_vram", below=2**63),
            capabilities=frozenset(map(str, capabilities)) if isinstance(capabilities, list) else frozenset(),
        )

    def loaded(self, exchange: Exchange) -> dict[str, str]:
        return _until(ollama_context.loaded_models(lambda path: exchange(path, None)))

    def identity(self, name: str) -> str:
        return ollama_names.identity(name)

    def empty_list_hint(self) -> str:
        return "Was it started as another user, or with another OLLAMA_MODELS, than before?"

    def give_back_hint(self, model: str, stand_in: str) -> str:
        if not stand_in or not self.identity(model):
            return "Create it again."
        return f"Create it again, or give its name to another model (ollama cp {stand_in} {model})."

    def name_to_install(self, model: str) -> str:
        return ollama_names.name_to_pull(model)

    def install_command(self, model: str) -> str:
        name = "" if ollama_derived.read(model) else self.name_to_install(model)
        return f"ollama pull {name}" if name else ""

    def load(self, endpoint: str, model: str) -> tuple[str, JSON] | None:
        # Without a prompt the handlers only load the model. A model for embeddings can be loaded by /api/embed alone.
        if endpoint == "/v1/embeddings":
            return "/api/embed", {"model": model, "input": [], "keep_alive": KEEP_ALIVE}
        return "/api/generate", {"model": model, "stream": False, "keep_alive": KEEP_ALIVE}

    def unload(self, model: str) -> tuple[str, JSON] | None:
        # GenerateHandler unloads before it asks what the model can do, so it also unloads a model for embeddings, whose
        # own handler would load the model first. A model that is just answering is unloaded after that (expireRunner).
        return "/api/generate", {"model": model, "stream": False, "keep_alive": 0}

    def slot_requests(self, model: str) -> list[tuple[str, JSON]]:
        # A model that writes no text refuses them, and has one slot (server/sched.go, load).
        body = {"model": model, "raw": True, "stream": True, "keep_alive": KEEP_ALIVE}
        body |= {"options": {"num_predict": slots.ANSWER_TOKENS, "temperature": 0}}
        return [("/api/generate", body | {"prompt": each}) for each in slots.BEGINNINGS]

    def larger_context_hint(self, tokens: int) -> str:
        return f"Start Ollama with OLLAMA_CONTEXT_LENGTH={tokens}, or give the model num_ctx {tokens} in its Modelfile."

    def missing_endpoint_hint(self, endpoint: str) -> str:
        return f"This Ollama has no {endpoint}. Update Ollama, or check its address (OLLAMA_BASE_URL)."

    def less_memory_hint(self) -> str:
        return "Lower OLLAMA_NUM_PARALLEL or OLLAMA_CONTEXT_LENGTH, or take a smaller quantisation of it."

    def hand_out(self, body: JSON) -> JSON:
        # middleware/openai.go draws ids from 999 numbers, so two lines of a batch may get the same id.
        items = body.get("output")
        if isinstance(items, list):
            body = body | {"output": [_with_own_id(item) if isinstance(item, dict) else item for item in items]}
        return _with_own_id(body)

    def cut_prompt(self, exchange: Exchange, endpoint: str, sent: JSON, usage: Usage) -> CutPrompt | None:
        question = ollama_context.question(self._contexts, exchange, endpoint, sent, usage.input_tokens)
        if question is None:
            return None
        path, body = question
        # The question loads the model if its runner has died since the answer.
        status, answer = exchange(path, body | {"keep_alive": KEEP_ALIVE})
        if status == 200:
            return None
        error = error_bodies.read(answer)
        verdict = verdict_of(self.rules, endpoint, status, error)
        if status != 400 or verdict is not Verdict.REFUSED:
            raise Unchecked(verdict, f"HTTP {status} from {path}")
        return ollama_context.too_long(error.message)

    def prompt_tokens(self, refusal: str) -> int:
        return ollama_context.prompt_tokens(refusal)

    def derived_name(self, model: str, tokens: int, mark: str) -> str:
        return ollama_derived.name(model, tokens, mark)

    def derived(self, name: str) -> Derived | None:
        return ollama_derived.read(name)

    def derive(self, exchange: Exchange, name: str) -> bool:
        return ollama_derived.make(exchange, name)

    def deletion(self, model: str) -> tuple[str, JSON] | None:
        return "/api/delete", {"model": model}

    def room_for_context_hint(self) -> str:
        return (
            "Start Ollama with OLLAMA_FLASH_ATTENTION=1 and OLLAMA_KV_CACHE_TYPE=q8_0, lower OLLAMA_NUM_PARALLEL, or "
            "take a smaller quantisation of it."
        )

    def incomplete(self, endpoint: str, body: JSON) -> str:
        if problem := super().incomplete(endpoint, body):
            return problem
        # routes.go ends a stream of repeated tokens without the final record: a 200 with a usage of all zeros.
        if endpoint in GENERATING and not output_tokens(body):
            return "The reply broke off: it counts no tokens."
        return ""

    @staticmethod
    def start_hint() -> str:
        """What to type on this host. `ollama serve` is no equal of the service: it has the models of another user."""
        if sys.platform != "linux":
            return "Start it: ollama serve."
        return "Start it: systemctl start ollama (ollama serve where it is no service)."

    def stuck_hint(self) -> str:
        return "Restart it: systemctl restart ollama (in Docker: docker compose restart ollama)."

    def misconfigured_hint(self, status: int) -> str:
        if status == 403:
            # allowedHostsMiddleware answers an empty 403 to a Host header that is neither loopback nor a local name.
            return "Ollama refuses our Host header (HTTP 403). Start it with OLLAMA_HOST=0.0.0.0, or use its address."
        return super().misconfigured_hint(status)


def _with_own_id(thing: JSON) -> JSON:
    """`thing` with an id that keeps its prefix (`chatcmpl-`, `resp_`) and is random after the prefix."""
    prefix = re.match(r"[a-z]+[-_]", str(thing.get("id")))
    return thing | {"id": prefix[0] + secrets.token_hex(16)} if prefix else thing


def _until(loaded: dict[str, JSON]) -> dict[str, str]:
    return {name: str(each.get("expires_at") or "") for name, each in loaded.items()}
