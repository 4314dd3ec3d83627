"""The prompt of a line and its answer, wherever they stand: on the row, in the input file, in a result file.

A result file has its lines in the order of the input, and each line begins with a custom_id, whose number an index
knows. So a line is found by halving the file, in some twenty steps for a million lines.
"""

import json
from dataclasses import dataclass
from typing import IO, Any

from batches.models import Batch, Line, LineState, Response
from common import strict_json
from common.database import DamagedText, readable
from common.errors import SETTLED, line_error
from files_api.models import File

MOST_HEAD = 8192  # bytes of a result line up to the end of its custom_id: each of its 512 characters takes 12 at most
READ_AT_ONCE = 2**16  # what is left of a file is read through, once it is no more than this


@dataclass(frozen=True)
class Found:
    """`value` is the JSON as it stands there; None, with a sentence for a person in `why_not`, if it cannot be had."""

    value: Any = None
    why_not: str = ""


DAMAGED = Found(why_not="The stored answer is damaged.")


def prompt_of(line: Line) -> Found:
    """The body of the request, from the input file."""
    file = File.objects.filter(pk=line.batch.input_file_id).first()
    try:
        if file is None or not file.content:
            raise ValueError
        with file.content.open("rb") as stream:
            stream.seek(line.offset)
            return Found(strict_json.loads(stream.read(line.length))["body"])
    except (ValueError, KeyError, TypeError):
        return Found(why_not="The input file is deleted, so that the prompt is not there any more.")
    except OSError as error:
        return Found(why_not=f"The input file cannot be read now: {error.strerror or type(error).__name__}.")


def answer_of(line: Line) -> Found:
    """The body of the answer, or the error that the error file has; before the end of the batch from the rows, then
    from the result file. Raises DatabaseError while the database is locked or away, and nothing else."""
    try:
        return readable(lambda: _answer_of(line))
    except DamagedText:
        return DAMAGED


def _answer_of(line: Line) -> Found:
    source = line.original or line
    if source.state in (LineState.PENDING, LineState.RUNNING):
        return Found(why_not="There is no answer yet.")
    if response := Response.objects.filter(line=source).values_list("body", flat=True).first():
        return _parsed(response)
    state = LineState(source.state).name.lower()
    if state in SETTLED:
        return Found(SETTLED[state])
    if not line.batch.is_final or source.http_status is None:
        # A line that failed without a reply, or was failed by us.
        return Found(line_error(source.error_code, source.error_message)) if source.error_code else _nothing()
    files = [line.batch.output_file_id, line.batch.error_file_id]
    if source.state != LineState.SUCCEEDED:
        files.reverse()
    # A line that succeeded is in the error file if its stored answer was damaged when the files were written.
    try:
        found = next((each for each in (_in_file(file, line) for file in files) if each is not None), None)
    except OSError as error:
        return Found(why_not=f"The result file cannot be read now: {error.strerror or type(error).__name__}.")
    if found is None:
        return Found(why_not="The result file is deleted, so that the answer is not there any more.")
    response = found.get("response")
    return Found(response.get("body") if isinstance(response, dict) else found.get("error"))


def _parsed(text: str) -> Found:
    try:
        return Found(json.loads(text))
    except ValueError:
        return DAMAGED


def _nothing() -> Found:
    return Found(why_not="There is no answer.")


def _in_file(file_id: str | None, line: Line) -> dict[str, Any] | None:
    """The result line of this line; None if the file does not have it. Raises OSError if the file cannot be read."""
    file = File.objects.filter(pk=file_id).first() if file_id else None
    if file is None or not file.content:
        return None
    try:
        with file.content.open("rb") as stream:
            text = _line_of(stream, file.bytes, line)
            found = json.loads(text) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _line_of(stream: IO[bytes], size: int, line: Line) -> bytes | None:
    """The line of a result file that belongs to this line; None if there is none."""
    # It begins at `low`, where a line begins, or behind it and before `high`.
    low, high = 0, size
    while high - low > READ_AT_ONCE:
        middle = (low + high) // 2
        stream.seek(middle)
        stream.readline()
        start = stream.tell()
        if start < high and _number(line.batch, _custom_id(stream.read(MOST_HEAD))) <= line.number:
            low = start
        else:
            high = middle + 1
    stream.seek(low)
    while stream.tell() < high and (text := stream.readline()):
        if _custom_id(text[:MOST_HEAD]) == line.custom_id:
            return text
    return None


def _custom_id(head: bytes) -> str:
    """From the beginning of a result line. Raises ValueError if it is none."""
    text = head.decode("ascii", "replace")
    at = text.index('"custom_id":') + len('"custom_id":')
    value, _ = json.JSONDecoder().raw_decode(text, at)
    return str(value)


def _number(batch: Batch, custom_id: str) -> int:
    number = batch.lines.filter(custom_id=custom_id).values_list("number", flat=True).first()
    if number is None:
        raise ValueError("no line of this batch")
    return number
