"""The forms in which a model server streams an answer, and the stream that a client gets: whole events only."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from django.conf import settings

from batches.backends.relay import Broken, Relay
from common import strict_json
from common.errors import ApiError

EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"
BLANK_LINES = (b"\n\n", b"\r\n\r\n")


@dataclass(frozen=True)
class Form:
    """How the answers of an endpoint are streamed."""

    media_type: str
    ends: tuple[bytes, ...]  # what an event ends with
    # Whether a piece holds the event that ends a whole answer; None if no event does. A stream that ends without it was
    # broken off, which Ollama does not report.
    is_last: Callable[[bytes], bool] | None
    # The event that tells clients of an error after the status was sent.
    error: Callable[[ApiError], bytes]
    is_in_lines: bool = False  # each goes out alone, since clients take what they read at once for one event

    def end_of_events(self, content: bytes) -> int:
        """Where the last whole event ends; 0 if there is none."""
        return max(content.rfind(end) + len(end) if end in content else 0 for end in self.ends)

    def pieces(self, events: bytes) -> list[bytes]:
        """Whole events, as they go out."""
        return events.splitlines(keepends=True) if self.is_in_lines else [events]


def _matches(pattern: bytes) -> Callable[[bytes], bool]:
    """Whether a line of the events is this: the event's own line, not a model's text that contains it."""
    compiled = re.compile(pattern, re.MULTILINE)
    return lambda events: compiled.search(events) is not None


def _is_last_record(line: bytes) -> bool:
    """The record that ends an answer of /api/chat or /api/generate, or tells why there is none."""
    if b'"done":true' not in line and b'"error"' not in line:
        return False  # a record of the answer's text: no need to read it
    try:
        record = strict_json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and (record.get("done") is True or "error" in record)


def _event(error: ApiError) -> bytes:
    return b"data: " + json.dumps(error.envelope).encode() + b"\n\n"


def _named_event(error: ApiError) -> bytes:
    return b"event: error\ndata: " + json.dumps(error.anthropic).encode() + b"\n\n"


def _record(error: ApiError) -> bytes:
    return json.dumps(error.native, separators=(",", ":")).encode() + b"\n"


# OpenAI's: chats and completions end with [DONE], responses with an event of their own.
COMPLETIONS = Form(EVENT_STREAM, BLANK_LINES, _matches(rb"^data: ?\[DONE\]\r?$"), _event)
RESPONSES = replace(COMPLETIONS, is_last=None)
# Anthropic's.
MESSAGES = Form(EVENT_STREAM, BLANK_LINES, _matches(rb"^event: ?(message_stop|error)\r?$"), _named_event)
# Ollama's own: of answers, and of the steps of a pull, a push or a create, where the last word is the server's.
ANSWERS = Form(NDJSON, (b"\n",), _is_last_record, _record, is_in_lines=True)
STEPS = replace(ANSWERS, is_last=None)


class EventStream:
    """The events of a stream, whole ones only. Closing it releases what is `held`, whether or not it was begun.

    `failed` makes the error to tell of a break.
    """

    def __init__(self, relay: Relay, form: Form, held: ExitStack, failed: Callable[[Broken], ApiError]) -> None:
        self.relay = relay
        self.form = form
        self.close = held.close
        self._failed = failed

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._events()
        except Broken as error:
            # The status is sent already. For an event like this the official clients raise an error.
            yield self.form.error(self._failed(error))
        except ApiError:
            return  # the client is gone

    def _events(self) -> Iterator[bytes]:
        is_last = self.form.is_last
        is_done = is_last is None
        for piece in self._whole_pieces():
            is_done = is_done or (is_last is not None and is_last(piece))
            yield piece
        if not is_done:
            raise Broken("The model server ended the stream before the answer was whole.")

    def _whole_pieces(self) -> Iterator[bytes]:
        rest = b""
        for read in self.relay:
            rest += read
            # A client cannot read an event that is not whole.
            if end := self.form.end_of_events(rest):
                yield from self.form.pieces(rest[:end])
                rest = rest[end:]
            elif len(rest) > settings.MAX_REPLY_BYTES:
                raise Broken(f"An event is larger than {settings.MAX_REPLY_BYTES} bytes (MAX_REPLY_BYTES).")
        if rest:
            yield rest
