"""Ollama. Its behaviour is read from its source (server/routes.go, server/sched.go, openai/openai.go)."""

import re
import secrets
from typing import Any, ClassVar

from batches.backends import ollama_context
from batches.backends.base import (
    JSON,
    SERVER_ERRORS,
    Ask,
    BackendKind,
    Exchange,
    Rule,
    State,
    Usage,
    Verdict,
    listed_models,
    usage_of,
)

# endpoint -> member of the body -> values that ask for nothing beyond what Ollama does anyway
IGNORED: dict[str, dict[str, tuple[object, ...]]] = {
    "/v1/chat/completions": {
        "n": (1,),
        "tool_choice": ("auto", "none"),
        "logit_bias": ({},),
        "modalities": (["text"],),
        "prediction": (),
    },
    "/v1/completions": {"n": (1,), "best_of": (1,), "echo": (False,), "logit_bias": ({},)},
    "/v1/responses": {
        "previous_response_id": (),
        "conversation": (),
        "background": (False,),
        "tool_choice": ("auto", "none"),
        "truncation": ("disabled",),
    },
}

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


class Ollama(BackendKind):
    name = "ollama"
    title = "Ollama"
    most_in_flight = 9  # OLLAMA_NUM_PARALLEL is 1 unless set, and seldom above 8 on one card

    rules: ClassVar[tuple[Rule, ...]] = (
        # The runner died; the next request starts it anew.
        Rule(
            Verdict.CRASHED,
            SERVER_ERRORS,
            (
                "model runner has unexpectedly stopped",
                "error was encountered while running the model",
                "unexpected EOF",
                "CUDA error",
                "no longer running",
                "unexpected server status",
                "no slots available",
            ),
        ),
        # The runner did not come up: no room on the card, a damaged or unsuitable model (llm/llama_server.go).
        Rule(
            Verdict.UNLOADABLE,
            SERVER_ERRORS,
            (
                "out of memory",
                "cudaMalloc failed",
                "requires more system memory",
                "memory layout cannot be allocated",
                "unable to load full model",
                "timed out waiting for",
                "may be incompatible with your version",
                "failed to load model",
                "error starting llama-server",
                "process has terminated",
                "exceeds file size",
            ),
        ),
        # EmbedHandler answers 400 for whatever fails, a dead runner included.
        Rule(
            Verdict.CRASHED,
            (400,),
            ("do embedding request", "EOF", "connection refused", "context canceled"),
            endpoint="/v1/embeddings",
        ),
        Rule(Verdict.FAILED, (400,), ("NaN or Inf",), endpoint="/v1/embeddings"),
        # A cloud model is refused with a body; without one it is our Host header that is refused.
        Rule(Verdict.REFUSED, (401, 403), ("error",)),
        *BackendKind.rules,
    )

    def recognise(self, ask: Ask) -> State | None:
        status, body = ask("/api/version")
        if status != 200 or not isinstance(body, dict) or "version" not in body:
            return None
        _, running = ask("/api/ps")
        loaded = running.get("models") if isinstance(running, dict) else None
        names = [str(model["name"]) for model in loaded or [] if isinstance(model, dict) and "name" in model]
        return State(self.name, str(body["version"]), listed_models(ask) or [], names)

    def has_model(self, models: list[str], name: str) -> bool:
        return (name if ":" in name.rpartition("/")[2] else f"{name}:latest") in models

    def missing_model_hint(self, model: str) -> str:
        return f"Install it: ollama pull {model}"

    def unsupported(self, endpoint: str, body: JSON) -> str:
        if problem := super().unsupported(endpoint, body):
            return problem
        # GenerateHandler: an empty prompt is an order to load the model, answered with finish_reason "load".
        if endpoint == "/v1/completions" and body.get("prompt") in (None, "", [], [""]):
            return "Ollama only loads the model for an empty 'prompt'."
        # openai.go's request structs have none of these: they would be dropped without a word.
        for name, harmless in IGNORED.get(endpoint, {}).items():
            if body.get(name) not in (None, *harmless):
                return f"Ollama ignores '{name}'; leave it out."
        return ""

    def prepare(self, endpoint: str, body: JSON, model: str) -> JSON:
        sent = super().prepare(endpoint, body, model)
        # Not in openai.go ChatCompletionRequest: it would be ignored, and the answer be unbounded.
        limit = sent.pop("max_completion_tokens", None)
        if sent.get("max_tokens") is None and limit is not None:
            sent["max_tokens"] = limit
        if isinstance(sent.get("messages"), list):
            sent["messages"] = [_flattened(message) for message in sent["messages"]]
        if endpoint == "/v1/completions" and isinstance(sent.get("prompt"), list) and len(sent["prompt"]) == 1:
            sent["prompt"] = sent["prompt"][0]  # its prompt is a string
        return sent

    def load(self, endpoint: str, model: str) -> tuple[str, JSON] | None:
        # Without a prompt the handlers only load. A model for embeddings knows no other way.
        if endpoint == "/v1/embeddings":
            return "/api/embed", {"model": model, "input": []}
        return "/api/generate", {"model": model, "stream": False}

    def hand_out(self, body: JSON) -> JSON:
        # middleware/openai.go draws ids from 999 numbers, so that two lines of a batch may have the same.
        items = body.get("output")
        if isinstance(items, list):
            body = body | {"output": [_with_own_id(item) if isinstance(item, dict) else item for item in items]}
        return _with_own_id(body)

    def cut_prompt(self, exchange: Exchange, endpoint: str, sent: JSON, usage: Usage) -> str:
        return ollama_context.cut_prompt(exchange, endpoint, sent, usage.input_tokens)

    def incomplete(self, endpoint: str, body: JSON) -> str:
        if problem := super().incomplete(endpoint, body):
            return problem
        # routes.go ends a stream of repeated tokens without its final record: a 200 whose usage is all zero.
        if endpoint in GENERATING and not usage_of(body).output_tokens:
            return "The reply broke off: it counts no tokens."
        return ""

    def stuck_hint(self) -> str:
        return "Restart it: systemctl restart ollama (in Docker: docker compose restart ollama)."

    def misconfigured_hint(self, status: int) -> str:
        if status == 403:
            # allowedHostsMiddleware: an empty 403 for a Host header that is neither loopback nor a local name.
            return "Ollama refuses our Host header (HTTP 403). Start it with OLLAMA_HOST=0.0.0.0, or use its address."
        return super().misconfigured_hint(status)


def _with_own_id(thing: JSON) -> JSON:
    """`thing` with an id that keeps its prefix (`chatcmpl-`, `resp_`) and is random behind it."""
    prefix = re.match(r"[a-z]+[-_]", str(thing.get("id")))
    return thing | {"id": prefix[0] + secrets.token_hex(16)} if prefix else thing


def _flattened(message: Any) -> Any:
    """A message whose content is text parts alone, as one text: Ollama makes a message of each part."""
    parts = message.get("content") if isinstance(message, dict) else None
    if not isinstance(parts, list) or not parts:
        return message
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        return message
    return message | {"content": "\n".join(filter(None, texts))}
