"""How many calls may be in flight together once the server has broken down under several of them.

Any of the lines in flight may be to blame, or none: the card had no room for so many, or a person started the server
again. So these lines are split (fault_attribution): half as many are in flight together, no other line beside them,
and only lines under which the server breaks down again are split further. With n lines in flight and a bad one among
them that takes some log2(n) breakdowns, and those that the bad line is charged with once it is alone. All the others
are answered in company.

If the server breaks down again under several lines, and each time no line alone brings it down, so many at once are the
reason. Then fewer are in flight for a while, and for longer each time.
"""

import logging
import time
from collections.abc import Collection

from batches.backends.in_flight import Call
from batches.dispatch.questions import Question
from batches.models import Line

logger = logging.getLogger(__name__)

Subject = Line | Question

# The first breakdown that no line explains may be a person's doing, and changes nothing. The rest after the second one,
# and how much longer it is each time.
FIRST_REST_S, MOST_REST_S = 60.0, 3600.0
LONGER = 4


class Company:
    """The calls of one drive that may be in flight together."""

    def __init__(self) -> None:
        self._unexplained = 0  # breakdowns under several lines since a line alone was to blame
        self._broke_down_at = float("-inf")  # when the last one was noted
        self._most: int | None = None
        self._rests_until = float("-inf")

    def has_place_for(self, subject: Subject, at_work: Collection[Call[Subject]], room: int) -> bool:
        """Whether `subject` may be in flight beside the calls at work, if `room` calls may be. Split lines keep to
        themselves."""
        if len(at_work) >= room:
            return False
        together = {call.subject.most_together for call in at_work}
        together.add(subject.most_together)
        limits = [each for each in together if each is not None]
        if limits and None in together:
            return False
        return len(at_work) < min([self._most_of(room), *limits])

    def _most_of(self, room: int) -> int:
        if self._most is None or time.monotonic() >= self._rests_until:
            return room
        return min(room, self._most)

    def note(self, call: Call[Line]) -> None:
        """Take in a line's call that fault attribution has judged."""
        if call.most_together is None or call.timed_out:
            return
        if not call.was_shared:
            if call.is_charged:
                self._unexplained, self._most = 0, None
            return
        now = time.monotonic()
        # All calls that were sent before the breakdown was noted are of the same one.
        if call.subject.most_together is None and call.started > self._broke_down_at:
            self._unexplained += 1
            self._broke_down_at = now
        if self._unexplained > 1:
            self._shrink(call.most_together, now)

    def _shrink(self, most: int, now: float) -> None:
        rest_s = min(MOST_REST_S, FIRST_REST_S * LONGER ** (self._unexplained - 2))
        is_over = self._most is None or now >= self._rests_until
        if is_over or most < (self._most or most):
            logger.warning("no line is to blame for a breakdown: %s in flight at most for %.0f s", most, rest_s)
            self._most = most
        self._rests_until = now + rest_s
