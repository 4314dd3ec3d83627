"""Whose fault a failure is: the line's own, or that of a backend that fails everything.

A line pays for a failure only if the model is known to be in order: the last thing that it did was to answer, a line or
a trial, which any server in order answers. A failure takes that proof away, so that the next one is nobody's, until an
answer brings it back. A line that failed is tried again on a proof only. So whatever breaks a backend pays itself, the
lines behind it pay nothing, and it takes no memory beyond the rows.

Where several calls were in flight when the server went away or stood still, any of them may have done it: none pays,
and each is tried again by itself.
"""

from batches.backends.base import Verdict
from batches.backends.calls import Call

# So many different lines that fail in a row call for a trial.
SUSPICIOUS_LINES = 5


class Doubt:
    """What one drive knows about one model at one endpoint."""

    def __init__(self) -> None:
        self.is_proven = False
        self._failing: set[int] = set()

    def note(self, call: Call) -> None:
        """Take in a reply, and decide whether its line pays for it. One that need not have come from the model, such
        as a refusal, changes nothing."""
        match call.verdict:
            case Verdict.ANSWERED:
                self.prove()
            case Verdict.FAILED | Verdict.CRASHED:
                call.is_charged = self.is_proven and not is_anyones(call)
                self.is_proven = False
                self._failing.add(call.key.pk)

    def prove(self) -> None:
        self.is_proven = True
        self._failing.clear()

    @property
    def is_grave(self) -> bool:
        """Too many lines failed, with no answer in between."""
        return len(self._failing) >= SUSPICIOUS_LINES


def is_breakdown(call: Call) -> bool:
    """The server broke the connection, or did not answer in time."""
    return call.verdict is Verdict.CRASHED or (call.verdict is Verdict.FAILED and call.timed_out)


def is_anyones(call: Call) -> bool:
    """A breakdown that another call may have caused."""
    return is_breakdown(call) and (call.was_shared or call.running_since is None)
