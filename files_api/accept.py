"""The one way in for a client's bytes: they are checked, stored, and only then get a row."""

import os
from datetime import timedelta
from itertools import islice

from django.conf import settings
from django.db import DatabaseError, transaction

from common import database, failpoints, strict_json
from common.byte_forms import SAMPLE_BYTES, looks_like
from common.errors import ApiError
from common.jsonl import read_lines
from common.models import Owner
from files_api import storage_id, stored_bytes
from files_api.models import File, row_id
from files_api.storage import MeasuredFile

BATCH_FILE_LIFETIME = timedelta(days=30)
# Blank lines beyond these are left to validation, which reads in slices.
MOST_BLANK_LINES = 100_000


def accept(content: MeasuredFile, *, owner: Owner, filename: str, purpose: str, lifetime: timedelta | None) -> File:
    """The File of a received upload, stored; its id is the one in the name of the content. Raises ApiError."""
    file = put_in_place(content, owner=owner, filename=filename, purpose=purpose, lifetime=lifetime)
    try:
        with transaction.atomic():
            stored_bytes.check(owner, content.size)
            file.save(force_insert=True)
    except (ApiError, DatabaseError):
        file.content.delete(save=False)
        raise
    return file


def put_in_place(
    content: MeasuredFile, *, owner: Owner, filename: str, purpose: str, lifetime: timedelta | None
) -> File:
    """The File of a received upload, with its bytes in place for good, and without a row yet: the caller stores the
    row, or removes the bytes. `lifetime` None is as with OpenAI: 30 days for a batch file.

    A batch file is JSONL if its first line is JSON, whatever its name; the other lines are read when a batch is created
    from the file. Raises ApiError, and WrongStorage.
    """
    if purpose == "batch":
        _check_first_line(content)
        lifetime = lifetime or BATCH_FILE_LIFETIME
    now = database.now()
    file = File(
        id=row_id(content.stored_as),
        owner=owner,
        filename=filename,
        purpose=purpose,
        bytes=content.size,
        sha256=content.sha256,
        created_at=now,
        expires_at=now + lifetime if lifetime else None,
    )
    failpoints.reach("after_upload_received")
    storage_id.check()
    # The bytes are in place and fsynced before the row that points at them is committed.
    file.content.save("", content, save=False)
    failpoints.reach("after_upload_stored")
    return file


def _check_first_line(content: MeasuredFile) -> None:
    """Refuse a file whose first line that is not blank is not JSON, as far as its head tells."""
    head = content.head
    head_bytes = head.seek(0, os.SEEK_END)
    lines = islice(read_lines(head, max_line_bytes=settings.MAX_LINE_BYTES), MOST_BLANK_LINES)
    first = next((line for line in lines if line.content != b""), None)
    head.seek(first.offset if first is not None else 0)
    begin = head.read(SAMPLE_BYTES)
    head.seek(0)
    if first is None:
        if content.size < MOST_BLANK_LINES:
            raise _bad_format("The file has no request; it must be .jsonl, one JSON object on each line.")
    elif first.content is not None and not _is_json(first.content):
        form = looks_like(begin if first.number == 1 else first.content)
        if form:
            raise _bad_format(f"The file must be JSON lines in UTF-8, and looks like {form}.")
        if first.next_offset == head_bytes < content.size:
            return  # the line goes on behind the head: validation reads all of it
        raise _bad_format(
            f"Line {first.number} is not valid JSON; the file must be .jsonl, one JSON object on each line."
        )


def _bad_format(problem: str) -> ApiError:
    return ApiError(f"Invalid file format for Batch API. {problem}")


def _is_json(content: bytes) -> bool:
    try:
        strict_json.loads(content)
    except ValueError:
        return False
    return True
