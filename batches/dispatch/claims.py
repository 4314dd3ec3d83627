"""How lines are claimed for a lease, and how what became of them is stored.

    pending ── claim ──> running ── store ──> succeeded | failed | pending again

The UPDATE that stores a result names the lease that claimed the line. If the UPDATE changes no row, the lease was
declared dead meanwhile and the line is another's: the result is dropped.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from django.db import connection, transaction

from batches import counting, failing, leases, reuse
from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Verdict
from batches.dispatch import outcomes
from batches.dispatch.lanes import Lane, Waiting, begin_alike, choose, look_ahead
from batches.models import Batch, Lease, Line, LineQuerySet, LineState, Part, Response
from batches.scheduling import turns
from common import database, failpoints
from common.database import GIVEN, Column, durable_commit

logger = logging.getLogger(__name__)


def claim(lease: Lease, turn: turns.Turn, most: int) -> list[Line]:
    """Claim up to `most` lines for `lease`, of the part whose turn it is; none if the lease is not alive any more, or
    if the batch stopped meanwhile. A line that may kill its worker is claimed alone, and marked to be sent alone."""
    if turn.is_suspicious:
        most = 1
    with transaction.atomic():
        lines = _claim(lease, turn, _first(turn, most))
    failpoints.reach("after_claim")
    return lines


def claim_for_lanes(
    lease: Lease, turn: turns.Turn, lanes: Sequence[Lane], size: int
) -> tuple[list[list[Line]], set[int]]:
    """Claim up to `size` lines for each lane that has fewer; as `claim` otherwise. The lines of each lane, and the ids
    of those that it matters which slot reads."""
    with transaction.atomic():
        ahead = _waiting(turn).values_list("pk", "order_key", "number")[: look_ahead(lanes, size)]
        waiting = [Waiting.of(*each) for each in ahead]
        alike = begin_alike(waiting, lanes)
        chosen = choose(waiting, lanes, size)
        shares = [[each.pk for each in share] for share in chosen]
        wanted = [pk for share in shares for pk in share]
        free = _unlocked(wanted)
        if wanted and not free:
            # Others that claim at the same moment chose the same lines and were faster: any lines are better than none.
            free = _first(turn, len(wanted))
            left = iter(free)
            shares = [list(islice(left, len(share))) for share in shares]
        claimed = {line.pk: line for line in _claim(lease, turn, free)}
    failpoints.reach("after_claim")
    return [[claimed[pk] for pk in share if pk in claimed] for share in shares], alike & claimed.keys()


def _waiting(turn: turns.Turn) -> LineQuerySet:
    """The lines that could be claimed, in the order in which they are sent."""
    return turn.lines().filter(batch__in=Batch.objects.all().runnable(), part__failure__isnull=True)


def _first(turn: turns.Turn, most: int) -> list[int]:
    """The first of these lines that no other claim has or takes now: they are locked for this one."""
    return _firsts(turn.which, most).of(turn.part.pk)


@lru_cache
def _firsts(which: turns.Which, most: int) -> Column:
    return Column(lambda: _lock(_waiting(turns.Turn(Part(pk=GIVEN), which)))[:most])


def _lock(lines: LineQuerySet) -> LineQuerySet:
    # Postgres skips lines that another claim has locked; on SQLite this transaction has the only write lock.
    return lines.select_for_update(skip_locked=True, of=("self",))


def _unlocked(ids: list[int]) -> list[int]:
    """Those of these lines, in the same order, that no other claim has or takes now: they are locked for this one."""
    if not connection.features.has_select_for_update_skip_locked:
        return ids
    locked = set(_lock(Line.objects.filter(pk__in=ids, state=LineState.PENDING)).values_list("pk", flat=True))
    return [each for each in ids if each in locked]


# One statement where the ORM takes three, of which two have as many values as lines.
CLAIM = "UPDATE batches_line SET state = %s, lease_id = %s WHERE id IN ({}) AND state = %s RETURNING *"


def _claim(lease: Lease, turn: turns.Turn, ids: list[int]) -> list[Line]:
    """Claim these lines in the order given, inside the caller's transaction; those of them that we got."""
    if not ids or not leases.is_alive(lease):
        return []
    # Another claim may have got some of them.
    statement = CLAIM.format(", ".join(["%s"] * len(ids)))
    got = Line.objects.raw(statement, [LineState.RUNNING, lease.pk, *ids, LineState.PENDING])
    claimed = {line.pk: line for line in got}
    lines = [claimed[each] for each in ids if each in claimed]
    if lines:
        turn.claimed(lines[-1])
    for line in lines:
        line.part, line.batch = turn.part, turn.part.batch
        line.most_together = 1 if turn.is_suspicious else line.most_together
    return lines


