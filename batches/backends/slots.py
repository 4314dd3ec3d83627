"""How many calls a server computes at once, counted for servers that do not tell (Ollama's OLLAMA_NUM_PARALLEL).

Several equal requests are streamed at once. The server begins as many of them as it has slots, and the others wait: so
those that are under way when the first of them has come far, or ends, are its slots. The count depends on the order of
the events, and on their speed only where answers come within FAR_S, so other load on the machine does not change it.
All that go on then are broken off.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from urllib3.exceptions import HTTPError

from batches.backends.connection import Connection, Cut
from batches.backends.replies import JSON

# So many requests tell the slots of most servers. If all of them are computed at once, MOST_SLOTS are sent; more slots
# than those are not told apart.
FEW_SLOTS, MOST_SLOTS = 9, 33
# An answer of fewer pieces may end before the server began the others: its count is not trusted.
LEAST_PIECES = 12
# An answer with a smaller part of the pieces of the first one to end was begun in the slot that this one had left.
UNDER_WAY = 0.25
# With so many pieces, so long after its first, an answer has come far: whoever has a slot has begun, in the same step
# of the server or in one of the next.
FAR_PIECES, FAR_S = 8, 0.3
LOOK_EVERY_S = 0.05

# Texts that models go on with for ANSWER_TOKENS tokens, as a rule: the second is for those that end the first one soon.
# They go without a template, since each slot reads the prompt for itself, and with it a system prompt of the template.
BEGINNINGS = ("Once upon a time", "one two three four five")
ANSWER_TOKENS = 48


def count(
    connect: Callable[[], Connection], requests: Iterable[tuple[str, JSON]], *, is_cut: Callable[[], bool]
) -> int | None:
    """How many calls the server computes at once, MOST_SLOTS at most; None if its answers do not tell.

    `requests` are paths and bodies for one model with streamed answers, one for each of BEGINNINGS; the next one is
    tried if the answer to one is too short. The server must have the model loaded and nothing else to do. Raises Cut
    once `is_cut()`.
    """
    for path, body in requests:
        slots = _Race(connect, path, body, FEW_SLOTS).run(is_cut)
        if slots == FEW_SLOTS:
            slots = _Race(connect, path, body, MOST_SLOTS).run(is_cut) or slots
        if slots:
            return slots
    return None


class _Race:
    """Equal requests, sent at once over a connection each."""

    def __init__(self, connect: Callable[[], Connection], path: str, body: JSON, number: int) -> None:
        self._path, self._body = path, body
        self._connections = [connect() for _ in range(number)]
        self._events: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()

    def run(self, is_cut: Callable[[], bool]) -> int | None:
        """How many answers were under way when one had come far or ended; None if that was too short, or an error."""
        numbers = range(len(self._connections))
        threads = [threading.Thread(target=self._ask, args=(each,), daemon=True) for each in numbers]
        for thread in threads:
            thread.start()
        try:
            return self._watch(is_cut)
        finally:
            for connection in self._connections:
                connection.cut(self)
            for thread in threads:
                thread.join()

    def _watch(self, is_cut: Callable[[], bool]) -> int | None:
        pieces: Counter[int] = Counter()
        is_far_at = float("inf")
        while not is_cut():
            try:
                number, event = self._events.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                continue
            if event == "piece":
                pieces[number] += 1
                is_far_at = min(is_far_at, time.monotonic() + FAR_S)
                if pieces[number] >= FAR_PIECES and time.monotonic() >= is_far_at:
                    return len(pieces)  # no slot was left yet, so each of them has one of its own
            elif event == "end" and pieces[number] >= LEAST_PIECES:
                return sum(each >= UNDER_WAY * pieces[number] for each in pieces.values())
            else:
                return None
        raise Cut

    def _ask(self, number: int) -> None:
        connection = self._connections[number]
        try:
            for _ in connection.stream(self._path, self._body, call=self):
                self._events.put((number, "piece"))
            self._events.put((number, "end"))
        except (Cut, HTTPError, OSError):
            self._events.put((number, "broken"))
        finally:
            connection.close()
