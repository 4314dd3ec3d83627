"""vLLM's OpenAI server."""

import re
from typing import Any, ClassVar

from batches.backends import vllm_metrics
from batches.backends.base import BackendKind
from batches.backends.parameters import vllm as parameters
from batches.backends.replies import JSON, SERVER_ERRORS, Verdict, count
from batches.backends.rules import Rule
from batches.backends.states import Ask, Exchange, Model, ModelState, Occupancy, PromptCache, Read, State, Unreachable

# Requests with a lower number begin earlier, if vLLM was started with --scheduling-policy priority; a person's has 0.
# Other schedulers do not read it (vllm/v1/core/sched), or refuse it in earlier versions.
LINE_PRIORITY = 1_000_000


class Vllm(BackendKind):
    name = "vllm"
    title = "vLLM"
    tables = parameters.TABLES
    most_in_flight = 256  # vLLM's own bound on a consumer card
    tells_occupancy = True
    cache = PromptCache.SHARED
    begins_all = True
    # As the end of the answer's own id (entrypoints, _base_request_id). /v1/responses makes ids of its own.
    echoes_request_id_at = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})

    rules: ClassVar[tuple[Rule, ...]] = (
        # What each request in flight gets when the engine's process dies (v1/engine/exceptions.py, EngineDeadError).
        Rule(Verdict.CRASHED, SERVER_ERRORS, begins=re.compile("EngineCore encountered an issue")),
        *BackendKind.rules,
    )

    def __init__(self) -> None:
        self._takes_priority = True

    def _owns(self, models: list[Model]) -> bool:
        return any(model.owned_by == "vllm" for model in models)

    def recognise(self, ask: Ask) -> State | None:
        """Raises Unreachable for a server that sleeps."""
        state = super().recognise(ask)
        # vLLM has this path, and can be put to sleep, in its developers' mode alone.
        if state is not None and is_sleeping(ask("/is_sleeping")):
            raise Unreachable("vLLM sleeps: it takes requests and answers none. Wake it by a POST of /wake_up.")
        return state

    def _version(self, ask: Ask) -> str:
        _, body = ask("/version")
        return str(body.get("version", "")) if isinstance(body, dict) else ""

    def describe(self, exchange: Exchange, model: str) -> ModelState | None:
        _, answer = exchange("/v1/models", None)
        data = answer.get("data") if isinstance(answer, dict) else None
        cards = [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []
        listed = {str(each.get("id")): each for each in cards}
        if model not in listed:
            return None
        # A LoRA module has the context of its base.
        base = listed.get(str(listed[model].get("parent")))
        context = count(listed[model], "max_model_len") or count(base, "max_model_len")
        # vLLM is started with what it has memory for; what the model was made for stands in its files alone.
        return ModelState(self.name, context_tokens=context)

    def occupancy(self, read: Read) -> Occupancy | None:
        status, text = read("/metrics")
        return vllm_metrics.occupancy(text) if status == 200 else None

    def behind_persons(self, body: JSON) -> JSON:
        own = body.get("priority", 0)
        if not self._takes_priority or type(own) is not int or abs(own) >= 2**62:
            return body
        return body | {"priority": own + LINE_PRIORITY}

    def may_refuse_rank(self, status: int, content: bytes) -> bool:
        return status == 400 and b"riority" in content

    def note_rank_refused(self, *, is_cause: bool) -> None:
        self._takes_priority = self._takes_priority and not is_cause

    def missing_endpoint_hint(self, endpoint: str) -> str:
        # vLLM has the endpoints that its model can serve, and no others.
        if endpoint == "/v1/embeddings":
            return (
                f"This vLLM serves a model that writes text, so it has no {endpoint}. Start one with a model for "
                "embeddings (vllm serve MODEL --runner pooling), and point BACKEND_URL at it."
            )
        return (
            f"This vLLM has no {endpoint}: the model that it serves does not write text, or it is too old. Start one "
            "with a model that writes text (vllm serve MODEL), and point BACKEND_URL at it."
        )

    def larger_context_hint(self, tokens: int) -> str:
        return f"Start vLLM with --max-model-len {tokens}, if the card has room for it."


def is_sleeping(answer: tuple[int, Any]) -> bool | None:
    """Whether the server sleeps, by its answer to /is_sleeping; None if it cannot be put to sleep."""
    status, body = answer
    return bool(body.get("is_sleeping")) if status == 200 and isinstance(body, dict) else None