def hand_back(lease: Lease, lines: list[Line]) -> None:
    """Make lines that were claimed and not answered claimable again, uncharged."""
    if not lines:
        return
    claimed = Line.objects.all().claimed_by(lease)
    claimed.filter(pk__in=[line.pk for line in lines]).update(state=LineState.PENDING, lease=None)


def store(
    lease: Lease,
    calls: list[Call[Line]],
    *,
    busy_s: float = 0.0,
    note: Callable[[Call[Line], LineState], None] = lambda call, state: None,
) -> list[str]:
    """Store what became of the calls, in one transaction. Results of lines that `lease` lost are dropped.

    `busy_s` is how long the backend has been busy: the next try waits as long again. `note` is called for each line
    that was stored, after the commit. A missing endpoint fails the lines that wait for it too; returns the ids of their
    batches, for which the caller wakes the control worker.
    """
    group = _Group(lease, calls, busy_s)
    # Whoever was told of an answer finds it again after a power cut.
    with durable_commit(), counting.storing(lease, group.finished) as places:
        group.write(places)
        lost = _lost(group.late)
    for call, state in group.written:
        note(call, state)
    if lost:
        first = f"{lost[0].batch_id} line {lost[0].number}"
        logger.warning("%d results came too late and were dropped, the first of %s", len(lost), first)
    return sorted({part.batch_id for part in group.missing})


def _lost(lines: list[Line]) -> list[Line]:
    """Those that another process has. Of a batch that was cancelled or overdue, the finalizer has settled the lines:
    nothing is wrong with that."""
    if not lines:
        return []
    running = Batch.objects.all().in_progress().filter(pk__in={line.batch_id for line in lines})
    ids = set(running.values_list("pk", flat=True))
    return [line for line in lines if line.batch_id in ids]


