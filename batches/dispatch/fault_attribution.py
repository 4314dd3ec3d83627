"""Whose fault a failure is: the line's own, or that of a model or server that fails everything.

A line is charged with a failure only if the model is known to be in order. The proof is that the model's last reply was
an answer, to a line or to a trial (any model in order answers a trial). A failure takes the proof away, and an answer
brings it back; a failure without the proof is charged to no line. A line that failed is tried again only with the
proof. So a line that breaks a server is charged itself, the lines behind it are charged nothing, and nothing has to be
remembered beyond the rows.

If several calls were in flight when the server went away or hung, any of them may be the cause: none is charged, and
the lines are split. Half as many are in flight together when they are sent again, and no other line beside them; the
half under which the server breaks down again is split further, down to a line alone (company.py).

The failures in SUSPECT wait for a trial before they are stored: they speak against the model or the server unless the
trial goes well. What looks like want of memory is charged to a line only if it was alone, like a breakdown.
"""

from collections import defaultdict
from dataclasses import replace

from batches.backends.in_flight import Call
from batches.backends.replies import Verdict
from batches.models import NO_ROOM, Line

# SUSPICIOUS_LINES different lines that fail in a row call for a trial.
SUSPICIOUS_LINES = 5
# A verdict that speaks against the server, and the line's own verdict that replaces it if a trial goes well.
SUSPECT = {Verdict.MISCONFIGURED: Verdict.REFUSED, Verdict.UNLOADABLE: Verdict.FAILED}

Key = tuple[str, str]  # endpoint and model


def key_of(line: Line) -> Key:
    return line.batch.endpoint, line.model


class FaultAttribution:
    """What one drive knows about whose fault failures are, for each model at each endpoint."""

    def __init__(self) -> None:
        self._health: defaultdict[Key, ModelHealth] = defaultdict(ModelHealth)
        # Failures that wait for a trial. A key with an empty list asks for a trial too.
        self._suspects: dict[Key, list[Call[Line]]] = {}

    @property
    def wanted_trials(self) -> list[Key]:
        """The models that need a trial before another line is sent."""
        return list(self._suspects)

    def needs_trial(self, line: Line) -> bool:
        """The line failed before, and its model is not known to be in order."""
        return line.needs_trial and not self._health[key_of(line)].is_proven

    def note(self, call: Call[Line]) -> bool:
        """Take in what became of a line, and decide whether the line is charged with a failure. True: the call can be
        stored now; False: the call waits for a trial."""
        key = key_of(call.subject)
        health = self._health[key]
        health.note(call)
        if call.verdict in SUSPECT:
            self._suspects.setdefault(key, []).append(call)
            return False
        if health.is_grave:
            self._suspects.setdefault(key, [])
        return True

    def passed(self, key: Key) -> list[Call[Line]]:
        """A trial went well. Returns the failures that waited for it, to be stored: each is its line's own fault."""
        self._health[key].prove()
        settled = self._suspects.pop(key, [])
        for call in settled:
            if call.reply is not None:
                if call.verdict is Verdict.UNLOADABLE and call.was_shared:
                    call.most_together = half(call)
                call.is_charged = call.most_together is None
                code = call.reply.code if call.is_charged else NO_ROOM
                call.reply = replace(call.reply, verdict=SUSPECT[call.verdict], code=code)
        return settled

    def not_passed(self, key: Key) -> list[Call[Line]]:
        """A trial failed or could not be made. Returns the failures that waited for it, to be stored uncharged."""
        self._health.pop(key, None)
        return self._suspects.pop(key, [])

    def release(self) -> list[Call[Line]]:
        """No trial can be made now. Returns all failures that wait for one, to be stored uncharged."""
        return [call for calls in [self._suspects.pop(key) for key in list(self._suspects)] for call in calls]


class ModelHealth:
    """Whether one model is in order at one endpoint."""

    def __init__(self) -> None:
        self.is_proven = False
        self._failing: set[int] = set()

    def note(self, call: Call[Line]) -> None:
        """Take in a reply, and decide whether its line is charged. A reply that need not have come from the model, such
        as a refusal, changes nothing."""
        match call.verdict:
            case Verdict.ANSWERED:
                self.prove()
            case Verdict.FAILED | Verdict.CRASHED:
                call.is_charged = self.is_proven and not is_anyones(call)
                if is_breakdown(call):
                    # Of a model that just answered others, a line that took too long did so by itself.
                    call.most_together = 1 if call.timed_out and self.is_proven else half(call)
                self.is_proven = False
                self._failing.add(call.subject.pk)
            case Verdict.UNCHECKED:
                self.is_proven = False

    def prove(self) -> None:
        self.is_proven = True
        self._failing.clear()

    @property
    def is_grave(self) -> bool:
        """SUSPICIOUS_LINES lines failed, with no answer in between."""
        return len(self._failing) >= SUSPICIOUS_LINES


def is_breakdown(call: Call[Line]) -> bool:
    """The server broke the connection, or did not answer in time."""
    return call.verdict is Verdict.CRASHED or (call.verdict is Verdict.FAILED and call.timed_out)


def is_anyones(call: Call[Line]) -> bool:
    """A breakdown that another call may have caused."""
    return is_breakdown(call) and (call.was_shared or call.running_since is None)


def half(call: Call[Line]) -> int:
    """Half as many lines as were in flight at once, or as might have been: among so many at most, itself among them,
    the line is sent again."""
    return -(-min(call.together, call.subject.most_together or call.together) // 2)
