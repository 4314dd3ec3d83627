"""The requests of claimed lines, read from the input files at the offsets that validation stored."""

import errno
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from batches.lines import jsonl
from batches.models import Line
from common.database import retrying
from files_api.models import File
from files_api.storage import Spans, spans

# What a file that was deleted or damaged since validation can raise. Any OSError is the storage's, and may pass: a file
# that has a row and is not there, or not whole, is a fault of the host and of no line.
UNREADABLE = (ValueError, LookupError, TypeError)


class InputFiles:
    """The bodies of claimed lines, read from the input files at the lines' offsets. MOST_OPEN files stay open."""

    MOST_OPEN = 8

    def __init__(self) -> None:
        self._open: dict[str, Spans] = {}

    def is_at_hand(self, line: Line, others: Iterable[Line]) -> bool:
        """Whether `body` has an answer for this line, or an error, without a wait for the network. If not, it is asked
        for, with the `others` of its batch that will be sent next: one request for each stretch of the file."""
        try:
            found = self._spans(line)
        except (OSError, *UNREADABLE):
            return True
        if found.has(line.offset, line.length):
            return True
        for other in others:
            if other.batch_id == line.batch_id:
                found.has(other.offset, other.length)
        return False

    def body(self, line: Line) -> dict[str, Any]:
        """The body of `line`. Raises one of UNREADABLE if the file is deleted or is not what was validated, and OSError
        if the file cannot be read now, or is not there."""
        content = self._spans(line).read(line.offset, line.length)
        if len(content) < line.length:
            raise FileNotFoundError(errno.ENOENT, "A part of the file is missing")
        return jsonl.parse_body(content)

    def _spans(self, line: Line) -> Spans:
        if line.batch_id not in self._open:
            while len(self._open) >= self.MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            file = retrying(File.objects.all().held, line.batch.input_file_id, line.batch_id)
            if file is None:
                raise LookupError(line.batch.input_file_id)
            self._open[line.batch_id] = spans(file.content)
        return self._open[line.batch_id]

    def reopen(self, line: Line) -> None:
        """Have the next line of this batch open the input file anew."""
        if stream := self._open.pop(line.batch_id, None):
            with suppress(OSError):
                stream.close()

    def close(self) -> None:
        for stream in self._open.values():
            stream.close()
