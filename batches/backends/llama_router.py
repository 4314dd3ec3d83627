"""llama-server that was started without a model: a router, which starts a llama-server of its own for each model."""

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar
from urllib.parse import quote

from batches.backends.llama_server import LlamaServer
from batches.backends.replies import JSON, SERVER_ERRORS, Reply, Verdict, compact, count
from batches.backends.rules import Rule
from batches.backends.states import Ask, Exchange, ModelState, NotDone, State, listed_models

LOOK_EVERY_S = 0.25  # whether a model is loaded
MODELS = "/v1/models"


class LlamaRouter(LlamaServer):
    """Tried on llama.cpp 7e4c0a9 (tools/server/server-models.cpp)."""

    name = "llama-router"
    loads_on_demand = True

    rules: ClassVar[tuple[Rule, ...]] = (
        # The process of the model died, or was stopped, under the request.
        Rule(Verdict.CRASHED, SERVER_ERRORS, begins=re.compile("proxy error: ")),
        Rule(Verdict.UNLOADABLE, SERVER_ERRORS, begins=re.compile(r"model name=.* failed to load$")),
        Rule(Verdict.MODEL_MISSING, (400,), begins=re.compile(r"model '.*' not found$")),
        *LlamaServer.rules,
    )

    def recognise(self, ask: Ask) -> State | None:
        models = listed_models(ask)
        if models is None or not self._owns(models):
            return None
        _, properties = ask("/props")
        if not isinstance(properties, dict) or properties.get("role") != "router":
            return None
        _, listed = ask(MODELS)
        loaded = _loaded(listed)
        # The slots of a model are known once it is loaded, and each model may have others.
        _, of_model = ask(_props(loaded[0])) if len(loaded) == 1 else (0, None)
        return State(self.name, models=models, loaded=loaded, parallel=count(of_model, "total_slots") or None)

    def loaded(self, exchange: Exchange) -> dict[str, str]:
        _, listed = exchange(MODELS, None)
        return dict.fromkeys(_loaded(listed), "")

    def load(self, endpoint: str, model: str) -> Callable[[Exchange], None]:
        return partial(_load, model=model)

    def unload(self, model: str) -> tuple[str, JSON] | None:
        return "/models/unload", {"model": model}

    def describe(self, exchange: Exchange, model: str) -> ModelState | None:
        _, listed = exchange(MODELS, None)
        mine = _cards(listed).get(model)
        if mine is None or _status(mine).get("value") != "loaded":
            return None  # to ask for its properties would load it
        _, properties = exchange(_props(model), None)
        return ModelState(
            self.name,
            context_tokens=count(properties, "default_generation_settings.n_ctx"),
            most_context_tokens=count(mine, "meta.n_ctx_train"),
        )


def _load(exchange: Exchange, *, model: str) -> None:
    """Have the model loaded, and wait until it is. Raises NotDone if it does not come up."""
    exchange("/models/load", {"model": model})  # refused if it is loaded already; the list tells what became of it
    while True:
        _, listed = exchange(MODELS, None)
        status = _status(_cards(listed).get(model, {}))
        if status.get("value") == "loaded" or not status:
            return  # whoever asks for a model that is not listed is told so
        if status.get("failed"):
            error = {"message": f"its process ended with {status.get('exit_code')}", "type": "server_error"}
            raise NotDone(Reply(Verdict.UNLOADABLE, 500, compact({"error": error})))
        time.sleep(LOOK_EVERY_S)


def _props(model: str) -> str:
    return f"/props?model={quote(model, safe='')}"


def _cards(listed: Any) -> dict[str, JSON]:
    data = listed.get("data") if isinstance(listed, dict) else None
    return {str(each.get("id")): each for each in data or [] if isinstance(each, dict)}


def _status(card: JSON) -> JSON:
    status = card.get("status")
    return status if isinstance(status, dict) else {}


def _loaded(listed: Any) -> list[str]:
    return [name for name, card in _cards(listed).items() if _status(card).get("value") == "loaded"]
