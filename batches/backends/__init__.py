"""The only HTTP to a model server: one class for each kind of server, behind one small interface."""

from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from threading import Lock
from typing import Any

from django.conf import settings
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError

from batches.backends import blobs
from batches.backends.base import BackendKind
from batches.backends.calls import CallPool
from batches.backends.card import Card, CardConnection, SharedCard, wake
from batches.backends.connection import BROKEN, QUESTION_TIMEOUT_S, Connection, Server
from batches.backends.llama_router import LlamaRouter
from batches.backends.llama_server import EmbeddedModel, LlamaServer
from batches.backends.llama_swap import LlamaSwap
from batches.backends.missing_models import MissingModel, listing
from batches.backends.ollama import Ollama
from batches.backends.relay import Broken, Head, NotConnected, Relay
from batches.backends.states import ModelState, NotDone, Occupancy, State, Unreachable
from batches.backends.vllm import Vllm

__all__ = [
    "State",
    "Unreachable",
    "connect",
    "default_model",
    "delete",
    "describe",
    "is_silent",
    "kind_named",
    "listed_name",
    "listing",
    "missing_model_hint",
    "occupancy",
    "open_calls",
    "probe",
    "relay",
    "resolve_alias",
    "send_blob",
    "silent_hint",
    "unreachable_hint",
]

# In the order in which a server is asked whether it is of the kind; the last kind takes any server that lists models.
KINDS: list[BackendKind] = [
    Ollama(),
    Vllm(),
    LlamaSwap(),
    EmbeddedModel(),
    LlamaRouter(),
    LlamaServer(),
    BackendKind(),
]
_BY_NAME = {kind.name: type(kind) for kind in [*KINDS, SharedCard()]}
LONGEST_ANSWER_S = 1800.0
LIST_TIMEOUT_S = 1.0
SEEN_WITHIN_S = 0.5  # a drive that sends lines of another model sees within this time that a person is there


def kind_named(name: str) -> BackendKind:
    """A new instance of the kind, so that what it remembers of a server is forgotten with it."""
    return _BY_NAME[name]()


def resolve_alias(model: str) -> str:
    """The model that MODEL_ALIASES puts in place of `model`, or `model` itself."""
    aliases = settings.MODEL_ALIASES
    return str(aliases.get(model) or aliases.get("*") or model)


def default_model(listed: Collection[str]) -> str:
    """The model of requests that name none, at servers that list these models: MODEL_NAME or, if that is not set and
    they list one model alone, that one."""
    if not settings.MODEL_NAME_IS_SET and len(listed) == 1:
        return next(iter(listed))
    return resolve_alias(settings.MODEL_NAME)


def listed_name(kind: str, models: Collection[str], name: str) -> str:
    """The one of `models`, names that a server of this kind lists, that is the model `name`; empty if none is."""
    return kind_named(kind).listed_name(models, name)


def missing_model_hint(
    kind: str, model: str, listed: Collection[str], *, endpoint: str = "", lines_wait: bool = False
) -> str:
    """What to type so that a server of this kind, which lists these models, answers lines for `model`; with
    `lines_wait`, lines that were read before. `endpoint` is that of the lines, if it is known."""
    default, aliases = default_model(listed), settings.MODEL_ALIASES
    wanted = MissingModel(kind_named(kind), model, listed, endpoint, default, aliases)
    return wanted.hint_for_waiting() if lines_wait else wanted.hint()


def connect(server: str = "") -> Connection:
    """A connection to the server at this address, or to the servers of one card as to one server; if no address is
    given, to the configured one."""
    return _server(server).connect()


def open_calls(kind: str) -> CallPool[Any]:
    """Calls to the configured server. For the servers of a card, asks first which of them has which model."""
    server = _server()
    if isinstance(server, Card):
        with closing(server.connect()) as connection, suppress(HTTPError, OSError):
            connection.get("/v1/models", timeout_s=LIST_TIMEOUT_S)
    return CallPool(kind_named(kind), server)


def _server(address: str = "") -> Server:
    address = address or settings.BACKEND_URL
    urls = tuple(address.split(","))
    terms = urls[0], _key_for(address), settings.MAX_REPLY_BYTES
    return Card(*terms, urls) if len(urls) > 1 else Server(*terms)


def relay(
    server: str, endpoint: str, body: dict[str, Any] | None, *, method: str = "POST", look: Callable[[], None]
) -> Relay:
    """Send a body, as `translate` made it, or none to the server at this address, for a client who waits. Returns at
    once; `Relay.head` raises the errors. Our key is for the configured server alone, and no other gets it.

    The relay gives up if the server says nothing for MODEL_LOAD_TIMEOUT_S and then for as long as an answer may take.
    """
    silence_s = settings.MODEL_LOAD_TIMEOUT_S + (settings.LINE_TIMEOUT_S or LONGEST_ANSWER_S)

    def find() -> str:
        url = _awake(server, str((body or {}).get("model"))) if "," in server else server
        return url + endpoint

    return Relay(find, body, method=method, api_key=_key_for(server), silence_s=silence_s, look=look)


_waking = Lock()


