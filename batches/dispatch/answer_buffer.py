"""Answers that wait to be stored: one by one while they come slowly, in groups while they come fast.

A group is stored once it has GROUP_LINES answers, or has waited GROUP_OVER_COST times as long as storing the last group
took (MOST_GROUP_S at most). So storing takes at most a tenth of the time, and a crash costs the answers of some
milliseconds.
"""

import time

from batches.backends.in_flight import Call
from batches.backends.replies import Verdict
from batches.models import Line

GROUP_OVER_COST = 10
MOST_GROUP_S = 0.2
GROUP_LINES = 64
URGENT = (Verdict.UNREACHABLE, Verdict.MODEL_MISSING, Verdict.ENDPOINT_MISSING)


class AnswerBuffer:
    """Calls made for lines, over and not stored yet."""

    def __init__(self) -> None:
        self._calls: list[Call[Line]] = []
        self.is_urgent = False  # one of the answers concerns other lines too: store it before another line is sent
        self.due_at = time.monotonic()

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Call[Line]) -> None:
        self._calls.append(call)
        self.is_urgent = self.is_urgent or call.verdict in URGENT or call.most_together is not None

    def is_due(self, *, is_last: bool) -> bool:
        """Whether the group is to be stored now; `is_last`: nothing is in flight that could join it."""
        if not self._calls:
            return False
        return is_last or self.is_urgent or len(self._calls) >= GROUP_LINES or time.monotonic() >= self.due_at

    def take(self) -> list[Call[Line]]:
        """All calls of the buffer, to be stored now."""
        group, self._calls, self.is_urgent = self._calls, [], False
        return group

    def stored(self, took_s: float) -> None:
        """Storing the last group took `took_s` seconds: decide how long the next group may wait."""
        self.due_at = time.monotonic() + min(MOST_GROUP_S, GROUP_OVER_COST * took_s)
