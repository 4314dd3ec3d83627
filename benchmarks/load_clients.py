"""Many clients of one batch server at once, in a process of their own: `python -m benchmarks.load_clients`.

Each is a thread with a connection that it keeps. It asks, and pauses as a client does that has something else to do.
Nothing is tried again. What became of each request goes to stdout as JSON.
"""

import json
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

TIMEOUT_S = 60.0
PAUSE_S = (0.5, 2.5)
# How often of a hundred times each is done.
MIX = {"poll": 66, "health": 4, "list": 15, "upload": 5, "create": 5, "download": 5}
UPLOAD_BYTES = (1_000_000, 5_000_000)
BOUNDARY = "----------load"
LINE = '{"custom_id": "%d", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [], "n": "%s"}}\n'


@dataclass
class Results:
    """What became of the requests: seconds and status of each by its action, and what broke."""

    answered: dict[str, list[tuple[float, int]]] = field(
        default_factory=lambda: {action: [] for action in [*MIX, "change"]}
    )
    broken: list[str] = field(default_factory=list)


class Client:
    def __init__(self, base: str, batch_id: str, file_id: str, number: int, results: Results) -> None:
        self._connection = HTTPConnection(urlsplit(base).netloc, timeout=TIMEOUT_S)
        self._batch_id = batch_id
        self._file_id = file_id
        self._chance = random.Random(number)
        self._results = results

    def run(self, ends_at: float) -> None:
        actions = [action for action, times in MIX.items() for _ in range(times)]
        self._chance.shuffle(actions)
        # Not all of them begin at the same moment.
        time.sleep(self._chance.uniform(0, PAUSE_S[1]))
        while time.monotonic() < ends_at:
            for action in actions:
                if time.monotonic() >= ends_at:
                    return
                try:
                    getattr(self, action)()
                except (OSError, HTTPException, Refused) as error:
                    if not isinstance(error, Refused):
                        self._results.broken.append(f"{action}: {type(error).__name__}")
                    self._connection.close()
                time.sleep(self._chance.uniform(*PAUSE_S))

    def poll(self) -> None:
        self._ask("poll", "GET", f"/v1/batches/{self._batch_id}")

    def health(self) -> None:
        self._ask("health", "GET", "/health")

    def list(self) -> None:
        self._ask("list", "GET", self._chance.choice(["/v1/batches?limit=20", "/v1/files?limit=100"]))

    def download(self) -> None:
        self._ask("download", "GET", f"/v1/files/{self._file_id}/content")

    def upload(self) -> None:
        self._delete(self._send_file("upload", self._chance.randint(*UPLOAD_BYTES)))

    def create(self) -> None:
        """A small batch, which is cancelled at once: the lines that count are those of the large one."""
        body = {"input_file_id": self._send_file("upload", 200), "endpoint": "/v1/chat/completions"}
        content = json.dumps(body | {"completion_window": "24h"}).encode()
        batch = json.loads(self._ask("create", "POST", "/v1/batches", content, "application/json"))
        self._ask("change", "POST", f"/v1/batches/{batch['id']}/cancel", allowed=(409,))

    def _send_file(self, action: str, size: int) -> str:
        line = LINE % (0, "x" * 800)
        lines = (line * (size // len(line) + 1)).encode()
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{BOUNDARY}\r\n'
        head += 'Content-Disposition: form-data; name="file"; filename="load.jsonl"\r\n\r\n'
        content = head.encode() + lines + f"\r\n--{BOUNDARY}--\r\n".encode()
        answer = self._ask(action, "POST", "/v1/files", content, f"multipart/form-data; boundary={BOUNDARY}")
        return str(json.loads(answer)["id"])

    def _delete(self, file_id: str) -> None:
        self._ask("change", "DELETE", f"/v1/files/{file_id}")

    def _ask(
        self, action: str, method: str, path: str, body: bytes = b"", type_: str = "", *, allowed: tuple[int, ...] = ()
    ) -> bytes:
        started = time.monotonic()
        self._connection.request(method, path, body or None, {"Content-Type": type_} if type_ else {})
        answer = self._connection.getresponse()
        content = answer.read()
        self._results.answered[action].append((time.monotonic() - started, answer.status))
        if answer.status >= 300 and answer.status not in allowed:
            raise Refused
        return content


class Refused(Exception):
    """The answer was no good one; its status is noted."""


def main(base: str, batch_id: str, file_id: str, clients: int, seconds: float) -> Results:
    """Ask for so many seconds."""
    results = Results()
    ends_at = time.monotonic() + seconds
    threads = [
        threading.Thread(target=Client(base, batch_id, file_id, number, results).run, args=(ends_at,), daemon=True)
        for number in range(clients)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return results


if __name__ == "__main__":
    base, batch_id, file_id, clients, seconds = sys.argv[1:]
    json.dump(vars(main(base, batch_id, file_id, int(clients), float(seconds))), sys.stdout)
