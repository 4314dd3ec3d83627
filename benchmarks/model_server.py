"""A model server to measure with: it behaves like an Ollama, and tells when each call began and ended.

    python -m benchmarks.model_server PORT [--llama] [--host ADDRESS]

It serves `slots` calls at once and queues the others in the order of their arrival, as Ollama does. Each answer takes a
fixed time and computes nothing: any more time is not the model server's. With --llama real models answer, one llama.cpp
at a time. The module does not know Django.

    PUT /measure {"latency_ms": 10, "slots": 1}    forget the calls; answer like this from now on (see Wanted)
    GET /measure                                   "starts" and "ends" of the calls since then, in seconds of one
                                                   monotonic clock, and "swaps": how often a model was loaded
"""

import argparse
import asyncio
import json
import re
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.engines import Call, Engine, Wanted
from benchmarks.llama_engine import Llama

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class FixedLatency:
    """Answers after the wanted time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def load(self, wanted: Wanted, model: str, done: Callable[[], None]) -> None:
        self.loop.call_later(wanted.swap_s, done)

    def answer(self, wanted: Wanted, call: Call, done: Callable[[bytes], None]) -> None:
        content = _answer(call.model, wanted.words)
        if wanted.latency_ms:
            call.timer = self.loop.call_later(wanted.latency_ms / 1000, done, content)
        else:
            done(content)

    def close(self) -> None:
        """There is nothing to release."""


class ModelServer:
    """The queue in front of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.waiting: deque[Call] = deque()
        self.running: set[Call] = set()
        self.is_loading = False
        self.want(Wanted())

    def want(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.loaded = wanted.models[0] if len(wanted.models) == 1 else ""
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.swaps = 0

    def told(self, path: str) -> Any:
        """The answer to a GET."""
        models = [{"id": name, "object": "model", "created": 1, "owned_by": "library"} for name in self.wanted.models]
        loaded = [{"name": self.loaded, "context_length": 8192}] if self.loaded else []
        return {
            "/measure": {"starts": self.starts, "ends": self.ends, "swaps": self.swaps},
            "/api/version": {"version": "0.0.0"},
            "/api/ps": {"models": loaded},
            "/v1/models": {"object": "list", "data": models},
        }.get(path, {})

    def model_of(self, body: bytes) -> str:
        # Read only if there is a choice: reading a body takes a tenth of the time of an answer.
        models = self.wanted.models
        return models[0] if len(models) == 1 else str(json.loads(body).get("model"))

    def take(self, call: Call) -> None:
        self.waiting.append(call)
        self.push_on()

    def push_on(self) -> None:
        """Begin the calls that may begin. The first in the queue stops those behind it, as Ollama does: a call
        for another model waits until the running calls are over."""
        while self.waiting and not self.is_loading:
            if self.wanted.slots and len(self.running) >= self.wanted.slots:
                return
            if self.waiting[0].model != self.loaded:
                if not self.running:
                    self.load(self.waiting[0].model)
                return
            call = self.waiting.popleft()
            if call.only_loads:
                call.reply(b"{}")
                continue
            self.running.add(call)
            self.starts.append(time.monotonic())
            self.engine.answer(self.wanted, call, partial(self.finish, call))

    def load(self, model: str) -> None:
        def done() -> None:
            self.is_loading = False
            self.push_on()

        self.is_loading = True
        self.loaded = model
        self.swaps += 1
        self.engine.load(self.wanted, model, done)

    def finish(self, call: Call, content: bytes) -> None:
        if call in self.running:
            self.running.remove(call)
            self.ends.append(time.monotonic())
            call.reply(content)
            self.push_on()

    def drop(self, call: Call) -> None:
        """The client of the call went away: forget a waiting call, end a running one."""
        if call in self.running:
            self.running.remove(call)
            if call.timer is not None:
                call.timer.cancel()
            self.push_on()
        elif call in self.waiting:
            self.waiting.remove(call)


class Connection(asyncio.Protocol):
    """As much of HTTP/1.1 as our own clients speak: kept connections, one request at a time, a Content-Length.

    Written by hand, because Python's own servers would be slower than what they measure.
    """

    transport: asyncio.Transport

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.buffer = bytearray()
        self.call: Call | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self.call is not None:
            self.server.drop(self.call)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head_ends = self.buffer.find(b"\r\n\r\n")
        if head_ends < 0:
            return
        head = bytes(self.buffer[:head_ends])
        found = LENGTH.search(head)
        ends = head_ends + 4 + (int(found[1]) if found else 0)
        if len(self.buffer) < ends:
            return
        body = bytes(self.buffer[head_ends + 4 : ends])
        del self.buffer[:ends]
        method, path, _ = head.split(b" ", 2)
        self.answer_request(method.decode(), path.decode(), body)

    def answer_request(self, method: str, path: str, body: bytes) -> None:
        if method == "POST":
            self.call = Call(self.server.model_of(body), path, body, self.reply)
            self.server.take(self.call)
            return
        if method == "PUT":
            self.server.want(Wanted(**json.loads(body)))
        self.reply(json.dumps(self.server.told(path)).encode())

    def reply(self, content: bytes) -> None:
        self.call = None
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        self.transport.write(head + content)


def _answer(model: str, words: int) -> bytes:
    if (model, words) not in _ANSWERS:
        message = {"role": "assistant", "content": "word " * words}
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 200, "completion_tokens": words, "total_tokens": 200 + words},
        }
        _ANSWERS[model, words] = json.dumps(answer).encode()
    return _ANSWERS[model, words]


_ANSWERS: dict[tuple[str, int], bytes] = {}


def main(port: int, *, host: str, with_llama: bool) -> None:
    # select() takes microseconds; asyncio's usual epoll would round every latency up to whole milliseconds.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    engine: Engine = FixedLatency(loop)
    if with_llama:
        engine = Llama(loop)
    server = ModelServer(engine)
    loop.run_until_complete(loop.create_server(lambda: Connection(server), host, port))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, loop.stop)
    try:
        loop.run_forever()
    finally:
        engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--llama", action="store_true")
    parser.add_argument("--host", default="127.0.0.1")
    given = parser.parse_args()
    main(given.port, host=given.host, with_llama=given.llama)
