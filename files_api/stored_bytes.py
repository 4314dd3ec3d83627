"""How much an owner stores, and may store: files that still have their bytes, and parts of uploads."""

from django.db.models import Sum

from common import errors
from common.models import Owner
from files_api.models import File, UploadPart


def of(owner: Owner) -> int:
    files = File.objects.filter(owner=owner).exclude(content="").aggregate(bytes=Sum("bytes"))["bytes"]
    parts = UploadPart.objects.filter(upload__owner=owner).aggregate(bytes=Sum("bytes"))["bytes"]
    return (files or 0) + (parts or 0)


def check(owner: Owner, more: int) -> None:
    """Raise a 403 if the owner may not store so many bytes more. Call it in the transaction that stores their row: two
    at once are counted one after the other. Result files count, and are never refused; nor is what adds no bytes."""
    if more and owner.limit("stored_bytes") is not None:
        owner.lock()
        look_ahead(owner, more)


def look_ahead(owner: Owner, more: int) -> None:
    """Raise a 403 if so many bytes more would not fit as it looks now, before they are received. Takes no lock, so
    `check` has to follow."""
    most = owner.limit("stored_bytes")
    if most is not None and (stored := of(owner)) + more > most:
        raise errors.used_up(
            f"'{owner.name}' stores {stored} bytes, and may store {most} (OWNER_MAX_STORED_BYTES, or the owner's page "
            f"in the admin): {more} more do not fit. Delete files that are not needed any more.",
            status=403,
        )
