"""How many calls to keep in flight on one backend: what it serves at once and one more, so that it never waits for us.

A loaded Ollama queues without a word and never says that it is busy, so tokens per second are the signal: where nobody
said how many calls the backend serves at once, the window grows while they grow. It shrinks at once when calls are
refused or time out. Pure: the drive that owns it stores its size on the backend's row, which all drives share.
"""

from typing import Any

from batches.backends.calls import Call
from batches.backends.replies import Verdict

# A measurement is over when so much time has passed and so many answers for each call in flight have come.
MEASURE_S = 10.0
ANSWERS_PER_CALL = 4
# A larger window stays if it brings so much.
WORTH = 1.1
FIRST_REST_S, MOST_REST_S = 60.0, 900.0
# Calls that fail together shrink it once.
SHRINK_EVERY_S = 5.0
READING = 0.1  # reading a token of the prompt, against writing one


class ConcurrencyLimit:
    """`size` calls may be in flight. `parallel` is what the backend serves at once, None where nobody knows; then the
    window grows up to `most`."""

    def __init__(self, parallel: int | None, *, most: int, size: int = 0) -> None:
        self.parallel = parallel
        self.usual = (parallel or 1) + 1
        self.most = max(self.usual, most) if parallel is None else self.usual
        # What was learned counts where nobody tells; what was shrunk comes back by itself.
        self.size = min(max(size, 1), self.most) if size and parallel is None else self.usual
        self._shrunk_at = float("-inf")
        self._rest_s = FIRST_REST_S
        self._rests_until = float("-inf")
        self._before: tuple[int, float] | None = None  # the size that is compared with, and its rate
        self._started: float | None = None
        self._answers = 0
        self._work = 0.0
        self._model = ""  # of the answers that are measured

    @property
    def running(self) -> int:
        """How many of the calls in flight the backend computes; the others wait there."""
        return self.parallel or max(1, self.size - 1)

    def adopt(self, size: int) -> None:
        """Another drive changed it, or an older setting left it so."""
        size = min(size, self.most)
        if size != self.size:
            self.size = size
            self._before = None
            self.forget()

    def forget(self) -> None:
        """Begin to measure anew."""
        self._started, self._answers, self._work = None, 0, 0.0

    def note(self, call: Call[Any], model: str, now: float) -> None:
        """Take in what became of a call for `model`. The answers of another model are measured anew."""
        if model != self._model:
            self._model = model
            self.forget()
        if call.verdict is Verdict.BUSY or call.timed_out:
            # Calls that were sent before it shrank say nothing about what it is now.
            if call.started > self._shrunk_at and now > self._shrunk_at + SHRINK_EVERY_S:
                self.size = max(1, self.size // 2)
                self._shrunk_at = now
                self._before = None
                self._rests_until = now + self._rest_s
                self.forget()
        elif call.verdict is Verdict.ANSWERED and call.reply is not None:
            usage = call.reply.usage
            self._answers += 1
            self._work += usage.output_tokens + READING * max(0, usage.input_tokens - usage.cached_tokens)

    def look(self, now: float, *, is_full: bool) -> None:
        """Grow or go back, if a measurement is over. Call it every second."""
        if not is_full:
            self.forget()
            return
        if self._started is None:
            self.forget()
            self._started = now
            return
        if now < self._started + MEASURE_S or self._answers < ANSWERS_PER_CALL * self.size:
            return
        rate = self._work / (now - self._started)
        self.forget()
        if self.size < self.usual:
            self.size += 1
        elif self._before is not None:
            size, before = self._before
            if rate >= before * WORTH:
                self._rest_s = FIRST_REST_S
                self._try_more(rate)
            else:
                self.size, self._before = size, None
                self._rests_until = now + self._rest_s
                self._rest_s = min(MOST_REST_S, self._rest_s * 2)
        elif now >= self._rests_until:
            self._try_more(rate)

    def _try_more(self, rate: float) -> None:
        self._before = (self.size, rate) if self.size < self.most else None
        self.size = min(self.most, self.size + max(1, self.size // 2))


def portion(size: int, drives: list[int], own: int) -> int:
    """Of a window of `size`, what the drive `own` has where all `drives` share it; at least one call each."""
    number, rest = divmod(size, max(1, len(drives)))
    rank = sorted(drives).index(own) if own in drives else 0
    return max(1, number + (rank < rest))
