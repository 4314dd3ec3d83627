"""A model server that takes the same time for every answer: what is slower than that is ours. Used by `benchmark`.

It looks like an Ollama with one model, notes when each request arrived, and computes nothing. Knows nothing of Django.

    PUT /measure {"latency_ms": 10}    forget the requests so far; answer after so long from now on
    GET /measure                       when each request since then arrived, in seconds of one monotonic clock
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "fixed-latency:latest"
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "word " * 80}, "finish_reason": "stop"},
    ],
    "usage": {"prompt_tokens": 200, "completion_tokens": 80, "total_tokens": 280},
}
QUESTIONS: dict[str, Any] = {
    "/api/version": {"version": "0.0.0"},
    "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "library"}]},
    "/api/ps": {"models": [{"name": MODEL, "context_length": 8192}]},
}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    latency_s = 0.0

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.arrivals: list[float] = []


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"  # connections are kept, as Ollama does
    # Head and body leave in one piece and at once: otherwise a reply may wait 40 ms for the client's delayed ACK.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        if not self.path.startswith("/v1/"):  # an order to load the model
            self._body()
            self._answer({})
            return
        self.server.arrivals.append(time.monotonic())
        self._body()
        # A thread's sleep is exact to some 0.1 ms; an event loop would round it up to whole milliseconds.
        time.sleep(self.server.latency_s)
        self._answer(ANSWER)

    def do_PUT(self) -> None:
        self.server.latency_s = json.loads(self._body())["latency_ms"] / 1000
        self.server.arrivals.clear()
        self._answer({})

    def do_GET(self) -> None:
        self._answer(self.server.arrivals if self.path == "/measure" else QUESTIONS.get(self.path, {}))

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet: a line of log for each request would be part of what is measured."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    Server(int(sys.argv[1])).serve_forever()
