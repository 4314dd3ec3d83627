"""One fake model server, at the socket: it answers like Ollama or vLLM, or does to a request what a test asked for.

A request is known by the text of its last message (or prompt, or input), which tests set to the line's custom_id.
"""

import json
import re
import select
import socket
import struct
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import ThreadingHTTPServer
from typing import Any

from tests import fake_native

MODEL = "gemma3:12b"
TRIAL = "Hi"  # what a trial request says
COUNTING = "Once upon a time"  # what a request says by which slots are counted
COUNTED_PIECES = 20
EMBEDDING = ("/v1/embed", "/api/embed")


# As vLLM 0.32 answers; of its other hundreds of samples, a few that look alike.
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{{labels}}} {running}.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{{labels}}} {waiting}.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{{{labels},reason="capacity"}} {waiting}.0
vllm:num_requests_waiting_by_reason{{{labels},reason="deferred"}} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{{labels}}} 0.01
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="128",engine="0",kv_cache_max_concurrency="22.75",num_gpu_blocks="364"}} 1.0
"""


@dataclass
class Action:
    """What to do to one request. `status` and `body` are sent after `delay_s`; the other fields are faults."""

    status: int = 200
    body: Any = None  # None: a good answer; bytes are sent as they are
    delay_s: float = 0.0
    hang: bool = False  # take the request, never answer
    reset: bool = False  # break the connection instead of answering
    crash: bool = False  # break the connections of all requests instead of answering
    drip_s: float = 0.0  # send the answer byte by byte, with this pause
    cut_after: int | None = None  # promise the whole answer, send so many bytes, close
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0  # between the events of a stream
    break_after: int | None = None  # send so many bytes of a stream, close


@dataclass
class Seen:
    """A request that arrived; `answered` once the reply was sent whole."""

    key: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float = field(default_factory=time.monotonic)
    left: float = float("inf")  # when it was done with, however that ended, and before the client could know
    answered: bool = False
    gone: bool = False  # the client went away before the answer


def origin(model: str) -> str:
    """The model that a derived one comes from; any other model itself."""
    return re.sub(r"^obs-ctx-\d+/(.+)-obs[0-9a-f]{6}$", r"\1", model)


def error_body(message: str, kind: str = "api_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


class FakeBackend:
    """Use as a context manager; `url` is where it listens."""

    def __init__(self, port: int = 0) -> None:
        self.is_vllm = False  # it answers as vLLM does: `slots` requests at once, of any kind, and the others wait
        self.has_metrics = True  # as vLLM: says how many requests run and wait
        self.most_waiting = 10_000  # as vLLM: refuses a request if so many wait
        self.answers_once_full = False  # answers none before it has refused one, however slowly they come
        self.roots: dict[str, str] = {}  # as vLLM: the base models of LoRA modules
        self.models = [MODEL]
        self.lists_models = True
        self.is_hung = False  # takes connections and requests, and says nothing
        self.delay_s = 0.0
        self.native_delay_s = 0.0
        self.bears: float = float("inf")  # with more requests at once it crashes
        self.crashes: list[list[str]] = []  # the keys of the requests that were there at each crash
        self.slots = 2  # requests that count slots: so many are answered at once, and the others wait
        self.context = 4096  # tokens, of a letter each; a longer prompt is cut to half of it without a word
        self.made_for = 131_072  # tokens, the largest context of its models
        self.derived: dict[str, int] = {}  # models that were derived, and their contexts
        self.deletes: list[str] = []  # the models that it was asked to delete
        self.on_gpu_up_to = 2**31  # a model with a larger context leaves a tenth of it to the CPU
        self.refuse_missing = False  # as Ollama does: a request for a model that is not in `models` gets a 404
        self.sizes = (8_000_000_000, 8_000_000_000)  # bytes of the loaded model, and of these on the GPU
        self.seen: list[Seen] = []
        self.connections = 0  # that were made to it
        self.loaded = [MODEL]  # the models on its card, as /api/ps tells
        self.uses: Counter[str] = Counter()  # requests that ended, by model: each sets anew when the model is unloaded
        self.events: list[str] = []  # what arrived, in order: "load MODEL", "unload MODEL", "describe MODEL", a key
        self.loads: list[str] = []  # the models that it was asked to load
        self.unloads: list[str] = []  # and to take off the card
        self.load_paths: list[str] = []  # and where
        self.changes: list[tuple[str, str, dict[str, Any]]] = []  # requests that change models: method, path, body
        self.blobs: dict[str, bytes] = {}  # files of models, by digest
        self.on_load: deque[Action] = deque()  # what to do to the next such requests, one each
        self.on_check: deque[Action] = deque()  # what to do to the next questions whether a prompt was read whole
        self._actions: dict[str, deque[Action]] = defaultdict(deque)
        self._always: dict[str, Action] = {}
        self._lock = threading.Lock()
        self._release = threading.Event()
        self._has_refused = threading.Event()
        self._free_slots = threading.Condition()
        self._busy_slots = self._waiting = 0
        self._port = port
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> "FakeBackend":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        backend = self

        class Handler(self.handler()):
            fake = backend

        self._release.clear()
        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handler(self) -> "type[_Handler]":
        return _Handler

    def stop(self) -> None:
        """Close the listener and every connection, as a killed server does."""
        if self._server is not None:
            self._release.set()
            self._server.shutdown()
            self._server.server_close()
            self._server.close_connections()
            self._server = None

    def on(self, key: str, *actions: Action) -> None:
        """Do these to the next requests of `key`, one each; then answer well again."""
        with self._lock:
            self._actions[key].extend(actions)

    def always(self, key: str, action: Action) -> None:
        self._always[key] = action

    def crash(self) -> None:
        """Break every connection, as a server that dies and is there again at once."""
        with self._lock:
            at_work = [seen for seen in self.seen if seen.left == float("inf")]
            self.crashes.append([seen.key for seen in at_work])
            for seen in at_work:
                seen.left = time.monotonic()
            if self._server is not None:
                self._server.close_connections()

    @property
    def is_overloaded(self) -> bool:
        with self._lock:
            return sum(seen.left == float("inf") for seen in self.seen) > self.bears

    def forget(self) -> None:
        """Answer everything well from now on."""
        with self._lock:
            self._actions.clear()
            self._always.clear()

    def arrived(self, *, answered: bool | None = None) -> list[str]:
        """The keys of the requests that arrived, in order."""
        with self._lock:
            return [seen.key for seen in self.seen if answered is None or seen.answered is answered]

    def lacks(self, model: object) -> bool:
        is_derived = str(model).startswith("obs-ctx-")
        return (self.refuse_missing or is_derived) and model not in (*self.models, *self.derived)

    def context_of(self, model: object) -> int:
        return self.derived.get(str(model), self.context)

    def told(self, model: str) -> dict[str, Any]:
        """What /api/ps tells of a loaded model."""
        size, size_vram = self.sizes
        if self.context_of(model) > self.on_gpu_up_to:
            size_vram -= size // 10
        until = f"2126-01-01T00:00:{self.uses[model]:09.6f}Z"
        told = {"name": model, "context_length": self.context_of(model), "expires_at": until}
        return told | {"size": size, "size_vram": size_vram}

    def has_loaded(self, model: str) -> None:
        with self._lock:
            # Ollama has one runner for the weights, whatever names share them. It goes on, under the name that it has,
            # for another name with the same context.
            alike = [each for each in self.loaded if origin(each) == origin(model)]
            if all(self.context_of(each) != self.context_of(model) for each in alike):
                self.loaded = [*(each for each in self.loaded if origin(each) != origin(model)), model]

    def let_go(self, model: str) -> None:
        with self._lock:
            self.loaded = [name for name in self.loaded if name != model]

    def take(self, seen: Seen) -> Action:
        with self._lock:
            self.seen.append(seen)
            self.events.append(seen.key)
            if self._actions[seen.key]:
                return self._actions[seen.key].popleft()
        return self._always.get(seen.key, Action(delay_s=self.delay_s))

    @contextmanager
    def slot(self) -> Iterator[None]:
        with self._free_slots:
            self._waiting += 1
            self._free_slots.wait_for(lambda: self._busy_slots < self.slots)
            self._waiting -= 1
            self._busy_slots += 1
        try:
            yield
        finally:
            with self._free_slots:
                self._busy_slots -= 1
                self._free_slots.notify()

    @property
    def is_full(self) -> bool:
        return self._waiting >= self.most_waiting

    @property
    def metrics(self) -> str:
        """What vLLM says of itself, as far as anybody here reads it."""
        labels = f'engine="0",model_name="{self.models[0]}"'
        return METRICS.format(labels=labels, running=self._busy_slots, waiting=self._waiting)

    def wait(self, seconds: float) -> None:
        """Sleep, or until the server is stopped."""
        self._release.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *args: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def has_closed(self, connection: socket.socket) -> bool:
        return connection not in self._connections

    def close_connections(self) -> None:
        for connection in list(self._connections):
            self._connections.discard(connection)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients of these tests go away all the time


class _Handler(fake_native.NativeRoutes):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else head and body, two small writes, are 40 ms apart
    fake: FakeBackend

    def setup(self) -> None:
        self.fake.connections += 1
        super().setup()

    def do_GET(self) -> None:
        if self.fake.is_hung:
            self._stay_silent()
            return
        routes: dict[str, Any] = {
            "/api/version": {"version": "0.33.0"},
            # For tests.schemas.make: the first commits list the models so.
            "/api/tags": {"models": [{"name": name, "model": name} for name in self.fake.models]},
            "/v1/models": {
                "object": "list",
                "data": [
                    {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "library"}
                    for name in (*self.fake.models, *self.fake.derived)
                ],
            },
            "/api/ps": {"models": [self.fake.told(name) for name in self.fake.loaded]},
        }
        if self.fake.is_vllm:
            routes = {"/v1/models": routes["/v1/models"], "/version": {"version": "0.32.0"}}
            for model in routes["/v1/models"]["data"]:
                parent = self.fake.roots.get(model["id"])
                model |= {"owned_by": "vllm", "root": f"models/{model['id']}", "parent": parent, "max_model_len": 2048}
            if self.path == "/metrics" and self.fake.has_metrics:
                self._send(200, self.fake.metrics.encode(), {"Content-Type": "text/plain; version=1.0.0"})
                return
        if self.path in routes and (self.fake.lists_models or self.path != "/v1/models"):
            self._send(200, json.dumps(routes[self.path]).encode())
        else:
            self._send(404, b"404 page not found")

    def do_DELETE(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model = str(body.get("model"))
        if "obs-ctx-" not in model:
            self.change(body)
            return
        self.fake.deletes.append(model)
        self.fake.events.append(f"delete {model}")
        known = self.fake.derived.pop(model, None) is not None
        self._send(200 if known else 404, b"" if known else b'{"error": "model not found"}')

    def do_POST(self) -> None:
        if self.path.startswith("/api/blobs/"):
            self.take_blob()
            return
        length = int(self.headers["Content-Length"])
        content = self.rfile.read(length)
        if len(content) < length:
            return  # the client has cut its request
        body = json.loads(content or b"{}")
        if self.fake.is_hung:
            self._stay_silent()
            return
        if self.path == "/api/show":
            if self.fake.lacks(body["model"]):
                self._send(404, json.dumps({"error": f"model '{body['model']}' not found"}).encode())
                return
            self.fake.events.append(f"describe {body['model']}")
            info = {"general.architecture": "gemma3", "gemma3.context_length": self.fake.made_for}
            self._send(200, json.dumps({"capabilities": ["completion"], "model_info": info}).encode())
            return
        if self.path == "/api/create" and "obs-ctx-" in body["model"]:
            self.fake.events.append(f"derive {body['model']}")
            self.fake.derived[body["model"]] = body["parameters"]["num_ctx"]
            self._send(200, b'{"status": "success"}')
            return
        if body.get("truncate") is False:
            self._check(body)
            return
        if self.path in ("/api/generate", "/api/embed") and not (body.get("prompt") or body.get("input")):
            self._load(body)
            return
        if self.path in fake_native.CHANGES:
            self.change(body)
            return
        try:
            seen = Seen(_key(body), self.path, body, dict(self.headers))
        except (LookupError, TypeError, AttributeError):
            self._send(400, json.dumps(error_body("cannot unmarshal", "invalid_request_error")).encode())
            return
        try:
            action = self.fake.take(seen)
            if self.server.has_closed(self.connection):
                if seen.left == float("inf"):
                    seen.left = seen.at  # a crash came before anybody had read it
                return
            if self.fake.is_vllm and self.fake.is_full:
                self.fake._has_refused.set()
                self._send(503, json.dumps(error_body("The server is overloaded")).encode())
            elif self.fake.is_vllm:
                with self.fake.slot():
                    if self.fake.answers_once_full:
                        self.fake._has_refused.wait(30)
                    self._serve(seen, action)
            else:
                self._serve(seen, action)
        finally:
            self.fake.uses[str(body.get("model"))] += 1
            seen.left = min(seen.left, time.monotonic())

    def _serve(self, seen: Seen, action: Action) -> None:
        body = seen.body
        if action.delay_s:
            self.fake.wait(action.delay_s)
        if self.fake.lacks(body.get("model")):
            message = f"model '{body['model']}' not found"
            is_native = fake_native.is_native(self.path)
            refusal: Any = {"error": message} if is_native else error_body(message, "not_found_error")
            self._send(404, json.dumps(refusal).encode())
            return
        self.fake.has_loaded(str(body.get("model")))  # as Ollama does, if nobody has before
        if action.hang:
            self._hang(seen)
            return
        if action.crash or self.fake.is_overloaded:
            self.fake.crash()
            return
        if action.reset:
            self._reset()
            return
        if _streams(self.path, body) and action.body is None:
            if seen.key == COUNTING:
                with self.fake.slot():
                    self._stream(seen, replace(action, pause_s=0.005))
            else:
                self._stream(seen, action)
            return
        context = self.fake.context_of(body.get("model"))
        content = action.body if action.body is not None else answer(self.path, body, context)
        if self.fake.is_vllm and isinstance(content, dict) and self.path != "/v1/responses":
            content = content | {"id": f"cmpl-{self.headers.get('X-Request-Id', '1')}"}
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        seen.left = min(seen.left, time.monotonic())
        if action.drip_s:
            self._drip(seen, content, action.drip_s)
        elif action.cut_after is not None:
            self._head(action.status, len(content))
            self.wfile.write(content[: action.cut_after])
            self.close_connection = True
        else:
            self._send(action.status, content, action.headers)
            seen.answered = True

    def _check(self, body: dict[str, Any]) -> None:
        """Say whether a prompt fits, as the native endpoints do that must not cut it."""
        action = self.fake.on_check.popleft() if self.fake.on_check else None
        self.fake.wait(self.fake.native_delay_s)
        if action is None:
            self._send(*native_answer(body, self.fake.context_of(body.get("model"))))
        elif action.reset:
            self._reset()
        elif action.hang:
            self._stay_silent()
        else:
            self._send(action.status, json.dumps(action.body).encode())

    def _reset(self) -> None:
        # Linger 0: the peer gets a reset, not an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _load(self, body: dict[str, Any]) -> None:
        if body.get("keep_alive") == 0:
            self.fake.unloads.append(body["model"])
            self.fake.events.append(f"unload {body['model']}")
            self.fake.let_go(body["model"])
            self._send(200, json.dumps({"model": body["model"], "done_reason": "unload"}).encode())
            return
        if self.fake.lacks(body["model"]):
            self._send(404, json.dumps({"error": f"model '{body['model']}' not found"}).encode())
            return
        self.fake.loads.append(body["model"])
        self.fake.events.append(f"load {body['model']}")
        self.fake.load_paths.append(self.path)
        action = self.fake.on_load.popleft() if self.fake.on_load else Action()
        self.fake.wait(action.delay_s)
        if action.status == 200:
            self.fake.has_loaded(body["model"])
            self.fake.uses[body["model"]] += 1
        content = action.body if action.body is not None else {"model": body["model"], "done_reason": "load"}
        self._send(action.status, content if isinstance(content, bytes) else json.dumps(content).encode())

    def _hang(self, seen: Seen) -> None:
        self._stay_silent()
        seen.gone = True

    def _stay_silent(self) -> None:
        """Until the client goes away."""
        self.close_connection = True
        while self._client_stays(0.1):
            pass

    def _client_stays(self, seconds: float) -> bool:
        """Wait, at most until the client goes away or the server is stopped."""
        ends_at = time.monotonic() + seconds
        while not self.fake._release.is_set():
            readable, _, _ = select.select([self.connection], [], [], max(0.0, min(0.1, ends_at - time.monotonic())))
            try:
                if readable and not self.connection.recv(1):
                    return False
            except OSError:
                return False
            if time.monotonic() >= ends_at:
                return True
        return False

    def _stream(self, seen: Seen, action: Action) -> None:
        """Server-sent events, each in a chunk of its own, as Ollama sends them."""
        self.close_connection = True
        self.send_response(200)
        native = fake_native.is_native(self.path)
        self.send_header("Content-Type", fake_native.NDJSON_TYPE if native else "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        left = action.break_after
        try:
            for event in events(self.path, seen.body):
                if left == 0:
                    return  # without the chunk that ends a whole answer
                piece = event if left is None else event[:left]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                left = None if left is None else left - len(piece)
                if not self._client_stays(action.pause_s):
                    seen.gone = True
                    return
            self.wfile.write(b"0\r\n\r\n")
            seen.answered = True
        except OSError:
            seen.gone = True

    def _drip(self, seen: Seen, content: bytes, pause_s: float) -> None:
        self._head(200, len(content))
        try:
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                self.fake.wait(pause_s)
        except OSError:
            seen.gone = True
            self.close_connection = True

    def _head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        kind = fake_native.JSON_TYPE if fake_native.is_native(self.path) else "application/json"
        for name, value in ({"Content-Type": kind} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, len(content), headers)
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _streams(path: str, body: dict[str, Any]) -> bool:
    return bool(body.get("stream", path in ("/api/chat", "/api/generate"))) and not path.startswith(EMBEDDING)


def _key(body: dict[str, Any]) -> str:
    if isinstance(body.get("messages"), list):
        return str(body["messages"][-1]["content"])
    return str(body.get("prompt") or body.get("input"))


def events(path: str, body: dict[str, Any]) -> Iterator[bytes]:
    """A good answer as a stream, an event for each of its words, in the shape of the endpoint."""
    words = f"answer to {_key(body)}".split(" ") * (COUNTED_PIECES if _key(body) == COUNTING else 1)
    if path == fake_native.MESSAGES or fake_native.is_native(path):
        yield from fake_native.events(path, body.get("model"), words)
        return
    whole = answer(path, body)
    if path == "/v1/responses":
        for number, word in enumerate(words):
            delta = {"type": "response.output_text.delta", "sequence_number": number, "delta": word, "logprobs": []}
            delta |= {"item_id": "msg_1", "output_index": 0, "content_index": 0}
            yield b"event: response.output_text.delta\ndata: %s\n\n" % json.dumps(delta).encode()
        done = {"type": "response.completed", "sequence_number": len(words), "response": whole}
        yield b"event: response.completed\ndata: %s\n\n" % json.dumps(done).encode()
        return
    chunk = {name: whole[name] for name in ("id", "model")} | {"object": f"{whole['object']}.chunk"}
    for word in words:
        text = {"delta": {"content": word}} if path == "/v1/chat/completions" else {"text": word}
        choices: list[Any] = [{"index": 0, "finish_reason": None} | text]
        yield b"data: %s\n\n" % json.dumps(chunk | {"choices": choices}).encode()
    if (body.get("stream_options") or {}).get("include_usage"):
        yield b"data: %s\n\n" % json.dumps(chunk | {"choices": [], "usage": whole["usage"]}).encode()
    yield b"data: [DONE]\n\n"


def native_answer(body: dict[str, Any], context: int) -> tuple[int, bytes]:
    """What /api/chat and /api/embed answer to a request with `truncate: false`."""
    texts = body["input"] if "input" in body else [_key(body)]
    tokens = max(map(len, texts))
    if tokens <= context:
        return 200, b'{"prompt_eval_count": %d}' % tokens
    if "input" in body:
        return 400, b'{"error": "the input length exceeds the context length"}'
    # JSON in a string, as Ollama hands on what its runner says.
    message = f"request ({tokens} tokens) exceeds the available context size ({context} tokens), try increasing it"
    error = {"code": 400, "message": message, "type": "exceed_context_size_error", "n_prompt_tokens": tokens}
    return 400, json.dumps({"error": json.dumps({"error": error | {"n_ctx": context}})}).encode()


def answer(path: str, body: dict[str, Any], context: int = 4096) -> dict[str, Any]:
    """A good answer in the shape of the endpoint: 7 tokens in, 3 out; of a long prompt, a token a letter."""
    text = f"answer to {_key(body)}"
    model = body.get("model")
    if path == fake_native.MESSAGES or fake_native.is_native(path):
        return fake_native.answer(path, model, text)
    length = len(_key(body))
    prompt_tokens = 7 if length < 512 else length if length <= context else context // 2 + 2
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 3, "total_tokens": prompt_tokens + 3}
    match path:
        case "/v1/chat/completions":
            message = {"role": "assistant", "content": text}
            choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
            return {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "model": model,
                "choices": [choice],
                "usage": usage,
            }
        case "/v1/completions":
            choice = {"index": 0, "text": text, "finish_reason": "stop"}
            reply = {"id": "cmpl-1", "object": "text_completion"}
            return reply | {"model": model, "choices": [choice], "usage": usage}
        case "/v1/embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
            read = 7 if length < 512 else min(length, context)
            spent = {"prompt_tokens": read, "total_tokens": read}
            return {"object": "list", "model": model, "data": data, "usage": spent}
        case "/v1/responses":
            content = [{"type": "output_text", "text": text}]
            output = [{"type": "message", "role": "assistant", "content": content}]
            spent = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
            return {"id": "resp_1", "object": "response", "model": model, "output": output, "usage": spent}
    raise AssertionError(f"no such endpoint: {path}")
