"""The part of the time that lines have while persons keep them back: BATCH_SHARE of any ten minutes. Pure.

    owed += share while lines wait for persons      owed -= 1 - share while lines run

Once lines are owed enough, their turn comes, and lasts until they are owed nothing. The turn comes early if persons'
requests leave gaps, in which lines disturb persons least: a request that arrives in a gap still goes first. Only if
persons leave no gap, lines run beside their requests.
"""

import math
from collections import deque

WINDOW_S = 600.0
# Lines wait and run once in a cycle: the shorter one is for gaps between persons' requests.
CYCLE_S, CYCLE_BETWEEN_S = 60.0, 30.0
# A step of the history; and the longest time between two looks that counts, since a process may have been frozen.
STEP_S, MOST_BETWEEN_LOOKS_S = 10.0, 5.0


class Share:
    """What one backend's lines are owed. `share` is from 0 (they wait for persons whatever comes) up to, without, 1."""

    def __init__(self, share: float) -> None:
        # So that ten minutes have the share too which begin when the most is owed to persons, and end when the most is
        # owed to lines, one turn each: share_ * WINDOW_S - 2 * turn(share_) = share * WINDOW_S.
        rest_s = WINDOW_S - 2 * CYCLE_S
        share_ = (math.sqrt(rest_s**2 + 8 * CYCLE_S * WINDOW_S * share) - rest_s) / (4 * CYCLE_S)
        self._share = min(0.99, share_)
        self._looked_at: float | None = None
        self._history: deque[_Step] = deque()
        self.owed_s = 0.0  # below 0: owed to persons

    def look(self, now: float, *, runs: bool, waits: bool) -> None:
        """Since the last look, lines ran (sent, or still at the server), or else waited for persons."""
        took = min(now - self._looked_at, MOST_BETWEEN_LOOKS_S) if self._looked_at is not None else 0.0
        self._looked_at = now
        if not self._history or now > self._history[-1].began + STEP_S:
            self._history.append(_Step(now))
        while self._history[0].began < now - WINDOW_S:
            self._history.popleft()
        if runs:
            self._history[-1].ran += took
            # A line that outlasts its turn is paid back to persons, but no more than one turn: it may be very long.
            least_s = -self._turn_owed_s(CYCLE_S) if waits else 0.0
            self.owed_s = max(least_s, self.owed_s - (1 - self._share) * took)
        elif waits:
            self._history[-1].waited += took
            self.owed_s = min(WINDOW_S, self.owed_s + self._share * took)

    def is_due(self, *, between: bool) -> bool:
        """The lines are owed a turn: between persons' requests, or beside them."""
        return self._share > 0 and self.owed_s >= self._turn_owed_s(CYCLE_BETWEEN_S if between else CYCLE_S)

    def _turn_owed_s(self, cycle_s: float) -> float:
        return self._share * (1 - self._share) * cycle_s

    @property
    def had(self) -> float | None:
        """The part of the last ten minutes that the lines had; None if they did not wait for persons."""
        ran, waited = (sum(getattr(step, name) for step in self._history) for name in ("ran", "waited"))
        return ran / (ran + waited) if waited else None


class _Step:
    def __init__(self, began: float) -> None:
        self.began = began
        self.ran = self.waited = 0.0
