"""Lines that one drive has claimed and not sent yet, and the turn under which it claimed them."""

import time
from collections import deque
from collections.abc import Iterator, Sequence

from batches.dispatch import claims
from batches.dispatch.lanes import Lane
from batches.models import Backend, Lease, Line
from batches.scheduling import turns
from common.database import retrying

# A claim is for as many lines as are answered in so long, up to MOST_CLAIMED, or MOST_FOR_LANE for each of several
# lanes; with half of that, a line costs a quarter more CPU where answers come fast. Other drives have no part in what
# one has claimed: at the end of a batch they would wait for as long as that one takes for its lines.
CLAIM_FOR_S = 2.0
MOST_GROWTH = 4
MOST_CLAIMED, MOST_FOR_LANE = 64, 16


class LineBuffer:
    """The next lines for `backend`, claimed for `lease`, in lanes. Each lane keeps the order in which its lines are
    sent. Of several lanes, each has one call in flight; one lane has a second one while no line in flight has anything
    to lose in another slot."""

    def __init__(self, backend: Backend, lease: Lease) -> None:
        self._backend = backend
        self._lease = lease
        self._turn: turns.Turn | None = None
        self._found_none = False  # nothing could be claimed, and nothing that we know of has changed since
        self._lanes = [Lane()]
        self._foremost: Lane | None = None  # whose line the head was
        self._lane_of: dict[int, Lane] = {}  # of the lines in flight
        self._alike: set[int] = set()  # of the lines claimed or in flight: it matters which slot reads them
        self._lanes_of: int | None = None  # the part whose groups the lanes have begun
        self._newest: Line | None = None  # the line that was claimed last
        self._answered: deque[tuple[float, int]] = deque()  # when lines of this turn's part were answered, and how many
        self._lately = 0  # how many that are
        self._began = float("inf")  # when the first line of this turn's part was sent
        self._model = ""  # of the line that was taken last
        self._model_since = float("-inf")  # since then, only lines of this model and those loaded with it were taken

    def __len__(self) -> int:
        return sum(len(lane.ready) for lane in self._lanes)

    def __iter__(self) -> Iterator[Line]:
        return (line for lane in self._lanes for line in lane.ready)

    @property
    def head(self) -> Line | None:
        """The line to be sent next."""
        self._foremost = lane = self._next_lane()
        return lane.ready[0] if lane is not None else None

    def take(self) -> Line:
        """The line to be sent now: `head`, which there must be. Call `done` once its call is over."""
        lane = self._foremost
        if lane is None or not lane.ready or lane.in_flight:  # nobody asked for the head, or something changed since
            lane = self._next_lane()
        assert lane is not None
        self._foremost = None
        line = lane.send_next()
        self._lane_of[line.pk] = lane
        self._began = min(self._began, time.monotonic())
        if not self._are_together(line.served_model, self._model):
            self._model_since = time.monotonic()
        self._model = line.served_model
        return line

    def done(self, line: Line) -> None:
        """The call for a line that was taken is over: its lane sends the next one."""
        self._alike.discard(line.pk)
        if (lane := self._lane_of.pop(line.pk, None)) is not None:
            lane.in_flight.discard(line.pk)

    def _next_lane(self) -> Lane | None:
        if len(self._lanes) == 1:
            return self._lanes[0] if self._lanes[0].ready else None
        free = None
        if len(self._lane_of) < len(self._lanes):
            free = next((lane for lane in self._lanes if lane.ready and not lane.in_flight), None)
        return free or self._lane_with_second()

    def _lane_with_second(self) -> Lane | None:
        """The lane that sends a line before a slot is free, so that no slot waits for us; None if that line would start
        in a slot that has just read what another line begins with."""
        if len(self._lane_of) != len(self._lanes) or not self._alike.isdisjoint(self._lane_of):
            return None
        longest = max(self._lanes, key=lambda lane: len(lane.ready))
        return longest if longest.ready and longest.ready[0].pk not in self._alike else None

    def answered(self, lines: int) -> None:
        """`lines` answers came: claim more lines at once the faster answers come."""
        self._answered.append((time.monotonic(), lines))
        self._lately += lines
        self.look_again()

    def look_again(self) -> None:
        """A call is over, or an answer is stored: there may be lines to claim where there were none."""
        self._found_none = False

    def use_lanes(self, number: int) -> None:
        """Send lines in so many lanes from now on. Safe to call often."""
        number = max(1, number)
        if len(self._lanes) == 1 and number > 1:
            self.hand_back()  # lines that are claimed for one lane are of one group, as a rule
            self._lanes_of = None
        while len(self._lanes) < number:
            self._lanes.append(Lane())
        while len(self._lanes) > number:
            gone = self._lanes.pop()
            self._foremost = None
            self._lanes[0].ready.extend(gone.ready)
            gone.ready.clear()
            self._lanes[0].in_flight |= gone.in_flight
            self._lane_of |= dict.fromkeys(gone.in_flight, self._lanes[0])

    def _size(self, room: int) -> int:
        """How many lines each lane claims at once."""
        now = time.monotonic()
        while self._answered and self._answered[0][0] < now - CLAIM_FOR_S:
            self._lately -= self._answered.popleft()[1]
        most = max(MOST_CLAIMED, MOST_FOR_LANE * len(self._lanes))
        # In the first moments, what would be answered if it went on like this; a few fast answers do not say that.
        times = min(MOST_GROWTH, max(1.0, CLAIM_FOR_S / max(0.001, now - self._began)))
        return max(1, max(room, min(most, int(times * self._lately))) // len(self._lanes))

    def is_low(self, room: int) -> bool:
        """Most of the lines of a claim for a room of `room` calls are sent: `refill` would claim more."""
        size = self._size(room)
        return any(lane.is_low(size) for lane in self._lanes)

    def refill(self, room: int, in_flight: Sequence[Line]) -> None:
        """Claim more lines for a room of `room` calls. Call if `is_low`. `in_flight` are not answered yet. Once there
        was none to claim, asks the database again after `look_again`, or after `choose_turn` found a turn."""
        if not self._found_none:
            self._refill(room, in_flight)
        for lane in self._lanes:
            longest = max(self._lanes, key=lambda each: len(each.ready))
            # A lane that has one line and nothing in flight sends that line itself.
            if not lane.ready and not lane.in_flight and (longest.in_flight or len(longest.ready) > 1):
                lane.help(longest)

    def _refill(self, room: int, in_flight: Sequence[Line]) -> None:
        if self._turn is None and not len(self):
            self.choose_turn(in_flight)
        # Lines of another model wait until the last line of this model is sent, in case more lines of this model come.
        while self._turn is not None and (
            len(self) == 0 or self._are_together(self._last.served_model, self._turn.part.served_model)
        ):
            if self._turn.is_suspicious and (len(self) or in_flight):
                return  # lines claimed beside one that may kill its worker would be lost with it
            if len(self) and (self._turn.which is turns.Which.SPLIT) != self._last.is_split:
                return  # they are not in flight together, and a lane that is free would send the later ones first
            if self._claim(self._turn, self._size(room)):
                return
            ended, self._turn = self._turn, None
            self.choose_turn(in_flight)
            if self._turn is not None and self._turn.is_like(ended):
                self._found_none = True
                return  # another drive has just claimed its lines, or its batch stopped: the next look tells

    def _claim(self, turn: turns.Turn, size: int) -> bool:
        """Claim lines for the lanes that are low; whether there were any."""
        if len(self._lanes) == 1 or turn.is_suspicious:
            shares = [retrying(claims.claim, self._lease, turn, size)]
        else:
            if self._lanes_of != turn.part.pk:
                for lane in self._lanes:
                    lane.last = None
                self._lanes_of = turn.part.pk
            shares, alike = retrying(claims.claim_for_lanes, self._lease, turn, self._lanes, size)
            self._alike |= alike
        for lane, share in zip(self._lanes, shares, strict=False):
            lane.add(share)
        lines = [line for share in shares for line in share]
        self._newest = lines[-1] if lines else self._newest
        return bool(lines)

    @property
    def _last(self) -> Line:
        """A line of the buffer, the one claimed last if it was not sent yet."""
        lines = list(self)
        return next((line for line in lines if line is self._newest), lines[-1])

    def choose_turn(self, in_flight: Sequence[Line]) -> None:
        """Find out whose turn it is, and hand back the lines that have to wait for that turn."""
        at_work = self._last.served_model if len(self) else in_flight[-1].served_model if in_flight else ""
        turn = retrying(turns.next_turn, self._backend, self._turn, at_work=at_work, stayed_s=self._stayed_s(at_work))
        if turn is not None and len(self) and retrying(turns.yields, self._last.part, turn):
            self.hand_back()
        if turn is not None and self._turn is not None and turn.part.pk != self._turn.part.pk:
            self._answered.clear()  # the lines of another part may take longer
            self._lately, self._began = 0, float("inf")
        self._turn = turn
        self._found_none = turn is None

    def _stayed_s(self, at_work: str) -> float:
        """How long lines of the model at work alone have been sent. No time, if this drive has sent none of its lines:
        the model is just being loaded, and must not be unloaded before it answered one."""
        model = at_work or self._backend.loaded_model
        is_new = bool(model and self._model) and not self._are_together(model, self._model)
        return 0.0 if is_new else time.monotonic() - self._model_since

    def _are_together(self, model: str, other: str) -> bool:
        """Both are loaded at the same time."""
        return model == other or self._backend.base_of(model) == self._backend.base_of(other)

    def keep_only(self, running: set[str]) -> None:
        """Hand back the lines of all batches but the `running` ones."""
        self._hand_back([line for line in self if line.batch_id not in running])

    def end_turn(self) -> None:
        """Hand all lines back and end the turn, whose lines cannot be sent now. `refill` finds out the next turn."""
        self.hand_back()
        self._turn = None
        self._found_none = False

    def hand_back(self) -> None:
        """Make all lines claimable again, uncharged. Does nothing if there are none."""
        self._hand_back(list(self))

    def _hand_back(self, lines: list[Line]) -> None:
        if lines:
            retrying(claims.hand_back, self._lease, lines)
            self._found_none = False  # these can be claimed again
            gone = {line.pk for line in lines}
            self._alike -= gone
            for lane in self._lanes:
                lane.ready = deque(line for line in lane.ready if line.pk not in gone)
