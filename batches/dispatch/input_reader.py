"""The requests of claimed lines, read from the input files at the offsets that validation stored."""

import errno
from contextlib import suppress
from typing import Any

from batches.lines import jsonl
from batches.models import Line
from files_api.models import File

# What a file that was deleted or damaged since validation can raise. Any OSError is the storage's, and may pass: a file
# that has a row and is not there, or not whole, is a fault of the host and of no line.
UNREADABLE = (ValueError, LookupError, TypeError)


class InputFiles:
    """The bodies of claimed lines, read from the input files at the lines' offsets. MOST_OPEN files stay open."""

    MOST_OPEN = 8

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}

    def body(self, line: Line) -> dict[str, Any]:
        """The body of `line`. Raises one of UNREADABLE if the file is deleted or is not what was validated, and OSError
        if the file cannot be read now, or is not there."""
        if line.batch_id not in self._open:
            while len(self._open) >= self.MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            file = File.objects.all().held(line.batch.input_file_id, line.batch_id)
            if file is None:
                raise LookupError(line.batch.input_file_id)
            self._open[line.batch_id] = file.content.open("rb")
        stream = self._open[line.batch_id]
        stream.seek(line.offset)
        content = stream.read(line.length)
        if len(content) < line.length:
            raise FileNotFoundError(errno.ENOENT, "A part of the file is missing")
        return jsonl.parse_body(content)

    def reopen(self, line: Line) -> None:
        """Have the next line of this batch open the input file anew."""
        if stream := self._open.pop(line.batch_id, None):
            with suppress(OSError):
                stream.close()

    def close(self) -> None:
        for stream in self._open.values():
            stream.close()
