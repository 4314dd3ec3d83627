"""A file of JSON lines, read line by line in bounded memory, whatever its bytes are. Pure."""

import re
from collections.abc import Iterator
from typing import IO, NamedTuple

BOM = b"\xef\xbb\xbf"
# What stands before a line's text and is none of it: white space, and the BOM of a file that was appended to another.
# Ctrl-Z is the end of a text to `copy a+b` of Windows, which writes it behind the last line.
_BEFORE = re.compile(rb"(?:[\s\x1a]|\xef\xbb\xbf)*")
_BEHIND = b"\r\n\x1a"


class RawLine(NamedTuple):
    """A line as it stands in the file. `content` begins at `offset`, without BOM and line end. It is None if the line
    is longer than allowed, white space included, and empty for a line of white space, which is no request."""

    number: int
    offset: int
    content: bytes | None
    next_offset: int


def read_lines(file: IO[bytes], *, offset: int = 0, number: int = 0, max_line_bytes: int) -> Iterator[RawLine]:
    """The lines of `file` from `offset` on; `number` lines come before `offset`.

    A line longer than `max_line_bytes` is skipped, and not read into memory.
    """
    file.seek(offset)
    most = max_line_bytes + len(BOM) + len(b"\r\n")
    readline = file.readline  # looked up once: Django's File finds its methods anew each time
    while chunk := readline(most):
        number += 1
        whole, start, offset = offset, offset, offset + len(chunk)
        content = chunk.rstrip(_BEHIND)
        if content[:1] != b"{":
            before = _end_of_white_space(content)
            start, content = start + before, content[before:]
        # A full chunk without b"\n" goes on in the next one, whatever its last bytes are: they may be carriage returns.
        too_long = len(content) > max_line_bytes or (len(chunk) == most and not chunk.endswith(b"\n"))
        while too_long and not chunk.endswith(b"\n") and (chunk := readline(2**16)):
            offset += len(chunk)
        yield RawLine(number, whole, None, offset) if too_long else RawLine(number, start, content, offset)


def _end_of_white_space(content: bytes) -> int:
    found = _BEFORE.match(content)
    return found.end() if found is not None else 0
