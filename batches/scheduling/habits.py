"""How soon persons come back: the longer a person usually stays away, the less it is worth to keep lines back. Pure."""

import threading
from collections import OrderedDict, deque

MOST_PERSONS = 1000
REMEMBERED = 8  # gaps of each person
LEAST_S = 1.0
WIDER = 1.5  # a person is waited for so much longer than it usually takes until the next request


class Habits:
    """What is known of each person, by any name that tells persons apart. For several threads.

    A gap is the time from the end of the person's last request to the beginning of the next one. The persons who asked
    least recently are forgotten.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._persons: OrderedDict[str, _Person] = OrderedDict()

    def came(self, who: str, now: float) -> None:
        """A request of this person begins."""
        with self._guard:
            person = self._persons.setdefault(who, _Person())
            self._persons.move_to_end(who)
            while len(self._persons) > MOST_PERSONS:
                self._persons.popitem(last=False)
            if person.left_at is not None:
                person.gaps.append(max(0.0, now - person.left_at))
                person.left_at = None

    def left(self, who: str, now: float) -> None:
        """A request of this person, which the server answered, is over."""
        with self._guard:
            if person := self._persons.get(who):
                person.left_at = now

    def hold_s(self, who: str, most_s: float) -> float:
        """For how many seconds to keep lines back after a request of this person, `most_s` at most: so long if the
        person is new, hardly at all if the person usually stays away for longer."""
        with self._guard:
            person = self._persons.get(who)
            gaps = list(person.gaps) if person is not None else []
        if not gaps:
            return most_s
        soon = sorted(gap for gap in gaps if gap <= most_s)
        if len(soon) * 2 < len(gaps):
            return min(LEAST_S, most_s)
        return min(most_s, max(LEAST_S, WIDER * soon[len(soon) * 3 // 4]))


class _Person:
    def __init__(self) -> None:
        self.gaps: deque[float] = deque(maxlen=REMEMBERED)
        self.left_at: float | None = None
