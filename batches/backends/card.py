"""Several vLLM servers that share one card, as one server that has the models of all of them.

Each server keeps its process, and one of them is awake: the others sleep and take no memory of the card. To load a
model is to put the others to sleep and to wake its server. A sleeping server lists its models; it also takes requests
for them, and answers none before it is woken (vllm/entrypoints/serve/dev/sleep).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django.conf import settings
from urllib3.exceptions import HTTPError, ReadTimeoutError

from batches.backends.connection import Connection, Server
from batches.backends.replies import JSON, Reply, Verdict, compact, parsed
from batches.backends.states import Ask, Exchange, Model, NotDone, State, Unreachable, listed_models
from batches.backends.vllm import Vllm, is_sleeping

MODELS = "/v1/models"
STATE = "/card"  # asked of a card, and of none of its servers: what each of them has, and whether it sleeps

# A server that is at work finishes it before it sleeps.
SLEEP = {level: f"/sleep?level={level}&mode=wait" for level in (1, 2)}
# What is asked of a server that is woken. After level 2 its weights are read again, before the cache takes its memory.
WAKE: dict[int, list[tuple[str, JSON]]] = {
    1: [("/wake_up", {})],
    2: [
        ("/wake_up?tags=weights", {}),
        ("/collective_rpc", {"method": "reload_weights"}),
        ("/wake_up?tags=kv_cache", {}),
        ("/reset_prefix_cache", {}),
    ],
}
SLEEPER_HINT = "Start it with VLLM_SERVER_DEV_MODE=1 in its environment, and with --enable-sleep-mode."


@dataclass(frozen=True)
class Card(Server):
    """The servers at `urls`. Requests go to the server that has their model; `base_url` is that of the first one."""

    urls: tuple[str, ...] = ()
    by_model: dict[str, str] = field(default_factory=dict)
    last: list[str] = field(default_factory=list)  # the server of the last model that was asked for

    def url_of(self, path: str, body: JSON) -> str:
        if "model" in body:
            self.last[:] = [self.by_model.get(str(body["model"]), self.base_url)]
        return (self.last or [self.base_url])[0] + path

    def connect(self) -> Connection:
        return CardConnection(self)


class CardConnection(Connection):
    """Questions to the servers of a card. A path that begins with the address of one of them is asked there, and a
    body with a model where the model is; their lists of models are one list."""

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        self._card = card
        self._servers = {url: Connection(Server(url, card.api_key, card.max_reply_bytes)) for url in card.urls}

    def get(self, path: str, *, timeout_s: float, call: object = None) -> tuple[int, bytes]:
        if path == STATE:
            return 200, compact({"servers": [self._state(url, call) for url in self._servers]}).encode()
        if path == MODELS:
            return self._models(timeout_s, call)
        server, path = self._at(path, {})
        return server.get(path, timeout_s=timeout_s, call=call)

    def post(self, path: str, body: dict[str, Any], *, call: object) -> tuple[int, bytes]:
        server, path = self._at(path, body)
        status, content = server.post(path, body, call=call)
        self.retry_after_s = server.retry_after_s
        return status, content

    def stream(self, path: str, body: dict[str, Any], *, call: object) -> Iterator[bytes]:
        server, path = self._at(path, body)
        return server.stream(path, body, call=call)

    def cut(self, call: object) -> None:
        for server in self._servers.values():
            server.cut(call)

    def close(self) -> None:
        for server in self._servers.values():
            server.close()

    def _at(self, path: str, body: JSON) -> tuple[Connection, str]:
        url = path if "://" in path else self._card.url_of(path, body)
        # Of two addresses one may begin with the other, as ports 80 and 8000 do.
        base = max((each for each in self._servers if url.startswith(f"{each}/")), key=len)
        return self._servers[base], url.removeprefix(base)

    def _models(self, timeout_s: float, call: object) -> tuple[int, bytes]:
        listed: list[JSON] = []
        for url, server in self._servers.items():
            status, content = server.get(MODELS, timeout_s=timeout_s, call=call)
            body = parsed(content)
            if status != 200 or body is None:
                return status, content
            models = [each for each in body.get("data") or [] if isinstance(each, dict)]
            self._card.by_model.update({str(each.get("id")): url for each in models})
            listed += models
        return 200, compact({"object": "list", "data": listed}).encode()

    def _state(self, url: str, call: object) -> JSON:
        exchange = self._servers[url].exchange(call)
        try:
            models = listed_models(lambda path: exchange(path, None))
            sleeps = is_sleeping(exchange("/is_sleeping", None))
        except (HTTPError, OSError) as error:
            return {"url": url, "error": "silent" if isinstance(error, ReadTimeoutError) else "away"}
        self._card.by_model.update({each.id: url for each in models or []})
        return {"url": url, "models": [vars(each) for each in models or []], "is_sleeping": sleeps}


class SharedCard(Vllm):
    """The vLLM servers of a Card, as one server that loads one of their models at a time."""

    name = "vllm-card"
    loads_on_demand = True

    def recognise(self, ask: Ask) -> State | None:
        """Raises Unreachable for a server that is away, is no vLLM or cannot be put to sleep."""
        servers = _servers(lambda path, _: ask(path))
        models = [Model(**each) for server in servers for each in server["models"]]
        return State(self.name, self._version(ask), models, _awake(servers), self._parallel(ask))

    def loaded(self, exchange: Exchange) -> dict[str, str]:
        return dict.fromkeys(_awake(_servers(exchange)), "")

    def load(self, endpoint: str, model: str) -> Callable[[Exchange], None]:
        return partial(wake, model=model)


def wake(exchange: Exchange, *, model: str, grace_s: float = 0.0) -> None:
    """Wake the server that has the model, with the others asleep. Safe to repeat. Before one that is at work is put to
    sleep, whoever sends lines there has `grace_s` to stop.

    Raises NotDone if a server does not do as it is asked, Unreachable as `SharedCard.recognise` does, and what
    `exchange` raises.
    """
    servers = _servers(exchange)
    wanted = next((each for each in servers if model in [known["id"] for known in each["models"]]), None)
    if wanted is None:
        return  # whoever asks for it is told that it is missing
    others = [each["url"] for each in servers if each is not wanted and not each["is_sleeping"]]
    if others:
        time.sleep(grace_s)
    for url in others:
        _do(exchange, url + SLEEP[settings.BACKEND_SLEEP_LEVEL], {})
    if wanted["is_sleeping"]:
        for path, body in WAKE[settings.BACKEND_SLEEP_LEVEL]:
            _do(exchange, wanted["url"] + path, body)


def _do(exchange: Exchange, path: str, body: JSON) -> None:
    status, _ = exchange(path, body)
    if status == 404:
        raise NotDone(Reply(Verdict.MISCONFIGURED, status, message=f"vLLM has no {path}. {SLEEPER_HINT}"))
    if status != 200:
        error = {"message": f"{path} failed", "type": "api_error", "param": None, "code": None}
        raise NotDone(Reply(Verdict.UNLOADABLE, status, compact({"error": error})))


def _servers(exchange: Exchange) -> list[JSON]:
    _, body = exchange(STATE, None)
    for server in body["servers"]:
        if problem := _problem(server):
            raise Unreachable(f"{problem} It is one of the servers that BACKEND_URL names.")
    return list(body["servers"])


def _awake(servers: list[JSON]) -> list[str]:
    return [model["id"] for server in servers if not server["is_sleeping"] for model in server["models"]]


def _problem(server: JSON) -> str:
    """What is wrong with a server, and what to do; empty if nothing is."""
    url = server["url"]
    match server.get("error"):
        case "silent":
            return f"The model server takes connections at {url} and does not answer: it hangs. Restart it."
        case "away":
            return f"No model server answers at {url}. Start it, or take it out of the list."
    if not any(each["owned_by"] == "vllm" for each in server["models"]):
        return f"What answers at {url} is no vLLM, and vLLM alone can leave a card to others by sleeping."
    if server["is_sleeping"] is None:
        return f"The vLLM at {url} cannot be put to sleep. {SLEEPER_HINT}"
    return ""
