"""The one way in for a client's bytes: they are checked, stored, and only then get a row."""

import json
from datetime import timedelta

from django.conf import settings
from django.db import DatabaseError
from django.utils import timezone

from common import failpoints
from common.errors import ApiError
from files_api.models import File
from files_api.storage import MeasuredFile

BATCH_FILE_LIFETIME = timedelta(days=30)


def check_filename(filename: str, purpose: str) -> None:
    """Refuse a batch file with another extension than .jsonl. None is fine: the SDKs name raw bytes `upload`."""
    stem, dot, extension = filename.rpartition(".")
    if purpose == "batch" and dot and stem and extension.lower() != "jsonl":
        raise ApiError("Invalid file format for Batch API. Must be .jsonl")


def accept(content: MeasuredFile, *, filename: str, purpose: str, lifetime: timedelta | None) -> File:
    """The File of a received upload, stored. `lifetime` None is as with OpenAI: 30 days for a batch file.

    The first line of a batch file has to be JSON; the other lines are read when a batch is created from the file.
    Raises ApiError.
    """
    check_filename(filename, purpose)
    if purpose == "batch":
        _check_first_line(content)
        lifetime = lifetime or BATCH_FILE_LIFETIME
    now = timezone.now()
    file = File(
        filename=filename,
        purpose=purpose,
        bytes=content.size,
        sha256=content.sha256,
        created_at=now,
        expires_at=now + lifetime if lifetime else None,
    )
    failpoints.reach("after_upload_received")
    # The bytes are in place and fsynced before the row that points at them is committed.
    file.content.save("", content, save=False)
    failpoints.reach("after_upload_stored")
    try:
        file.save(force_insert=True)
    except DatabaseError:
        file.content.delete(save=False)
        raise
    return file


def _check_first_line(content: MeasuredFile) -> None:
    content.seek(0)
    first = content.readline(settings.MAX_LINE_BYTES + 1)
    content.seek(0)
    if len(first) > settings.MAX_LINE_BYTES:
        return  # validation names the over-long line
    try:
        json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ApiError(
            "Invalid file format for Batch API. The first line is not valid JSON; the file must be .jsonl, one JSON "
            "object on each line."
        ) from None
