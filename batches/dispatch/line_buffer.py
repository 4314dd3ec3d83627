"""Lines that one drive has claimed and not sent yet, and the turn under which it claimed them."""

import time
from collections import deque
from collections.abc import Iterator, Sequence

from batches.dispatch import claims
from batches.models import Backend, Lease, Line
from batches.scheduling import turns
from common.database import retrying

MOST_CLAIMED = 64


class LineBuffer:
    """The next lines for `backend`, claimed for `lease` and in the order in which they should be sent."""

    def __init__(self, backend: Backend, lease: Lease) -> None:
        self._backend = backend
        self._lease = lease
        self._turn: turns.Turn | None = None
        self._ready: deque[Line] = deque()
        self._claim_size = 1
        self._model = ""  # of the line that was taken last
        self._model_since = float("-inf")  # lines of no other model were taken since then

    def __len__(self) -> int:
        return len(self._ready)

    def __iter__(self) -> Iterator[Line]:
        return iter(self._ready)

    @property
    def head(self) -> Line | None:
        """The line to be sent next."""
        return self._ready[0] if self._ready else None

    def take(self) -> Line:
        """The line to be sent now."""
        line = self._ready.popleft()
        if line.model != self._model:
            self._model, self._model_since = line.model, time.monotonic()
        return line

    def answered(self, lines: int) -> None:
        """So many answers came in one group: fast answers are claimed in groups as large."""
        self._claim_size = min(MOST_CLAIMED, max(1, lines))

    def refill(self, room: int, in_flight: Sequence[Line]) -> None:
        """Claim more lines once half of them are sent, for a window of `room` calls. `in_flight` are under way."""
        size = max(self._claim_size, room)
        if len(self._ready) * 2 > size:
            return
        if self._turn is None and not self._ready:
            self.choose_turn(in_flight)
        # Lines of another model wait until the last line of this one is sent, in case that more of them come.
        while self._turn is not None and not (self._ready and self._ready[-1].model != self._turn.part.model):
            if self._turn.is_suspicious and (self._ready or in_flight):
                return  # what is claimed beside it would be lost with it
            if lines := retrying(claims.claim, self._lease, self._turn, size):
                self._ready.extend(lines)
                return
            ended, self._turn = self._turn, None
            self.choose_turn(in_flight)
            if self._turn is not None and self._turn.part.pk == ended.part.pk:
                return  # another drive has just taken its lines, or its batch stopped: the next look finds out

    def choose_turn(self, in_flight: Sequence[Line]) -> None:
        """Find out whose turn it is, and hand back what was claimed for another one."""
        at_work = self._ready[-1].model if self._ready else in_flight[-1].model if in_flight else ""
        stayed_s = time.monotonic() - self._model_since
        turn = retrying(turns.next_turn, self._backend, self._turn, at_work=at_work, stayed_s=stayed_s)
        if turn is not None and self._ready and retrying(turns.yields, self._ready[-1].part, turn):
            self.hand_back()
        if turn is not None and self._turn is not None and turn.part.pk != self._turn.part.pk:
            self._claim_size = 1  # the lines of another part may take longer
        self._turn = turn

    def keep_only(self, running: set[str]) -> None:
        """Hand back the lines of all batches but these."""
        self._hand_back([line for line in self._ready if line.batch_id not in running])

    def end_turn(self) -> None:
        """Hand everything back, and ask anew whose turn it is: the lines of this one cannot be sent now."""
        self.hand_back()
        self._turn = None

    def hand_back(self) -> None:
        """Make the lines claimable again, uncharged. Nothing happens if there are none."""
        self._hand_back(list(self._ready))

    def _hand_back(self, lines: list[Line]) -> None:
        if lines:
            retrying(claims.hand_back, self._lease, lines)
            self._ready = deque(line for line in self._ready if line not in lines)
