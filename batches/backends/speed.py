"""How fast a server writes with so many calls in flight, measured by requests as a batch would send them."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from urllib3.exceptions import HTTPError

from batches.backends.connection import Connection, Cut
from batches.backends.replies import JSON

LOOK_EVERY_S = 0.2


class NotMeasured(Exception):
    """The server refused or failed every request. The text says what came back."""


@dataclass(frozen=True)
class Speed:
    """`tokens` written in `seconds` with `calls` in flight, and how many of the calls ended meanwhile."""

    calls: int
    tokens: int
    seconds: float
    answered: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def measure(
    connect: Callable[[], Connection],
    requests: Iterator[tuple[str, JSON]],
    *,
    calls: int,
    seconds: float,
    look: Callable[[], None],
) -> Speed:
    """Keep `calls` of the streamed `requests` in flight for so many seconds, and count the tokens as they come.

    `look` is called some times a second. Raises NotMeasured, and what `look` raises.
    """
    return _Load(connect, requests, calls).run(seconds, look)


class _Load:
    def __init__(self, connect: Callable[[], Connection], requests: Iterator[tuple[str, JSON]], calls: int) -> None:
        self._requests = requests
        self._connections = [connect() for _ in range(calls)]
        self._guard = threading.Lock()
        self._tokens = self._answered = self._failed = 0
        self._is_over = False

    def run(self, seconds: float, look: Callable[[], None]) -> Speed:
        threads = [threading.Thread(target=self._send, args=(each,), daemon=True) for each in self._connections]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            while time.monotonic() < started + seconds and any(thread.is_alive() for thread in threads):
                time.sleep(LOOK_EVERY_S)
                look()
        finally:
            with self._guard:
                self._is_over, tokens, answered = True, self._tokens, self._answered
            took = time.monotonic() - started
            for connection in self._connections:
                connection.cut(self)
            for thread in threads:
                thread.join()
        if not tokens:
            raise NotMeasured(f"No token came back in {took:.0f} s, and {self._failed} requests failed.")
        return Speed(len(threads), tokens, took, answered)

    def _send(self, connection: Connection) -> None:
        while not self._is_over:
            with self._guard:
                path, body = next(self._requests)
            try:
                pieces = 0
                for piece in connection.stream(path, body | {"stream": True}, call=self):
                    pieces += self._note(piece)
                with self._guard:
                    self._answered += pieces > 0
                    self._failed += pieces == 0
                if not pieces:
                    time.sleep(LOOK_EVERY_S)  # a server that refuses everything is not to be flooded
            except (Cut, HTTPError, OSError):
                with self._guard:
                    self._failed += not self._is_over
        connection.close()

    def _note(self, piece: bytes) -> int:
        """Count the tokens in a piece of a stream: an event each, but for the last ones."""
        tokens = sum(map(_has_token, piece.split(b"\n")))
        with self._guard:
            if not self._is_over:
                self._tokens += tokens
        return tokens


def _has_token(line: bytes) -> bool:
    if not line.startswith(b"data: {"):
        return False
    try:
        event: Any = json.loads(line[6:])
    except ValueError:
        return False  # the other half is in the next piece
    choices = event.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    said = choices[0].get("text") or delta.get("content") or delta.get("reasoning") or event.get("delta")
    return bool(said)