class _Group:
    """A group of answers, and what they change besides the rows of their own lines."""

    def __init__(self, lease: Lease, calls: list[Call[Line]], busy_s: float) -> None:
        self._lease = lease
        self.written: list[tuple[Call[Line], LineState]] = []
        self.late: list[Line] = []  # another process has them: their results are dropped
        self.missing: dict[Part, Reply] = {}  # parts whose endpoint is missing
        self.finished: Counter[str] = Counter()  # lines that get a place, by batch
        self._cut: list[Line] = []
        self._values: list[tuple[Call[Line], Reply, dict[str, Any]]] = []
        self._tallies: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by batch, by counter
        self._repeatable: dict[int, tuple[Line, str]] = {}  # lines that others may repeat, with the counter to raise
        self._answered: list[tuple[Line, str]] = []
        self._responses: list[tuple[int, str]] = []
        now = database.now()
        for call in calls:
            line, reply = call.subject, call.reply
            if reply is None or reply.verdict is Verdict.CUT:
                self._cut.append(line)
                continue
            values = outcomes.of(lease.backend, line, reply, call, busy_s=busy_s, now=now)
            self._values.append((call, reply, values))
            if values["state"] is not LineState.PENDING:
                self.finished[line.batch_id] += 1

    def write(self, places: dict[str, int]) -> None:
        """Write all of it, inside the caller's transaction; `places` are those behind which each batch's begin."""
        for call, _, values in self._values:
            if values["state"] is not LineState.PENDING:
                batch_id = call.subject.batch_id
                places[batch_id] = values["place"] = places[batch_id] + 1
        written = _write(self._lease, [(call.subject, values) for call, _, values in self._values])
        for call, reply, values in self._values:
            line = call.subject
            if line.pk in written:
                self._add(line, reply, values["state"])
                self.written.append((call, values["state"]))
            else:
                self.late.append(line)
        Response.store(self._responses)
        for pk, count in reuse.counts(self._repeatable).items():
            line, counter = self._repeatable[pk]
            self._tallies[line.batch_id].update({counter: count, "repeated_finished": count})
        reuse.remember(self._answered)
        # A line that the finalizer has settled, because its batch stopped, stays as it is.
        hand_back(self._lease, self._cut)
        failpoints.reach("mid_store")
        for batch_id in self.finished:
            counting.count(self._lease, batch_id, self._tallies[batch_id])
        for part, reply in self.missing.items():
            failing.mark([part.pk], reply)

    def _add(self, line: Line, reply: Reply, state: LineState) -> None:
        """Take in a line that was written with this state."""
        if state is LineState.PENDING:
            return
        counter = "completed" if state is LineState.SUCCEEDED else "failed"
        tally = self._tallies[line.batch_id]
        tally[counter] += 1
        if state is LineState.SUCCEEDED:
            tally.update(vars(reply.usage))
            self._answered.append((line, reply.body))
        elif reply.verdict is Verdict.ENDPOINT_MISSING:
            self.missing[line.part] = reply
        if line.digest is not None:
            self._repeatable[line.pk] = line, counter
        self._responses.append((line.pk, reply.body))


ANSWER = (
    *("state", "http_status", "error_code", "error_message"),
    *("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "duration_ms", "place"),
)
# The ORM would compose this SQL anew for each line, which takes longer than the database's own work.
WRITE_ANSWER = (
    "UPDATE batches_line SET state = %s, lease_id = NULL, http_status = %s, error_code = %s, "
    "error_message = %s, input_tokens = %s, cached_tokens = %s, output_tokens = %s, reasoning_tokens = %s, "
    "duration_ms = %s, place = %s, finished_at = %s WHERE id = %s AND lease_id = %s AND state = %s"
)


def _write(lease: Lease, became: list[tuple[Line, dict[str, Any]]]) -> set[int]:
    """Store what became of lines that are still claimed for `lease`; the ids of those that were."""
    answered = [each for each in became if each[1]["state"] is LineState.SUCCEEDED]
    written = _write_answers(lease, answered) if answered else set()
    for line, values in became:
        if values["state"] is not LineState.SUCCEEDED:
            claimed = Line.objects.all().claimed_by(lease).filter(pk=line.pk)
            if claimed.update(lease=None, **values):
                written.add(line.pk)
    return written


def _write_answers(lease: Lease, answered: list[tuple[Line, dict[str, Any]]]) -> set[int]:
    adapted = connection.ops.adapt_datetimefield_value
    rows = [
        (*(values[name] for name in ANSWER), adapted(values["finished_at"]), line.pk, lease.pk, LineState.RUNNING)
        for line, values in answered
    ]
    with connection.cursor() as cursor:
        cursor.executemany(WRITE_ANSWER, rows)
        are_all = cursor.rowcount == len(rows)
    if are_all:
        return {line.pk for line, _ in answered}
    # Another process has some of them. A place is given once, so it tells which rows are as they were written here.
    ids = [line.pk for line, _ in answered]
    places = dict(Line.objects.filter(pk__in=ids).values_list("pk", "place"))
    return {line.pk for line, values in answered if places.get(line.pk) == values["place"]}
