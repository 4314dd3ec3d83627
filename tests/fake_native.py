"""Ollama's own API, and Anthropic's, as the fake model server has them: shapes of answers, changes of models, blobs."""

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

AT = "2026-01-01T00:00:00.000000001Z"
JSON_TYPE = "application/json; charset=utf-8"
NDJSON_TYPE = "application/x-ndjson"
MESSAGES = "/v1/messages"
CHANGES = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/me")


def is_native(path: str) -> bool:
    return path.startswith("/api/")


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def answer(path: str, model: Any, text: str) -> dict[str, Any]:
    """A good answer that is not streamed: 7 tokens in, 3 out."""
    counts = {"done": True, "done_reason": "stop", "prompt_eval_count": 7, "eval_count": 3}
    match path:
        case "/api/chat":
            return {"model": model, "created_at": AT, "message": {"role": "assistant", "content": text}} | counts
        case "/api/generate":
            return {"model": model, "created_at": AT, "response": text} | counts
        case "/api/embed":
            return {"model": model, "embeddings": [[0.5, 0.25]], "prompt_eval_count": 7}
        case "/api/embeddings":
            return {"embedding": [0.5, 0.25]}
    usage = {"input_tokens": 7, "output_tokens": 3}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "stop_reason": "end_turn"}
    return message | {"content": [{"type": "text", "text": text}], "usage": usage}


def events(path: str, model: Any, words: list[str]) -> Iterator[bytes]:
    """The same as a stream, a record for each of its words."""
    if path == MESSAGES:
        yield b'event: message_start\ndata: {"type":"message_start"}\n\n'
        for word in words:
            delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            yield b"event: content_block_delta\ndata: %s\n\n" % compact(delta)
        yield b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
        return
    last = answer(path, model, "")
    for word in words:
        text = {"message": {"role": "assistant", "content": word}} if path == "/api/chat" else {"response": word}
        yield compact({"model": model, "created_at": AT} | text | {"done": False}) + b"\n"
    yield compact(last) + b"\n"


class NativeRoutes(BaseHTTPRequestHandler):
    """What changes models. `fake.changes` has each such request as (method, path, body), `fake.blobs` the files."""

    fake: Any

    def do_DELETE(self) -> None:
        self.change(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def change(self, body: dict[str, Any]) -> None:
        self.fake.changes.append((self.command, self.path, body))
        name = body.get("source") or body.get("model") or body.get("name")
        if self.path in ("/api/copy", "/api/delete"):
            if name not in self.fake.models:
                self._say(404, compact({"error": f"model '{name}' not found"}), JSON_TYPE)
            else:
                self._say(200, b"", "")
        elif body.get("stream") is False:
            self._say(200, compact({"status": "success"}), "application/json")
        elif self.path == "/api/me":
            self._say(200, compact({"name": "owner"}), JSON_TYPE)
        elif name == "no:where":
            steps = [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}]
            self._say(200, b"".join(compact(each) + b"\n" for each in steps), NDJSON_TYPE)
        else:
            steps = [{"status": "pulling manifest"}, {"status": "success"}]
            self._say(200, b"".join(compact(each) + b"\n" for each in steps), NDJSON_TYPE)

    def do_HEAD(self) -> None:
        digest = self.path.rpartition("/")[2]
        self._say(200 if digest in self.fake.blobs else 404, b"", "")

    def take_blob(self) -> None:
        digest, content = self.path.rpartition("/")[2], b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        if digest == f"sha256:{hashlib.sha256(content).hexdigest()}":
            self.fake.blobs[digest] = content
            self._say(201, b"", "")
        else:
            self._say(400, compact({"error": f'digest mismatch, expected "{digest}"'}), JSON_TYPE)

    def _say(self, status: int, content: bytes, content_type: str) -> None:
        self.send_response(status)
        if content_type:
            self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
