"""llama-swap: a proxy that starts a server for the model of each request, and stops one for another model."""

import re
from typing import Any, ClassVar

from batches.backends.base import BackendKind
from batches.backends.replies import JSON, SERVER_ERRORS, Verdict
from batches.backends.rules import Rule
from batches.backends.states import Ask, Exchange, Model, State

OWNER = "llama-swap"  # of the models that it lists

# Its own words for what became of the server of a model (internal/process/process_command.go).
DIED = re.compile(r"unspecific error: \[.*\] upstream exited unexpectedly$")
NOT_STARTED = re.compile(
    r"(?:unspecific error|unable to start process): "
    r"(?:upstream command exited prematurely|health check timed out|failed to start command)"
)
# It ends, or stops this server for that of another model.
STOPPED = re.compile(r"unspecific error: .*(?:shutdown|shutting down|stopped|aborted|unloaded)$")


class LlamaSwap(BackendKind):
    """Tried on llama-swap 0bdb372 in front of vLLM and of llama-server (internal/server, internal/process)."""

    name = "llama-swap"
    title = "llama-swap"
    loads_on_demand = True

    rules: ClassVar[tuple[Rule, ...]] = (
        # Its reverse proxy has no words for a server that died under a request.
        Rule(Verdict.CRASHED, (502,)),
        Rule(Verdict.CRASHED, SERVER_ERRORS, begins=DIED),
        Rule(Verdict.UNLOADABLE, SERVER_ERRORS, begins=NOT_STARTED),
        Rule(Verdict.BUSY, SERVER_ERRORS, begins=STOPPED),
        *BackendKind.rules,
    )

    def recognise(self, ask: Ask) -> State | None:
        models = self.models(ask)
        if models is None or not self._owns(models):
            return None
        _, told = ask("/api/version")
        version = str(told.get("version", "")) if isinstance(told, dict) else ""
        return State(self.name, version, models, _ready(ask("/running")[1]))

    def _owns(self, models: list[Model]) -> bool:
        return any(model.owned_by == OWNER for model in models)

    def loaded(self, exchange: Exchange) -> list[str]:
        _, running = exchange("/running", None)
        return _ready(running)

    def load(self, endpoint: str, model: str) -> tuple[str, JSON]:
        # The smallest request of all: any request loads its model, and nothing else does in each version.
        return endpoint, self.trial(endpoint, model)

    def larger_context_hint(self, tokens: int) -> str:
        return f"Give the model a context of {tokens:,} tokens in its cmd, in llama-swap's configuration."


def _ready(running: Any) -> list[str]:
    listed = running.get("running") if isinstance(running, dict) else None
    return [
        str(each.get("model"))
        for each in (listed if isinstance(listed, list) else [])
        if isinstance(each, dict) and each.get("state") == "ready"
    ]
