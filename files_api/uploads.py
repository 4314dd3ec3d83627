"""An upload: its parts arrive in any order, several at once; completing gives the order and makes one File."""

import hashlib

from django.db import transaction

from common import database, errors
from common.errors import ApiError
from files_api import retention, storage_id, stored_bytes
from files_api.accept import in_place, unless_stored
from files_api.models import File, Upload, UploadPart, row_id, stored_name
from files_api.storage import MeasuredFile, missing_bytes, temporary_file

MOST_PART_BYTES = 64 * 2**20
OVER = ("completed", "cancelled", "expired")


def add_part(upload: Upload, content: MeasuredFile) -> UploadPart:
    """Store an upload part. The same bytes sent again are another part.

    Raises ApiError if the upload is over, and WrongStorage.
    """
    _refuse(upload, *OVER)
    storage_id.check()
    part = UploadPart(id=row_id(content.stored_as), upload=upload, bytes=content.size)
    part.content.save("", content, save=False)
    with unless_stored(part), transaction.atomic():
        # Completing or cancelling removes the parts that it finds: one stored later would be left over.
        _refuse(_locked(upload), *OVER)
        stored_bytes.check(upload.owner, part.bytes)
        part.save(force_insert=True)
    return part


def complete(upload: Upload, part_ids: list[str], md5: str | None) -> Upload:
    """The upload with its File, which is made of these parts in this order.

    Raises ApiError, and leaves the upload pending, if the parts are not as announced. Safe to run twice and at once:
    an upload that was completed with the same parts stays as it is.
    """
    if _is_joined_of(upload, part_ids):
        return upload
    _refuse(upload, *OVER)
    try:
        upload = _join(upload, part_ids, md5)
    except (ApiError, FileNotFoundError):
        # Another request may have completed or cancelled the upload meanwhile, and removed the parts.
        upload.refresh_from_db()
        if _is_joined_of(upload, part_ids):
            return upload
        _refuse(upload, *OVER)
        raise
    retention.remove(upload.parts.all())
    return upload


def cancel(upload: Upload) -> Upload:
    """The upload, cancelled, without its parts. Safe to run twice. Raises ApiError if it is completed or expired."""
    with transaction.atomic():
        upload = _locked(upload)
        if upload.cancelled_at is None:
            _refuse(upload, *OVER)
            upload.cancelled_at = database.now()
            upload.save(update_fields=["cancelled_at"])
    retention.remove(upload.parts.all())
    return upload


def _locked(upload: Upload) -> Upload:
    return Upload.objects.select_for_update().get(pk=upload.pk)


def _is_joined_of(upload: Upload, part_ids: list[str]) -> bool:
    return upload.file_id is not None and upload.joined_part_ids == part_ids


def _refuse(upload: Upload, *statuses: str) -> None:
    if upload.status in statuses:
        raise ApiError(f"The upload '{upload.pk}' is {upload.status}: it cannot be changed any more.")


def _join(upload: Upload, part_ids: list[str], md5: str | None) -> Upload:
    parts = _in_order(upload, part_ids)
    if missing_bytes(upload.bytes):
        raise errors.no_room()
    digest = hashlib.md5(usedforsecurity=False)
    with temporary_file(stored_name(File(), "")) as content:
        for part in parts:
            with part.content.open("rb") as stream:
                for chunk in stream.chunks():
                    content.write(chunk)
                    digest.update(chunk)
        if md5 is not None and md5.lower() != digest.hexdigest():
            raise ApiError(
                f"Invalid 'md5': expected '{digest.hexdigest()}', that of the parts in this order, but got '{md5}'.",
                param="md5",
                code="invalid_value",
            )
        content.sync()
        return _complete(upload, part_ids, content)


def _complete(upload: Upload, part_ids: list[str], content: MeasuredFile) -> Upload:
    placed = in_place(
        content,
        owner=upload.owner,
        filename=upload.filename,
        purpose=upload.purpose,
        lifetime=upload.file_lifetime,
    )
    with placed as file, transaction.atomic():
        upload = _locked(upload)
        if not _is_joined_of(upload, part_ids):
            # Not if it expired: the client asked in time, and joining gigabytes takes a while.
            _refuse(upload, "completed", "cancelled")
            file.save(force_insert=True)  # the owner stores no more: the parts have the bytes, and go
            upload.file, upload.joined_part_ids = file, part_ids
            upload.save(update_fields=["file", "joined_part_ids"])
    return upload


def _in_order(upload: Upload, part_ids: list[str]) -> list[UploadPart]:
    parts = {part.pk: part for part in upload.parts.filter(pk__in=part_ids)}
    for number, part_id in enumerate(part_ids):
        if part_id not in parts:
            raise ApiError(
                f"The upload '{upload.pk}' has no part '{part_id}'.", param=f"part_ids[{number}]", code="invalid_value"
            )
    if len(parts) < len(part_ids):
        raise ApiError("Invalid 'part_ids': it names a part twice.", param="part_ids", code="invalid_value")
    total = sum(part.bytes for part in parts.values())
    if total != upload.bytes:
        raise ApiError(
            f"The upload was created for {upload.bytes} bytes, but these parts have {total} bytes.",
            param="part_ids",
            code="invalid_value",
        )
    return [parts[part_id] for part_id in part_ids]
