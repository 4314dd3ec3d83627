"""llama-swap: a proxy that starts a server for the model of each request, and stops one for another model."""

import re
from dataclasses import replace
from typing import Any, ClassVar

from batches.backends import error_bodies
from batches.backends.base import BackendKind
from batches.backends.replies import JSON, SERVER_ERRORS, Verdict
from batches.backends.rules import Rule
from batches.backends.states import Ask, Exchange, Model, State, models_in
from batches.backends.vllm import Vllm

OWNER = "llama-swap"  # of the models that it lists

# Its own words for a request that it could not hand to the server of a model, today and in earlier versions.
NOT_STARTED = re.compile(r"(?:unspecific error|unable to start process): ")
# It ends, or stops this server for that of another model.
STOPPED = re.compile(
    r"unspecific error: .*(?:shutdown|shutting down|stopped|aborted|unloaded|could not be started in \S+ state)$"
)


class LlamaSwap(BackendKind):
    """Tried on llama-swap 0bdb372 in front of vLLM and of llama-server."""

    name = "llama-swap"
    title = "llama-swap"
    loads_on_demand = True

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(Verdict.BUSY, SERVER_ERRORS, begins=STOPPED),
        Rule(Verdict.UNLOADABLE, SERVER_ERRORS, begins=NOT_STARTED),
        # Its reverse proxy has no words for a server that died under a request.
        Rule(Verdict.CRASHED, (502,), says=lambda error: not error.message),
        # With a code of its own, by which nobody knows what was not found.
        Rule(Verdict.MODEL_MISSING, (404,), begins=error_bodies.NAMES_A_MODEL),
        *Vllm.rules,
    )

    def recognise(self, ask: Ask) -> State | None:
        models = self.models(ask)
        if not models or not self._owns(models):
            return None
        _, told = ask("/api/version")
        version = str(told.get("version", "")) if isinstance(told, dict) else ""
        return State(self.name, version, models, _loaded(models, ask("/running")[1]))

    def models(self, ask: Ask) -> list[Model] | None:
        status, body = ask("/v1/models")
        models = models_in(status, body)
        # Names of one model, where it is told to list them (includeAliasesInList).
        origins = {each.get("id"): _origin(each) for each in body["data"] if _origin(each)} if models else {}
        return models and [replace(model, root=origins.get(model.id, "")) for model in models]

    def _owns(self, models: list[Model]) -> bool:
        return all(model.owned_by == OWNER for model in models)

    def loaded(self, exchange: Exchange) -> dict[str, str]:
        def ask(path: str) -> tuple[int, Any]:
            return exchange(path, None)

        return dict.fromkeys(_loaded(self.models(ask) or [], ask("/running")[1]), "")

    def load(self, endpoint: str, model: str) -> tuple[str, JSON]:
        # Any request has its model loaded, and no version has one that does nothing else.
        return endpoint, self.trial(endpoint, model)

    def larger_context_hint(self, tokens: int) -> str:
        return f"Give the model a context of {tokens:,} tokens in its cmd, in llama-swap's configuration."


def _origin(entry: Any) -> str:
    """The model of which this entry of the list is another name; empty for a model."""
    for member in ("meta", "llamaswap", "modelID"):
        entry = entry.get(member) if isinstance(entry, dict) else None
    return entry if isinstance(entry, str) else ""


def _loaded(models: list[Model], running: Any) -> list[str]:
    """The names of the models whose servers are ready."""
    listed = running.get("running") if isinstance(running, dict) else None
    entries = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    ready = [str(each.get("model")) for each in entries if each.get("state") == "ready"]
    return ready + [model.id for model in models if model.root in ready]
