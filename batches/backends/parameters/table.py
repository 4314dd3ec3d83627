"""The language of the tables of members: what a model server reads, and what becomes of everything else. Pure.

A table is data. Each member of a request has an entry, and a member without one is unknown. An entry gives the value to
send (DROP: none), or notes a finding: what the server would ignore, under its full name. Nothing that the caller passed
in is changed: what differs is copied, and the rest is shared with the original.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from batches.backends.parameters.forbidden import forbidden
from batches.backends.parameters.names import printable, shortened

JSON = dict[str, Any]

DROP: Any = object()
# Members of a request that only say how the answer is carried. A line's answer comes whole.
STREAMING = ("stream", "stream_options")
# References in small schemas can ask for more than any memory holds.
MOST_ADDED = 1_000_000


class Weight(IntEnum):
    """What a finding means for a line; see Translation."""

    TOLD = 1  # a hint that the server does not take; the question is the same all the same
    REFUSED = 2  # the answer would be to another question
    FORBIDDEN = 3  # sent by nobody: the server would fetch it, or hand the prompt on to others


class Finding(NamedTuple):
    """Something that the server would ignore or misread. `param` is its full name, such as `messages[0].name`,
    printable and short (names.printable)."""

    param: str
    weight: Weight
    code: str
    message: str


class Translation(NamedTuple):
    """The body to send, and what of it the server will not heed. What is ignored is in the body all the same."""

    body: JSON
    findings: Sequence[Finding] = ()

    def refusal(self, *, least: Weight = Weight.REFUSED) -> Finding | None:
        """The finding for which the body is not sent, the weightiest first; None if it may be sent."""
        return max((each for each in self.findings if each.weight >= least), key=lambda each: each.weight, default=None)


class Note:
    """A finding whose name is not complete yet: each level that it passes puts its own name before it."""

    __slots__ = ("hint", "path", "shown", "weight")

    def __init__(self, hint: str, *, path: str = "", shown: str = "", weight: Weight = Weight.REFUSED) -> None:
        self.hint = hint
        self.path = path
        self.shown = shown  # the value, if the member is read with other values
        self.weight = weight

    def within(self, name: str) -> None:
        name = shortened(name)
        self.path = shortened(name + self.path if not self.path or self.path[0] == "[" else f"{name}.{self.path}")


class Notes(list[Note]):
    """The notes on one request. `room`: how much may still be added to it where references are followed, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.room = MOST_ADDED


