"""How long an answer may take, judged by how long earlier answers of the same model took."""

from collections import defaultdict, deque
from typing import Any

from django.conf import settings

from batches.backends.in_flight import Call
from batches.backends.replies import Verdict
from batches.lines import prompt
from batches.models import Line

LEAST_S, MOST_S = 120.0, 1800.0
REMEMBERED = 50
# A deadline is MARGIN times what the slowest of the remembered answers suggests.
MARGIN = 4.0
# Reading a token of the prompt takes a tenth of writing one, or less.
READING = 0.1
# The answer to a line that sets no token limit may be UNLIMITED times as long as the longest answer yet.
UNLIMITED = 10
LEAST_UNLIMITED_TOKENS = 2048
READ = ("messages", "prompt", "input")  # the members of a body with its prompt


class Deadlines:
    """The deadlines of calls, by model, from the answers that one drive saw."""

    def __init__(self) -> None:
        self._speeds: defaultdict[str, ModelSpeed] = defaultdict(ModelSpeed)

    def note(self, call: Call[Line]) -> None:
        """Learn from an answer; a call without an answer teaches nothing."""
        if call.verdict is Verdict.ANSWERED:
            self._speeds[call.subject.model].note(call)

    def for_line(self, line: Line, body: dict[str, Any]) -> float:
        """How many seconds the answer to `body` may take, which is sent for `line`."""
        return self._speeds[line.model].deadline_s(body, is_retry=line.attempts > 0)


class ModelSpeed:
    """The speed of one model, from the answers that one drive saw."""

    def __init__(self) -> None:
        self._seconds_per_token: deque[float] = deque(maxlen=REMEMBERED)
        self._slowest = 0.0  # of them
        self._longest = 0

    def note(self, call: Call[Any]) -> None:
        if call.reply is None:
            return
        usage = call.reply.usage
        # A prompt that the server had read before costs nothing, and the server does not always say so.
        tokens = usage.output_tokens or usage.input_tokens * READING
        if tokens >= 1:
            self._note(call.duration_s / tokens)
            self._longest = max(self._longest, usage.output_tokens)

    def _note(self, seconds: float) -> None:
        is_full = len(self._seconds_per_token) == REMEMBERED
        forgotten = self._seconds_per_token[0] if is_full else 0.0
        self._seconds_per_token.append(seconds)
        self._slowest = max(self._slowest, seconds) if forgotten < self._slowest else max(self._seconds_per_token)

    def deadline_s(self, body: dict[str, Any], *, is_retry: bool = False) -> float:
        """The deadline for this body, in seconds: LINE_TIMEOUT_S if it is set; MOST_S if nothing was measured yet, and
        for a line that failed before, which may be a long line among short ones."""
        if settings.LINE_TIMEOUT_S is not None:
            return float(settings.LINE_TIMEOUT_S)
        if is_retry or not self._seconds_per_token:
            return MOST_S
        # JSON allows integers that are too large for a float.
        limit = min(prompt.token_limit(body), prompt.MOST_TOKENS)
        written = limit or max(LEAST_UNLIMITED_TOKENS, UNLIMITED * self._longest)
        read = sum(len(str(body[name])) for name in READ if name in body) / prompt.BYTES_PER_TOKEN
        expected = self._slowest * (written + read * READING)
        return min(MOST_S, max(LEAST_S, MARGIN * expected))
