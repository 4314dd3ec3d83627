"""The one way in for a client's bytes: they are checked, stored, and only then get a row."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice

from django.conf import settings
from django.db import Error, connection, transaction

from common import database, failpoints, strict_json
from common.byte_forms import SAMPLE_BYTES, looks_like
from common.errors import ApiError
from common.jsonl import read_lines
from common.models import Owner
from files_api import storage_id, stored_bytes
from files_api.models import File, UploadPart, row_id
from files_api.storage import MeasuredFile

logger = logging.getLogger(__name__)

BATCH_FILE_LIFETIME = timedelta(days=30)
# Blank lines beyond these are left to validation, which reads in slices.
MOST_BLANK_LINES = 100_000


@contextmanager
def in_place(
    content: MeasuredFile, *, owner: Owner, filename: str, purpose: str, lifetime: timedelta | None
) -> Iterator[File]:
    """The File of what was received, with its bytes in place for good, and without a row: the block stores that, or
    the bytes go again. Its id is the one in the name of the content. `lifetime` None is as with OpenAI: 30 days for a
    batch file.

    Enter it outside of any transaction: a storage may take minutes, and others wait for what a transaction locks.

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
    with unless_stored(file):
        failpoints.reach("after_upload_stored")
        yield file


def store(file: File) -> None:
    """Store the row of a File whose bytes are in place. Raises a 403 if they are more than its owner may store."""
    with transaction.atomic():
        stored_bytes.check(file.owner, file.bytes)
        file.save(force_insert=True)


@contextmanager
def unless_stored(row: File | UploadPart) -> Iterator[None]:
    """Remove the bytes of a row, which are in place, if there is no such row at the end of the block.

    What cannot be asked or removed now is left to `retention.sweep`, as by a process that was killed. So is it if the
    connection to Postgres was lost: it may be committing the row still.
    """
    try:
        yield
    except Exception as error:
        if database.is_away(error) and connection.vendor == "postgresql":
            logger.warning("%s: its bytes are left for the sweep: %s", row.pk, error)
        else:
            _remove_unless_stored(row)
        raise
    _remove_unless_stored(row)


def _remove_unless_stored(row: File | UploadPart) -> None:
    try:
        if not type(row)._default_manager.filter(pk=row.pk).exists():
            row.content.delete(save=False)
    except (Error, OSError) as error:
        logger.warning("%s: its bytes are left for the sweep: %s", row.pk, error)


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
