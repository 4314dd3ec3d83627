"""The result of one line, as it stands or will stand in a result file: while the batch runs and after its end."""

from contextlib import suppress

from batches.models import FINAL, OPEN, Batch, Line
from batches.results import result_line
from common import ids
from files_api.models import File


def result_of(line: Line) -> str | None:
    """The line of the output or the error file for this line of the input: JSON, with its line end.

    None if the line is not finished, or if its result file is deleted. Reads a page of the file at most (ResultPage),
    or the file up to the line if the batch ended before pages were kept. Raises OSError if the file cannot be read.
    """
    text = _from_rows(line)
    # Responses are deleted only after the final move, so a row that was read before it is whole.
    is_over = Batch.objects.filter(pk=line.batch_id, status__in=FINAL).exists()
    return _from_files(line) if is_over else text


def _from_rows(line: Line) -> str | None:
    source = Line.objects.filter(pk=line.original_id or line.pk)
    row = source.values_list("state", "http_status", "response__body", "error_code", "error_message").first()
    if row is None or row[0] in OPEN:
        return None
    with suppress(ValueError):  # a damaged row: the result files will say so
        return result_line(line.batch_id, line.number, line.custom_id, *row, line.original_id)
    return None


def _from_files(line: Line) -> str | None:
    batch = Batch.objects.get(pk=line.batch_id)
    files = ((batch.output_file_id, "output_offset"), (batch.error_file_id, "error_offset"))
    for file_id, offset in files:
        file = File.objects.all().visible().filter(pk=file_id).first()
        if file is None:
            continue
        pages = batch.result_pages.values_list(offset, flat=True)
        start = pages.filter(number__lte=line.number).order_by("-number").first() or 0
        end = pages.filter(number__gt=line.number).order_by("number").first()
        if found := _found(file, line, start, file.bytes if end is None else end):
            return found
    return None


def _found(file: File, line: Line, start: int, end: int) -> str | None:
    """The text for the line between two offsets of a result file."""
    first_words = b'{"id":"%s"' % ids.derived_id(ids.BATCH_REQUEST, line.batch_id, line.number).encode()
    with file.content.open("rb") as stream:
        stream.seek(start)
        while stream.tell() < end and (text := bytes(stream.readline())):
            if text.startswith(first_words):
                return text.decode("ascii")
    return None