def _awake(card: str, model: str) -> str:
    """The address of the server of a card that has the model, awake. Raises NotConnected or Broken."""
    # Two at once would each put the other's server to sleep, or leave both awake on one card.
    with _waking, closing(connect(card)) as connection:
        try:
            wake(connection.exchange(None), model=model, grace_s=SEEN_WITHIN_S)
            return connection.server.url_of("", {"model": model})
        except NotDone as error:
            raise Broken(error.reply.message or error.reply.body) from None
        except Unreachable as error:
            raise Broken(str(error)) from None
        except (HTTPError, OSError) as error:
            raise NotConnected from error


def send_blob(server: str, digest: str, pieces: Iterator[bytes]) -> tuple[Head, bytes]:
    """Send a model's file to the Ollama at this address; its answer. See blobs.send_blob."""
    return blobs.send_blob(server, digest, pieces, api_key=_key_for(server), silence_s=settings.MODEL_LOAD_TIMEOUT_S)


def _key_for(server: str) -> str:
    return settings.BACKEND_API_KEY if server == settings.BACKEND_URL else ""


def probe() -> State:
    """Ask the configured server what it is and what it has; takes a few seconds at most.

    Raises Unreachable, whose text says in one line what to do.
    """
    connection = connect()

    exchange = connection.exchange(None)

    def ask(path: str) -> tuple[int, Any]:
        return exchange(path, None)

    try:
        for kind in [SharedCard()] if isinstance(connection, CardConnection) else KINDS:
            if state := kind.recognise(ask):
                return state
    except BROKEN as error:
        raise Unreachable(silent_hint() if _is_silence(error) else unreachable_hint()) from None
    finally:
        connection.close()
    raise Unreachable(f"What answers at {settings.BACKEND_URL} lists no models. Check BACKEND_URL.")


def describe(kind: str, model: str, server: str = "") -> ModelState | None:
    """What a server of this kind says about a model that it has loaded; None if it says nothing. Takes some seconds at
    most. `server`: its address; if none is given, the configured one."""
    with closing(connect(server)) as connection:
        try:
            return kind_named(kind).describe(connection.exchange(None), model)
        except BROKEN:
            return None


def occupancy(kind: str) -> Occupancy | None:
    """How busy the configured server, of this kind, says that it is; None if it says nothing. As `describe`."""
    with closing(connect()) as connection:
        try:
            return kind_named(kind).occupancy(lambda path: connection.text(path, call=None))
        except BROKEN:
            return None


def delete(kind: str, model: str, *, is_loaded: bool) -> bool:
    """Remove a model that we derived from the configured server, and from its card; whether it did. Takes a few seconds
    at most. Safe to run again."""
    server = kind_named(kind)
    # Only if it is on the card itself: Ollama unloads the model that shares its weights, which a person may use.
    requests = [("POST", server.unload(model) if is_loaded else None), ("DELETE", server.deletion(model))]
    status = 0
    with closing(connect()) as connection:
        try:
            for method, request in requests:
                if request is not None:
                    status, _ = connection.send(method, *request, timeout_s=QUESTION_TIMEOUT_S)
        except BROKEN:
            return False
    return status in (200, 404)


def is_silent(timeout_s: float, server: str = "") -> bool:
    """Whether a server, the configured one if none is given, takes a connection, and then says nothing to a question
    that costs it nothing for `timeout_s` seconds. One that takes no connection, or breaks it, is not silent."""
    connection = connect(server)
    try:
        connection.get("/v1/models", timeout_s=timeout_s)
    except BROKEN as error:
        return _is_silence(error, server)
    finally:
        connection.close()
    return False


def _is_silence(error: Exception, server: str = "") -> bool:
    # This host refuses at once where nobody listens. It lets us wait if a process listens that accepts no more.
    is_local = settings.BACKEND_IS_LOCAL and server in ("", settings.BACKEND_URL)
    is_late = isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError)
    return isinstance(error, ReadTimeoutError) or (is_late and is_local)


def unreachable_hint() -> str:
    """What to do about a server that takes no connection."""
    if settings.EMBEDDED_BACKEND:
        return f"The embedded backend does not answer at {settings.BACKEND_URL} yet."
    if settings.BACKEND_IS_OLLAMA and settings.BACKEND_IS_LOCAL:
        return f"Ollama does not answer at {settings.BACKEND_URL}. {Ollama.start_hint()}"
    if settings.BACKEND_IS_OLLAMA:
        return (
            f"Ollama does not answer at {settings.BACKEND_URL}. Start it there, listening for others "
            "(OLLAMA_HOST=0.0.0.0 in its environment): systemctl start ollama, or OLLAMA_HOST=0.0.0.0 ollama serve "
            "where it is no service."
        )
    return f"No model server answers at {settings.BACKEND_URL}. Start it, or change BACKEND_URL."


def silent_hint(kind: str = "", server: str = "") -> str:
    """What to do about a server, the configured one if none is given, that takes a connection and says nothing: to
    start it again would be of no use."""
    if kind and server not in ("", settings.BACKEND_URL):
        named = kind_named(kind)
    else:
        named = Ollama() if settings.BACKEND_IS_OLLAMA else BackendKind()
    return (
        f"{named.title} takes connections at {server or settings.BACKEND_URL} and does not answer: it hangs. "
        f"{named.stuck_hint()}"
    )
