"""How many calls to keep in flight at one backend: one more than it serves at once, so that it never waits for us.

    slots that were set, told or counted      that number and one more
    the server tells how busy it is (vLLM)    FIRST_TOLD; more while it computes all calls, fewer while most wait
    nothing is known                          more while tokens a second grow

The limit shrinks at once when calls are refused or time out. Pure: the drive that owns the limit stores it on the
backend's row, for all drives.
"""

from typing import Any

from batches.backends.in_flight import Call
from batches.backends.replies import Verdict
from batches.backends.states import Occupancy

# A measurement is over after MEASURE_S, and ANSWERS_PER_CALL answers for each call in flight.
MEASURE_S = 10.0
ANSWERS_PER_CALL = 4
# A larger limit stays if it brings WORTH times the tokens per second.
WORTH = 1.1
FIRST_REST_S, MOST_REST_S = 60.0, 900.0
# Calls that fail together shrink the limit once: it shrinks at most this often.
SHRINK_EVERY_S = 5.0
# Of a server that tells how busy it is: enough for a small card, few enough not to be much work lost in a crash.
FIRST_TOLD = 64
# Waiting calls are the server's choice for its next step: with fewer than so many in flight, a step may go unfilled.
LEAST_TOLD = 16
ALL_RUN = 0.9  # of the calls in flight; the others are on their way to the server or back
# A server that reads many prompts has calls waiting for a moment. Most calls have to wait so many times in a row.
CROWDED_LOOKS = 3
READING = 0.1  # reading a token of the prompt, against writing one


class ConcurrencyLimit:
    """`size` calls may be in flight. `parallel` is how many calls the backend serves at once, or None if nobody knows:
    then the limit grows up to `most`, unless the cache is by slot: slots are counted, not found by trying."""

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
        self._told: Occupancy | None = None
        self._crowded: list[int] = []  # how many calls ran in the last looks, while more of them waited

    def _know(self, parallel: int | None) -> None:
        self.parallel = parallel
        # One more than are computed, so that the server need not wait for the next.
        self.usual = (parallel or 1) + 1
        self.most = max(self.usual, self._most) if parallel is None else self.usual

    def know(self, parallel: int | None) -> None:
        """`parallel` is known from now on, or not known any more. Safe to call often."""
        if parallel != self.parallel:
            self._know(parallel)
            self.adopt(self.usual)

    @property
    def running(self) -> int:
        """How many of the calls in flight the backend computes; the others wait at the backend."""
        if self.parallel is None and self._told is not None:
            return max(1, self.size - self._told.waiting)
        return self.parallel or max(1, self.size - 1)

    @property
    def is_told(self) -> bool:
        """The server has told how busy it is."""
        return self._told is not None

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

    def note_occupancy(self, told: Occupancy | None, now: float) -> None:
        """Take in how busy the server says that it is; None: it does not say. Call every few seconds while calls are in
        flight. Does nothing while `parallel` is known."""
        before, self._told = self._told, told if self.parallel is None else None
        if told is None or self.parallel is not None:
            return
        if before is None:
            self.size = max(self.size, min(FIRST_TOLD, self.most))
        elif told.waiting > told.running:
            self._crowded.append(told.running)
            if len(self._crowded) >= CROWDED_LOOKS:
                self.size = min(self.size, max(LEAST_TOLD, 2 * max(self._crowded)))
                self._crowded.clear()
        else:
            self._crowded.clear()
            if not told.waiting and told.running >= ALL_RUN * self.size and now >= self._rests_until:
                # More calls than the cache has room for are thrown out of it and computed again.
                room = max(self.size, int(max(told.holds, told.running / told.used if told.used else self.most)))
                self.size = min(self.most, room, self.size + max(1, self.size // 2))

    def look(self, now: float, *, is_full: bool) -> None:
        """Grow or go back, if a measurement is over. Call every second; `is_full`: all calls allowed are in flight."""
        if self.is_told or not is_full:
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
        elif self._cache_is_by_slot:
            return
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
