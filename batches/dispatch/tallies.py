"""What one drive counts for `/metrics` and the log: how long lines took, which were sent again, which failed and why.

Counted in memory, where a line costs a microsecond, and added to the backend's row every few seconds. A drive that is
killed loses the counts of these seconds; the counts of a batch itself are stored with its answers, and lose nothing.
"""

import logging
import time
from bisect import bisect_left
from collections import Counter, defaultdict

from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Verdict, reason_of
from batches.dispatch.questions import Purpose, Question
from batches.models import Backend, Figures, Lease, Line, LineState
from batches.models.figures import BOUNDS, NO_LABELS, labels
from common.database import retrying

logger = logging.getLogger(__name__)

FLUSH_EVERY_S = 5.0
TELL_EVERY_S = 300.0
LEAST_LOAD_S = 0.1  # a model that is loaded faster was loaded already, and has been given our keep-alive
MOST_TOLD = 5  # reasons in one line of the log


def source_of(backend: Backend) -> str:
    return f"backend {backend.pk}"


class _Histogram:
    def __init__(self, name: str) -> None:
        self.bounds = BOUNDS[name]
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def note(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def sums(self, model: str) -> dict[str, float]:
        bounds = [*map(str, self.bounds), "+Inf"]
        return {labels(model, bound): count for bound, count in zip(bounds, self.counts, strict=True) if count}


class Tallies:
    """For one drive of `backend`, under `lease`."""

    def __init__(self, backend: Backend, lease: Lease) -> None:
        self._source = source_of(backend)
        self._lease = lease
        self._flushed_at = self._told_at = time.monotonic()
        self._in_flight = 0
        self._told: Counter[str] = Counter()  # why lines failed, since the log was told
        self._forget()

    def _forget(self) -> None:
        self._is_empty = True
        self._seconds: dict[str, _Histogram] = {}
        self._tokens: dict[str, _Histogram] = {}
        self._others: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))

    def note(self, call: Call[Line], state: LineState) -> None:
        """A line was stored with this state."""
        self._is_empty = False
        reply = call.reply or Reply(Verdict.CUT)
        if state is LineState.PENDING:
            self._others["retries"][reply.verdict.value] += 1
            return
        if call.was_sent:
            self._note_work(call, reply, state)
        if state is not LineState.SUCCEEDED:
            code = reason_of(reply)["error_code"] or "unknown"
            self._others["failures"][labels(code)] += 1
            self._told[code] += 1

    def _note_work(self, call: Call[Line], reply: Reply, state: LineState) -> None:
        """What the server did for a line: a line that was answered or refused without it is no work of a server."""
        model = call.subject.model
        if model not in self._seconds:
            self._seconds[model], self._tokens[model] = map(_Histogram, BOUNDS)
        self._seconds[model].note(call.duration_s)
        if state is LineState.SUCCEEDED:
            self._tokens[model].note(reply.usage.output_tokens)

    def note_answer(self, call: Call[Question]) -> None:
        """A question was answered: a load and a swap count."""
        question = call.subject
        if question.purpose is Purpose.UNLOAD and call.verdict is not Verdict.CUT:
            self._is_empty = False
            self._others["model_swaps"][NO_LABELS] += 1
        elif question.purpose is Purpose.LOAD and call.verdict is Verdict.ANSWERED and call.duration_s > LEAST_LOAD_S:
            self._is_empty = False
            self._others["model_loads"][labels(question.model)] += 1
            self._others["model_load_seconds"][labels(question.model)] += call.duration_s
            logger.info("loaded %s in %.1f s", question.served_model, call.duration_s)

    def look(self, in_flight: int) -> None:
        """Add what was counted to the backend's row, and tell the log, if it is time. `in_flight` calls are."""
        now = time.monotonic()
        if now >= self._flushed_at + FLUSH_EVERY_S:
            self._flushed_at = now
            self.flush(in_flight)
        if self._told and now >= self._told_at + TELL_EVERY_S:
            self._tell()

    def close(self) -> None:
        """The drive is over."""
        self.flush(0)
        self._tell()

    def flush(self, in_flight: int) -> None:
        if in_flight != self._in_flight:
            retrying(Lease.objects.filter(pk=self._lease.pk).update, in_flight=in_flight)
            self._in_flight = in_flight
        if not self._is_empty:
            retrying(Figures.add, self._source, self._sums())
            self._forget()

    def _sums(self) -> dict[str, dict[str, float]]:
        sums: dict[str, dict[str, float]] = {name: dict(counts) for name, counts in self._others.items()}
        for name, histograms in zip(BOUNDS, (self._seconds, self._tokens), strict=True):
            for model, histogram in histograms.items():
                # Figures keeps the names of the first models of each counter. A sum without a bucket would take a name
                # that the buckets then do not have.
                if not any(histogram.counts):
                    continue
                sums.setdefault(name, {}).update(histogram.sums(model))
                sums.setdefault(f"{name}_sum", {})[labels(model)] = histogram.sum
        return sums

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        if self._told:
            reasons = ", ".join(f"{count} × {code}" for code, count in self._told.most_common(MOST_TOLD))
            more = len(self._told) - MOST_TOLD
            logger.warning(
                "%d lines failed: %s%s", self._told.total(), reasons, f" and {more} more" if more > 0 else ""
            )
            self._told.clear()
