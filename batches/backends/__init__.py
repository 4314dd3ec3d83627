"""The only HTTP to a model server: one class for each kind of server, behind one small interface."""

from collections.abc import Callable
from typing import Any

from django.conf import settings
from urllib3.exceptions import HTTPError

from batches.backends.base import BackendKind, State, Unreachable
from batches.backends.calls import CallPool
from batches.backends.connection import Connection, ReplyTooLarge
from batches.backends.llama_server import EmbeddedModel, LlamaServer
from batches.backends.ollama import Ollama
from batches.backends.relay import Relay
from batches.backends.vllm import Vllm

__all__ = [
    "State",
    "Unreachable",
    "connect",
    "has_model",
    "kind_named",
    "missing_model_hint",
    "open_calls",
    "probe",
    "relay",
    "resolve_alias",
    "unreachable_hint",
]

# In the order in which a server is asked whether it is of the kind; the last kind takes any server that lists models.
KINDS: list[BackendKind] = [Ollama(), Vllm(), EmbeddedModel(), LlamaServer(), BackendKind()]
_BY_NAME = {kind.name: type(kind) for kind in KINDS}
LONGEST_ANSWER_S = 1800.0


def kind_named(name: str) -> BackendKind:
    """A new instance of the kind, so that what it remembers of a server is forgotten with it."""
    return _BY_NAME[name]()


def resolve_alias(model: str) -> str:
    """The model that MODEL_ALIASES puts in place of `model`, or `model` itself."""
    aliases = settings.MODEL_ALIASES
    return str(aliases.get(model) or aliases.get("*") or model)


def has_model(kind: str, models: list[str], name: str) -> bool:
    return kind_named(kind).has_model(models, name)


def missing_model_hint(kind: str, model: str) -> str:
    return kind_named(kind).missing_model_hint(model)


def connect() -> Connection:
    return Connection(settings.BACKEND_URL, api_key=settings.BACKEND_API_KEY, max_reply_bytes=settings.MAX_REPLY_BYTES)


def open_calls(kind: str) -> CallPool[Any]:
    return CallPool(kind_named(kind), connect)


def relay(endpoint: str, body: dict[str, Any], *, look: Callable[[], None]) -> Relay:
    """Send a body, as `prepare` made it, for a client who waits. Returns at once; `Relay.head` raises the errors.

    The relay gives up if the server says nothing for MODEL_LOAD_TIMEOUT_S and then for as long as an answer may take.
    """
    silence_s = settings.MODEL_LOAD_TIMEOUT_S + (settings.LINE_TIMEOUT_S or LONGEST_ANSWER_S)
    url, api_key = settings.BACKEND_URL + endpoint, settings.BACKEND_API_KEY
    return Relay(url, body, api_key=api_key, silence_s=silence_s, look=look)


def probe() -> State:
    """Ask the configured server what it is and what it has; takes a few seconds at most.

    Raises Unreachable, whose text says in one line what to do.
    """
    connection = connect()

    exchange = connection.exchange(None)

    def ask(path: str) -> tuple[int, Any]:
        return exchange(path, None)

    try:
        for kind in KINDS:
            if state := kind.recognise(ask):
                return state
    except (HTTPError, OSError, ReplyTooLarge):
        raise Unreachable(unreachable_hint()) from None
    finally:
        connection.close()
    raise Unreachable(f"What answers at {settings.BACKEND_URL} lists no models. Check BACKEND_URL.")


def unreachable_hint() -> str:
    if settings.EMBEDDED_BACKEND:
        return f"The embedded backend does not answer at {settings.BACKEND_URL} yet."
    if settings.BACKEND_IS_OLLAMA and settings.BACKEND_IS_LOCAL:
        return f"Ollama does not answer at {settings.BACKEND_URL}. Start it: ollama serve"
    if settings.BACKEND_IS_OLLAMA:
        return (
            f"Ollama does not answer at {settings.BACKEND_URL}. Start it there, listening for others: "
            "OLLAMA_HOST=0.0.0.0 ollama serve"
        )
    return f"No model server answers at {settings.BACKEND_URL}. Start it, or change BACKEND_URL."
