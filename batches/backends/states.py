"""What servers of all kinds tell of themselves, the ways to ask them, and what goes wrong in asking."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from batches.backends.replies import JSON, Reply, Verdict

# A way to ask the server something: path -> status and parsed body (None if the body is not JSON).
Ask = Callable[[str], tuple[int, Any]]
# The same with a body to POST, or with None for a GET.
Exchange = Callable[[str, JSON | None], tuple[int, Any]]
# The same for what is no JSON: path -> status and text.
Read = Callable[[str], tuple[int, str]]


class Unreachable(Exception):
    """The server did not take the connection, or did not answer a simple question. The text says what to do."""


class NotDone(Exception):
    """The server did not do what a question asked of it; `reply` is what becomes of the question."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.message)
        self.reply = reply


class Unchecked(Exception):
    """The server did not say whether it read a prompt whole. The text says what it said instead."""

    def __init__(self, verdict: Verdict, said: str) -> None:
        super().__init__(said)
        self.verdict = verdict


@dataclass(frozen=True)
class CutPrompt:
    """A prompt of which the server left out a part without saying so."""

    message: str  # what the server left out, and what to do about it
    prompt_tokens: int = 0  # of the whole prompt; 0 if the server did not say


@dataclass(frozen=True)
class Derived:
    """A model that was derived from a user's model to give it a context of `tokens`. The `mark` says whose it is."""

    origin: str
    tokens: int
    mark: str


@dataclass(frozen=True)
class Model:
    """A model that a server lists, as /v1/models shows it; `created` in Unix seconds. `root` is what it was loaded
    from, and `parent` the model that a LoRA module changes; both empty if the server does not say."""

    id: str
    created: int
    owned_by: str
    root: str = ""
    parent: str = ""


@dataclass(frozen=True)
class State:
    """What a server is and what it has, as it says itself."""

    kind: str
    version: str = ""
    models: list[Model] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    parallel: int | None = None  # how many calls the server serves at once, if it says so
    # Of each loaded model, if the server `loads_on_demand`: a text that changes whenever a request for the model ends.
    loaded_until: dict[str, str] = field(default_factory=dict)
    derived: list[str] = field(default_factory=list)  # models that servers like ours derived, which `models` leaves out

    @property
    def names(self) -> list[str]:
        return [model.id for model in self.models]


@dataclass(frozen=True)
class ModelState:
    """One model as its server has it at present; 0 or empty if the server does not say."""

    kind: str
    context_tokens: int = 0  # what one call may take, prompt and answer
    most_context_tokens: int = 0  # what the model was made for: no setting gives it more
    size: int = 0  # bytes that the model takes in memory
    size_vram: int = 0  # how many of these bytes are on the GPU
    capabilities: frozenset[str] = frozenset()  # as Ollama names them: completion, embedding, …


class PromptCache(Enum):
    """What a server reuses of the prompts that it has read."""

    UNKNOWN = "not known"
    BY_SLOT = "each slot keeps the prompt that it read last, for its next call alone"
    SHARED = "what one call has read, every other call reuses"


@dataclass(frozen=True)
class Occupancy:
    """How busy a server is at present, as it says itself."""

    running: int  # calls that it computes
    waiting: int  # calls that it took and computes later
    used: float = 0.0  # the share of its cache that the running calls take, from 0 to 1; 0 if it does not say
    holds: float = 0.0  # calls of the greatest length that its cache has room for; 0 if it does not say


def listed_models(ask: Ask) -> list[Model] | None:
    """The models that the server lists under /v1/models; None if the reply is no list of models."""
    return models_in(*ask("/v1/models"))


def models_in(status: int, body: Any) -> list[Model] | None:
    """The same, of the server's answer."""
    if status != 200 or not isinstance(body, dict) or not isinstance(body.get("data", ""), list | None):
        return None
    models = []
    for each in body["data"] or []:  # Ollama's list of no model is null
        if isinstance(each, dict) and isinstance(each.get("id"), str):
            created = each.get("created")
            owner = str(each.get("owned_by") or "unknown")
            root, parent = (each[key] if isinstance(each.get(key), str) else "" for key in ("root", "parent"))
            models.append(Model(each["id"], created if isinstance(created, int) else 0, owner, root, parent))
    return models
