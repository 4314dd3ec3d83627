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
    """The next lines for `backend`, claimed for `lease`, in the order in which they are sent."""

    def __init__(self, backend: Backend, lease: Lease) -> None:
        self._backend = backend
        self._lease = lease
        self._turn: turns.Turn | None = None
        self._ready: deque[Line] = deque()
        self._claim_size = 1
        self._model = ""  # of the line that was taken last
        self._model_since = float("-inf")  # since then, only lines of this model were taken

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
        """`lines` answers came in one group: while answers come fast, claim lines for two such groups at once."""
        self._claim_size = min(MOST_CLAIMED, 2 * lines) if lines > 1 else 1

    def is_low(self, room: int) -> bool:
        """Half of the lines of a claim for a room of `room` calls are sent: `refill` would claim more."""
        return len(self._ready) * 2 <= max(self._claim_size, room)

    def refill(self, room: int, in_flight: Sequence[Line]) -> None:
        """Claim more lines for a room of `room` calls, if the buffer is low. `in_flight` are not answered yet."""
        if not self.is_low(room):
            return
        size = max(self._claim_size, room)
        if self._turn is None and not self._ready:
            self.choose_turn(in_flight)
        # Lines of another model wait until the last line of this model is sent, in case more lines of this model come.
        while self._turn is not None and not (self._ready and self._ready[-1].model != self._turn.part.model):
            if self._turn.is_suspicious and (self._ready or in_flight):
                return  # lines claimed beside one that may kill its worker would be lost with it
            if lines := retrying(claims.claim, self._lease, self._turn, size):
                self._ready.extend(lines)
                return
            ended, self._turn = self._turn, None
            self.choose_turn(in_flight)
            if self._turn is not None and self._turn.part.pk == ended.part.pk:
                return  # another drive has just claimed its lines, or its batch stopped: the next look tells

    def choose_turn(self, in_flight: Sequence[Line]) -> None:
        """Find out whose turn it is, and hand back the lines that have to wait for that turn."""
        at_work = self._ready[-1].model if self._ready else in_flight[-1].model if in_flight else ""
        turn = retrying(turns.next_turn, self._backend, self._turn, at_work=at_work, stayed_s=self._stayed_s(at_work))
        if turn is not None and self._ready and retrying(turns.yields, self._ready[-1].part, turn):
            self.hand_back()
        if turn is not None and self._turn is not None and turn.part.pk != self._turn.part.pk:
            self._claim_size = 1  # the lines of another part may take longer
        self._turn = turn

    def _stayed_s(self, at_work: str) -> float:
        """How long lines of the model at work alone have been sent. No time, if this drive has sent none of its lines:
        the model is just being loaded, and must not be unloaded before it answered one."""
        model = at_work or self._backend.loaded_model
        is_new = bool(model and self._model and model != self._model)
        return 0.0 if is_new else time.monotonic() - self._model_since

    def keep_only(self, running: set[str]) -> None:
        """Hand back the lines of all batches but the `running` ones."""
        self._hand_back([line for line in self._ready if line.batch_id not in running])

    def end_turn(self) -> None:
        """Hand all lines back and end the turn, whose lines cannot be sent now. `refill` finds out the next turn."""
        self.hand_back()
        self._turn = None

    def hand_back(self) -> None:
        """Make all lines claimable again, uncharged. Does nothing if there are none."""
        self._hand_back(list(self._ready))

    def _hand_back(self, lines: list[Line]) -> None:
        if lines:
            retrying(claims.hand_back, self._lease, lines)
            self._ready = deque(line for line in self._ready if line not in lines)
