"""Calls in flight: in which order they were sent, since when the server computes each, and beside which others.

Each line is sent and ends once. If all the others in flight were looked at each time, this would be a tenth of what a
line costs with 64 in flight. So what concerns all of them is told to the newest first, up to one that knows already:
older ones have seen it too.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar

from batches.backends.connection import Connection
from batches.backends.replies import Reply, Verdict
from batches.backends.states import Exchange

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


@dataclass(eq=False)
class Call(Generic[S_co]):
    """One request to the model server, made for its `subject`. `timeout_s` is its deadline, counted from when the
    server begins to compute the call: until then, the call may wait at the server behind others.

    If `ask` is set, it is run in place of the request, and `result` is what `ask` returns: None unless the verdict is
    ANSWERED. A call that `is_light` costs the server no computing: it takes no place of the others and waits for none.
    """

    subject: S_co
    endpoint: str
    body: dict[str, Any]
    timeout_s: float
    ask: Callable[[Exchange], Any] | None = None
    is_light: bool = False
    result: Any = None
    started: float = field(default_factory=time.monotonic)
    running_since: float | None = None
    answered: float | None = None  # when the answer came; a question about it has as long again
    was_shared: bool = False  # the server may have computed others at the same time
    together: int = 1  # how many calls were in flight at once while it was, itself among them, at most
    connection: Connection | None = None  # while a thread of its own asks the server something
    is_cut: bool = False
    timed_out: bool = False
    finished: float = 0.0
    duration_s: float = 0.0  # of the server's work, without the wait at the server
    reply: Reply | None = None
    is_charged: bool = False  # its line is charged with the failure
    most_together: int | None = None  # its line is sent again among so many others at most, itself among them

    @property
    def verdict(self) -> Verdict:
        return self.reply.verdict if self.reply is not None else Verdict.CUT

    @property
    def was_sent(self) -> bool:
        """It was submitted and is over: a line that has its reply without the server has a call that was never sent."""
        return self.finished > 0

    @property
    def is_overdue(self) -> bool:
        since = self.answered or self.running_since
        return since is not None and time.monotonic() > since + self.timeout_s


class InFlight(Generic[S]):
    """The calls that were sent and not fetched yet, in the order in which they were sent.

    `running` is how many of them the server computes at once; a guess, unless `is_known`. The calls behind them wait at
    the server, and their deadlines do not run yet.
    """

    def __init__(self) -> None:
        self.running, self.is_known = 1, False
        # Dicts, as sets that have an order.
        self._all: dict[Call[S], None] = {}
        self._begun: dict[Call[S], None] = {}  # they take the server's time, and their deadlines run
        self._behind: dict[Call[S], None] = {}  # they wait at the server behind these

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Call[S]]:
        return iter(self._all)

    def __contains__(self, call: object) -> bool:
        return call in self._all

    @property
    def computing(self) -> list[Call[S]]:
        """Those that take the server's time, in the order in which they were sent."""
        return [*self._begun, *self._behind]

    def add(self, call: Call[S]) -> None:
        """This call is sent now."""
        self._all[call] = None
        if call.is_light:
            _start_clock(call, time.monotonic())  # it waits for no other
            return
        self._behind[call] = None
        together = len(self._begun) + len(self._behind)
        for each in chain(reversed(self._behind), reversed(self._begun)):
            if each.together >= together:
                break
            each.together = together

    def remove(self, call: Call[S]) -> None:
        """This call is over."""
        for calls in (self._all, self._begun, self._behind):
            calls.pop(call, None)

    def start_clocks(self) -> None:
        """Start the clocks of those that the server begins to compute now."""
        now = time.monotonic()
        while self._behind and len(self._begun) < self.running:
            call = next(iter(self._behind))
            del self._behind[call]
            self._begun[call] = None
            _start_clock(call, now)
        behind = () if self.is_known else self._behind
        if len(self._begun) + len(behind) > 1:
            for call in chain(reversed(behind), reversed(self._begun)):
                if call.was_shared:
                    break
                call.was_shared = True

    def mark_shared(self) -> None:
        """A person's request is at the server beside all of them."""
        for call in self._all:
            call.was_shared = True


def _start_clock(call: Call[S], now: float) -> None:
    # A call that has finished and was not fetched yet was computed beside the others.
    if not call.finished:
        call.running_since = call.running_since or now