def shown(value: Any) -> str:
    """The beginning of a value, for a message to the person who sent it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


class Entry:
    """What becomes of one member. This one is read as it is."""

    is_read = True  # null is a value too
    takes_text = False  # a text is read as it is: said here to spare a call for each text of each line

    def __init__(self, says: str = "") -> None:
        self.says = says  # for the page of all members

    def check(self, value: Any, notes: Notes) -> Any:
        """The value to send, or DROP. Appends to `notes` what the server would ignore."""
        return value


READ = Entry()


def read(*names: str) -> "dict[str, Entry]":
    """Members that are read as they are."""
    return dict.fromkeys(names, READ)


class Dropped(Entry):
    """Not read, and left out: with these values (with any, if none is named) no answer can differ. Else refused."""

    is_read = False

    def __init__(self, *values: Any, hint: str = "", weight: Weight = Weight.REFUSED) -> None:
        super().__init__()
        self.values = values
        self.hint = hint
        self.weight = weight

    def check(self, value: Any, notes: Notes) -> Any:
        # True and False are numbers to Python alone.
        if not self.values or any(
            value == each and isinstance(value, bool) is isinstance(each, bool) for each in self.values
        ):
            return DROP
        notes.append(Note(self.hint, weight=self.weight))
        return value


class Unread(Entry):
    """Not read, whatever its value: refused with what to do instead."""

    is_read = False

    def __init__(self, hint: str = "", *, weight: Weight = Weight.REFUSED) -> None:
        super().__init__()
        self.hint = hint
        self.weight = weight

    def check(self, value: Any, notes: Notes) -> Any:
        notes.append(Note(self.hint, weight=self.weight))
        return value


class Values(Entry):
    """Read with these values, and with those that are `renamed` to one of them."""

    def __init__(
        self, *values: Any, hint: str, renamed: Mapping[str, str] | None = None, any_case: bool = False
    ) -> None:
        super().__init__()
        self.values = values
        self.hint = hint
        self.renamed = renamed or {}
        self.any_case = any_case

    def check(self, value: Any, notes: Notes) -> Any:
        if value in self.values:
            return value
        if isinstance(value, str):
            plain = value.lower() if self.any_case else value
            if plain in self.renamed:
                return self.renamed[plain]
            if plain in self.values:
                return value
        notes.append(Note(self.hint, shown=shown(value)))
        return value


class Like(Entry):
    """Read if `fits` says so; made to fit by `first`."""

    def __init__(
        self, fits: Callable[[Any], bool], *, hint: str, first: Callable[[Any], Any] | None = None, says: str = ""
    ) -> None:
        super().__init__(says)
        self.fits = fits
        self.hint = hint
        self.first = first

    def check(self, value: Any, notes: Notes) -> Any:
        if self.first is not None:
            value = self.first(value)
        if not self.fits(value):
            notes.append(Note(self.hint, shown=shown(value)))
        return value


class Each(Entry):
    """A list, each item of which has this entry. Anything else is left for the server to refuse.

    `then` is applied to the whole checked list.
    """

    takes_text = True

    def __init__(self, entry: Entry, *, then: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.entry = entry
        self.then = then

    def check(self, value: Any, notes: Notes) -> Any:
        if type(value) is not list:
            return value
        checked, check = value, self.entry.check
        for index, each in enumerate(value):
            before = len(notes)
            new = check(each, notes)
            if len(notes) != before:
                for note in notes[before:]:
                    note.within(f"[{index}]")
            if new is not each:
                checked = list(value) if checked is value else checked
                checked[index] = new
        return self.then(checked) if self.then is not None else checked


# Changes a copy of the object that has the member, in place; gives notes on what it cannot translate, and leaves that.
Move = Callable[[JSON, str], Iterable[Note] | None]


class Moved(Entry):
    """Not read under this name: `move` puts its meaning where the server reads it, or notes why it cannot."""

    is_read = False

    def __init__(self, move: Move, says: str) -> None:
        super().__init__(says)
        self.move = move


class Object(Entry):
    """An object with these members; others are `unknown`. Anything else is left for the server to refuse."""

    def __init__(self, members: Mapping[str, Entry], *, unknown: Entry | None = None) -> None:
        super().__init__()
        self.members = dict(members)
        # What is empty asks for nothing, like null.
        self.unknown = unknown or Dropped([], {}, "")
        # In the order of the table, for one may make what another moves on.
        self._moves = [(name, entry) for name, entry in self.members.items() if isinstance(entry, Moved)]
        self._moving = frozenset(name for name, _ in self._moves)

    def check(self, value: Any, notes: Notes) -> Any:
        if type(value) is not dict:
            return value
        checked = value if self._moving.isdisjoint(value) else self._moved(value, notes)
        members, unknown, given = self.members, self.unknown, checked
        for name, inner in given.items():
            entry = members.get(name, unknown)
            if entry is READ or (entry.takes_text and type(inner) is str):
                continue
            if inner is None:
                if entry.is_read:
                    continue
                new = DROP
            else:
                before = len(notes)
                new = entry.check(inner, notes)
                if len(notes) != before:
                    for note in notes[before:]:
                        note.within(name)
            if new is not inner:
                checked = dict(given) if checked is given else checked
                if new is DROP:
                    del checked[name]
                else:
                    checked[name] = new
        return checked

    def _moved(self, value: JSON, notes: Notes) -> JSON:
        moved = dict(value)
        for name, entry in self._moves:
            if name in moved:
                if moved[name] is None:
                    del moved[name]
                else:
                    notes.extend(entry.move(moved, name) or ())
        return moved


class Kinds(Entry):
    """An object whose other members depend on the value of one: a content part, a tool, an item of an input. A value
    that is not among `kinds` is refused."""

    def __init__(self, by: str, kinds: Mapping[str | None, Entry], *, hint: str) -> None:
        super().__init__()
        self.by = by
        self.kinds = dict(kinds)  # None: where the member is missing
        self.hint = hint

    def check(self, value: Any, notes: Notes) -> Any:
        if type(value) is not dict:
            return value
        kind = value.get(self.by)
        entry = self.kinds.get(kind) if kind is None or isinstance(kind, str) else None
        if entry is not None:
            return entry.check(value, notes)
        if kind is not None:
            notes.append(Note(self.hint, path=self.by, shown=shown(kind)))
        return value


class Table:
    """What becomes of the members of a request to one endpoint of one kind of server. `source` says who knows."""

    def __init__(
        self,
        title: str,
        endpoint: str,
        request: Object,
        *,
        source: str,
        whole: Callable[[JSON], Note | None] | None = None,
    ) -> None:
        self.title = title
        self.endpoint = endpoint
        self.request = request
        self.source = source
        self._whole = whole

    def translate(self, body: JSON, *, stream: bool = False) -> Translation:
        """The body to send for `body`, and what of it the server will not heed. Without its streaming members unless
        `stream`. Raises nothing, whatever JSON a body holds."""
        if not stream and ("stream" in body or "stream_options" in body):
            body = {name: value for name, value in body.items() if name not in STREAMING}
        notes = Notes()
        try:
            sent: JSON = self.request.check(body, notes)
            if self._whole is not None and (note := self._whole(sent)) is not None:
                notes.append(note)
        except RecursionError:  # nested nearly too deep to be read at all
            words = "This request is nested too deep."
            return Translation(body, [Finding("", Weight.FORBIDDEN, "invalid_request", words)])
        findings = [self._finding(note) for note in notes]
        if (found := forbidden(sent)) is not None:
            param, words = found
            findings.insert(0, Finding(printable(param), Weight.FORBIDDEN, "unsupported_parameter", words))
        return Translation(sent, findings)

    def _finding(self, note: Note) -> Finding:
        hint, param = note.hint or "Leave it out.", printable(note.path)
        if note.shown:
            words = f"{self.title} does not know {note.shown} as '{param}' in {self.endpoint}. {hint}"
        else:
            words = f"{self.title} ignores '{param}' in {self.endpoint}. {hint}"
        return Finding(param, note.weight, "unsupported_parameter", words)
