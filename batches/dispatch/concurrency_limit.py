"""How many calls to keep in flight at one backend: one more than it serves at once, so that it never waits for us.

A loaded Ollama queues calls and never says that it is busy, so tokens per second are the signal. If nobody said how
many calls the backend serves at once, the limit grows while tokens per second grow. The limit shrinks at once when
calls are refused or time out. Pure: the drive that owns the limit stores it on the backend's row, for all drives.
"""

from typing import Any

from batches.backends.calls import Call
from batches.backends.replies import Verdict

# A measurement is over after MEASURE_S, and ANSWERS_PER_CALL answers for each call in flight.
MEASURE_S = 10.0
ANSWERS_PER_CALL = 4
# A larger limit stays if it brings WORTH times the tokens per second.
WORTH = 1.1
FIRST_REST_S, MOST_REST_S = 60.0, 900.0
# Calls that fail together shrink the limit once: it shrinks at most this often.
SHRINK_EVERY_S = 5.0
READING = 0.1  # reading a token of the prompt, against writing one


class ConcurrencyLimit:
    """`size` calls may be in flight. `parallel` is how many calls the backend serves at once, or None if nobody knows:
    then the limit grows up to `most`."""

    def __init__(self, parallel: int | None, *, most: int, size: int = 0, cache_is_by_slot: bool = False) -> None:
        self._most = most
        self._cache_is_by_slot = cache_is_by_slot
        self._know(parallel)
        # A size that was learned counts if nobody tells `parallel`; a size that shrank grows back by itself.
        self.size = min(max(size, 1), self.most) if size and parallel is None else self.usual
        self._shrunk_at = float("-inf")
        self._rest_s = FIRST_REST_S
        self._rests_until = float("-inf")
        self._before: tuple[int, float] | None = None  # the size to compare with, and its rate
        self._started: float | None = None
        self._answers = 0
        self._work = 0.0
        self._model = ""  # of the answers that are measured

    def _know(self, parallel: int | None) -> None:
        self.parallel = parallel
        # One more than are computed, so that the server need not wait for the next. But of several slots each keeps a
        # prompt, and one more would start in whatever slot is free first, which has read another prompt.
        is_one_more = not (self._cache_is_by_slot and parallel is not None and parallel > 1)
        self.usual = (parallel or 1) + is_one_more
        self.most = max(self.usual, self._most) if parallel is None else self.usual

    def know(self, parallel: int | None) -> None:
        """`parallel` is known from now on, or not known any more. Safe to call often."""
        if parallel != self.parallel:
            self._know(parallel)
            self.adopt(self.usual)

    @property
    def running(self) -> int:
        """How many of the calls in flight the backend computes; the others wait at the backend."""
        return self.parallel or max(1, self.size - 1)

    def adopt(self, size: int) -> None:
        """Take over the size that the backend's row has: another drive changed it, or an older setting left it."""
        size = min(size, self.most)
        if size != self.size:
            self.size = size
            self._before = None
            self.forget()

    def forget(self) -> None:
        """Begin to measure anew."""
        self._started, self._answers, self._work = None, 0, 0.0

    def note(self, call: Call[Any], model: str, now: float) -> None:
        """Take in what became of a call for `model`. Answers of another model begin a new measurement."""
        if model != self._model:
            self._model = model
            self.forget()
        if call.verdict is Verdict.BUSY or call.timed_out:
            # Calls that were sent before the limit shrank say nothing about its size now.
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
        """Grow or go back, if a measurement is over. Call every second; `is_full`: all calls allowed are in flight."""
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


def portion(size: int, drives: list[int], own: int, *, least: int = 1) -> int:
    """How many calls the drive `own` may have if all `drives` share a limit of `size`; at least `least`."""
    number, rest = divmod(size, max(1, len(drives)))
    rank = sorted(drives).index(own) if own in drives else 0
    return max(least, number + (rank < rest))
