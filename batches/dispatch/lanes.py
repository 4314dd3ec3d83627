"""Which of the waiting lines each slot of a model server gets, so that lines that begin alike meet in one slot.

llama.cpp, and so Ollama, keeps in each slot the prompt that the slot read last. If lines that begin alike are sent to
several slots, each slot reads their beginning for itself. So there are as many lanes as slots, and each lane has one
call in flight: a call that ends frees the slot that has just read what the next line of its lane begins with. Measured
on a real Ollama with four slots and six prompts: 1,829 tokens were read, 4,020 if the lines were sent in sorted order,
and 6,218 with one call more than slots, which starts in whatever slot becomes free. Only lines that begin as no
other does get that call. A vLLM needs no lanes: all of its calls share what was read, even within one step
(docs/benchmarks.md, vllm). Pure.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

from batches.lines import prompt
from batches.models import Line

# Lines that are looked at before some of them are claimed, for each lane and in all: so far a lane sees other groups.
# To look further costs more than a beginning that is read twice.
LOOK_AHEAD, MOST_AHEAD = 64, 512


def look_ahead(lanes: Sequence["Lane"], size: int) -> int:
    """How many of the waiting lines `choose` is given: as many as the lanes lack, and enough to see other groups."""
    return max(min(LOOK_AHEAD * len(lanes), MOST_AHEAD), sum(max(0, size - len(lane.ready)) for lane in lanes))


class Waiting(NamedTuple):
    """A line that could be claimed, and where it stands in the order of its part."""

    order_key: bytes
    number: int
    pk: int
    group: bytes | int  # equal for lines that share so much of their prompts that they belong into one lane

    @classmethod
    def of(cls, pk: int, order_key: bytes | memoryview, number: int) -> "Waiting":
        key = bytes(order_key)  # Postgres gives memoryviews
        return cls(key, number, pk, prompt.group(key) or number)


class Lane:
    """The lines that one slot gets: those claimed and not sent yet, and the ids of those in flight."""

    def __init__(self) -> None:
        self.ready: deque[Line] = deque()
        self.in_flight: set[int] = set()
        self.last: Waiting | None = None  # of the lines of this lane, the one furthest in the order of its part
        self.group: bytes | int | None = None  # of the line that was sent last

    def add(self, lines: Sequence[Line]) -> None:
        """Lines that were claimed for this lane, in the order in which they are sent."""
        self.ready.extend(lines)
        for line in lines[-1:]:
            self.last = Waiting.of(line.pk, line.order_key, line.number)

    def send_next(self) -> Line:
        """The next line, which is in flight from now on."""
        line = self.ready.popleft()
        self.in_flight.add(line.pk)
        self.group = _group_of(line)
        return line

    def help(self, other: "Lane") -> None:
        """Take over about half of the lines of `other` that are not sent yet, the later ones: whole groups, or half of
        one if there are no two."""
        groups = [other.group, *map(_group_of, other.ready)]
        keeps_least = 0 if other.in_flight else 1  # with nothing in flight it sends its first line itself
        begin = [place for place in range(keeps_least, len(other.ready)) if groups[place + 1] != groups[place]]
        middle = len(other.ready) // 2
        keeps = min(begin, key=lambda place: abs(place - middle), default=middle)
        while len(other.ready) > keeps:
            self.ready.appendleft(other.ready.pop())

    def is_low(self, size: int) -> bool:
        """It is time to claim lines, `size` for each lane that has fewer."""
        return len(self.ready) * 4 <= size


def choose(waiting: Sequence[Waiting], lanes: Sequence[Lane], size: int) -> list[list[Waiting]]:
    """For each lane the lines to claim: as many as it lacks of `size`.

    `waiting` are the first lines that could be claimed, in order: `look_ahead` of them. A lane goes on with
    its group; then it takes the next group that no lane has begun; and if all are begun, it takes the second half of
    the largest rest.
    """
    rests = _rests(waiting, lanes)
    begun = {id(rest.lane): rest for rest in rests if rest.lane is not None}
    fresh = deque(rest for rest in rests if rest.lane is None)
    chosen: list[list[Waiting]] = [[] for _ in lanes]
    low = [(lane, mine) for lane, mine in zip(lanes, chosen, strict=True) if len(lane.ready) < size]
    lacking = {id(lane): size - len(lane.ready) for lane, _ in low}
    # Group by group in turn, so that the first lane does not take what would keep another one at work.
    while low and (fresh or any(rest.lines for rest in begun.values())):
        for lane, mine in low:
            rest = begun.get(id(lane))
            if rest is None or not rest.lines:
                rest = fresh.popleft() if fresh else _largest(begun.values()).second_half()
                begun[id(lane)] = rest
            mine += rest.take(lacking[id(lane)] - len(mine))
        low = [(lane, mine) for lane, mine in low if len(mine) < lacking[id(lane)]]
    return chosen


def begin_alike(waiting: Sequence[Waiting], lanes: Sequence[Lane]) -> set[int]:
    """The ids of the waiting lines that it matters which slot reads: their prompts begin as that of another waiting
    line does, or as that of the last line of a lane."""
    often = Counter(line.group for line in waiting)
    begun = {lane.last.group for lane in lanes if lane.last is not None}
    return {line.pk for line in waiting if often[line.group] > 1 or line.group in begun}


class _Rest:
    """Waiting lines of one group, in order, that one lane comes to next; or no lane yet."""

    def __init__(self, lane: Lane | None, lines: Sequence[Waiting]) -> None:
        self.lane = lane
        self.lines = list(lines)

    def take(self, most: int) -> list[Waiting]:
        taken, self.lines = self.lines[:most], self.lines[most:]
        return taken

    def second_half(self) -> "_Rest":
        """Split; all of it, if it is one line."""
        middle = len(self.lines) // 2
        half, self.lines = self.lines[middle:], self.lines[:middle]
        return _Rest(None, half)


def _largest(rests: Collection[_Rest]) -> _Rest:
    return max(rests, key=lambda rest: len(rest.lines))


def _rests(waiting: Sequence[Waiting], lanes: Sequence[Lane]) -> list[_Rest]:
    at_work: defaultdict[bytes | int, list[tuple[Waiting, Lane]]] = defaultdict(list)
    for lane in lanes:
        if lane.last is not None:
            at_work[lane.last.group].append((lane.last, lane))
    for beside in at_work.values():
        beside.sort(key=lambda each: each[0], reverse=True)
    rests: list[_Rest] = []
    previous: bytes | int | None = None
    for line in waiting:
        group = line.group
        mine = next((lane for position, lane in at_work.get(group, ()) if position < line), None)
        if not rests or group != previous or rests[-1].lane is not mine:
            rests.append(_Rest(mine, ()))
        rests[-1].lines.append(line)
        previous = group
    return rests


def _group_of(line: Line) -> bytes | int:
    return Waiting.of(line.pk, line.order_key, line.number).group
