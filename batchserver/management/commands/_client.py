"""A client of our own HTTP API, for `run_batch` and `benchmark`."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from django.conf import settings
from django.core.management.base import CommandError

FINAL = ("completed", "failed", "expired", "cancelled")


class Client:
    """Our own HTTP API, as any client uses it."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.session = requests.Session()
        self.session.trust_env = False
        if settings.CLIENT_API_KEY:
            self.session.headers["Authorization"] = f"Bearer {settings.CLIENT_API_KEY}"

    def health(self) -> dict[str, Any] | None:
        """None if no batch server answers there."""
        try:
            body = self.session.get(f"{self.base}/health", timeout=10).json()
        except (requests.RequestException, ValueError):
            return None
        return body if isinstance(body, dict) and body.get("service") == "ollama-batch-server" else None

    def create(self, path: Path, endpoint: str, window: str) -> dict[str, Any]:
        file = self._ask(
            "POST", "files", data=_form(path), headers={"Content-Type": f"multipart/form-data; {BOUNDARY}"}
        )
        body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": window}
        return self._ask("POST", "batches", json=body)

    def batch(self, batch_id: str) -> dict[str, Any]:
        return self._ask("GET", f"batches/{batch_id}")

    def download(self, file_id: str, target: Path) -> None:
        with self.session.get(f"{self.base}/v1/files/{file_id}/content", stream=True, timeout=60) as response:
            response.raise_for_status()
            with target.open("wb") as file:
                shutil.copyfileobj(response.raw, file)

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The answer's JSON. A GET is sent again for 30 s if the server does not answer, as it may be restarting."""
        for attempt in range(30):
            try:
                response = self.session.request(method, f"{self.base}/v1/{path}", timeout=60, **options)
                break
            except requests.RequestException:
                if method != "GET" or attempt == 29:
                    raise CommandError(f"The server at {self.base} does not answer any more.") from None
                time.sleep(1)
        body: dict[str, Any] = response.json()
        if response.status_code == 401:
            raise CommandError(f"{body['error']['message']} (the key is read from OPENAI_API_KEY)")
        if not response.ok:
            raise CommandError(str(body["error"]["message"]))
        return body


BOUNDARY = "boundary=ollama-batch-server-4b1d7c0e9f2a"


def _form(path: Path) -> Iterator[bytes]:
    """The upload form, streamed: the file may be larger than memory."""
    edge = b"--" + BOUNDARY.partition("=")[2].encode()
    yield edge + b'\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    yield edge + b'\r\nContent-Disposition: form-data; name="file"; filename="requests.jsonl"\r\n\r\n'
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            yield chunk
    yield b"\r\n" + edge + b"--\r\n"
