"""Whether the storage of this process is the one in which the files of the database lie.

The storage has an id in an object of its own, and the database has the same id in a row. Hosts with one database may
have a storage each by mistake: a directory of their own, a mount that is missing, another bucket. There a file that has
a row is not found, and what is stored is found by nobody else. Such a process takes no work.
"""

import errno
import logging
import secrets
from datetime import timedelta

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import IntegrityError, connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from common.database import Asked, Column, from_now
from files_api.models import File, Storage, UploadPart

logger = logging.getLogger(__name__)

OBJECT = "storage_id"
ADVICE = "Mount that one at DATA_DIR/files, or set the same bucket; what needs files waits until then."
LONGEST = 64
# Whether files of the database are in a storage without an id is told by these.
LOOKED_AT = 20
# A process that works with the storage says so more often than this.
UNUSED_AFTER = timedelta(minutes=1)
SEEN_EVERY = timedelta(seconds=20)


class WrongStorage(OSError):
    """The storage is not the one of the database. The reason says what is found and what is expected, for a person and
    without a path; it has no full stop, as that of any OSError."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.ENODEV, reason)
        self.reason = reason


def settle() -> None:
    """See that the storage is the one of the database, or make it so: for the start of a process. Safe to run twice,
    and in several processes at once.

    The first process that has the files gives the storage an id: at the first start, or after an update from a version
    without ids. While nothing is stored and no process works with the storage that has the id, any storage may take its
    place. Raises WrongStorage, with what to do, or OSError if the storage cannot be read or written now.
    """
    try:
        _settle()
    except IntegrityError:  # another process was faster
        _settle()


@transaction.atomic
def _settle() -> None:
    row = Storage.objects.select_for_update().first()
    found = read()  # after the lock, or another process may just have written it
    if row is None:
        if reason := _why_not_first(found):
            raise WrongStorage(reason)
        # The row first: another process waits for its key, and then finds both.
        _give_id(Storage.objects.create(mark=found or secrets.token_hex(8)), found)
    elif found is None and _is_unused(row):
        row.mark = secrets.token_hex(8)
        row.save(update_fields=["mark"])
        _give_id(row, found)
    elif reason := compare(found, row.mark):
        raise WrongStorage(reason)


def _why_not_first(found: str | None) -> str:
    """Why the database, which has no storage yet, does not get this one; empty if it does."""
    newest = File.objects.exclude(content="").order_by("-created_at").values_list("content", flat=True)
    names = list(newest[:LOOKED_AT]) or list(UploadPart.objects.values_list("content", flat=True)[:LOOKED_AT])
    if names and not any(map(default_storage.exists, names)):
        return "None of the files of the database is in the storage of this host"
    # SQLite's database lies beside the files: it was removed to begin anew. Another one may be in use elsewhere, and
    # each of two databases would sweep the files of the other.
    if found and not names and connection.vendor != "sqlite":
        return (
            f"The storage of files on this host belongs to another database (its id is {found}), and "
            "this database is new"
        )
    return ""


def take() -> None:
    """Make the storage of this process the one of the database, whatever it lacks: a person says that the files are
    gone for good, or lie here now. Processes with another storage stop their work within seconds."""
    with transaction.atomic():
        row, _ = Storage.objects.select_for_update().get_or_create(pk=Storage.THE_ONE)
        found = read()
        row.mark = found or secrets.token_hex(8)
        row.save(update_fields=["mark"])
        _give_id(row, found)


def _give_id(row: Storage, found: str | None) -> None:
    if found is None:
        default_storage.save(OBJECT, ContentFile(f"{row.mark}\n".encode()))
        logger.info("the storage of files has the id %s now", row.mark)


def _is_unused(row: Storage) -> bool:
    if File.objects.exclude(content="").exists() or UploadPart.objects.exists():
        return False
    return not Storage.objects.filter(pk=row.pk, seen_at__gt=from_now(-UNUSED_AFTER)).exists()


def note_seen() -> None:
    """Note that a process works with the storage of the database. Cheap to call often."""
    if _SEEN_LONG_AGO.is_true():  # else without waiting for whoever writes
        _seen_long_ago().update(seen_at=Now())


def _seen_long_ago() -> QuerySet[Storage]:
    return Storage.objects.exclude(seen_at__gt=from_now(-SEEN_EVERY))


_SEEN_LONG_AGO = Asked(_seen_long_ago)


def expected() -> str | None:
    """The id that the storage has to have; None before any process gave it one."""
    return next(iter(_EXPECTED.of()), None)


_EXPECTED = Column(Storage.objects.all, "mark")


def read() -> str | None:
    """The id that the storage has; None if it has none. Asks no database. Raises OSError if it cannot be read."""
    try:
        with default_storage.open(OBJECT, "rb") as stream:
            return stream.read(LONGEST).decode("ascii", "replace").strip() or None
    except FileNotFoundError:
        return None


def compare(found: str | None, wanted: str | None) -> str:
    """Why the storage with the id `found` is none for the database that wants another; empty if it is the right one."""
    if wanted is None or found == wanted:
        return ""
    has = f"has the id {found}" if found else "has no id"
    return f"The storage of files on this host {has}, and the files of the database lie in the one with the id {wanted}"


def trouble() -> str:
    """Why the storage is not the one of the database, and what to do, for a person; empty if it is the right one, or if
    that cannot be read now: then whoever needs a file gets an error of its own."""
    wanted = expected()
    try:
        return advised(compare(read(), wanted)) if wanted is not None else ""
    except OSError:
        return ""


def advised(reason: str) -> str:
    """The reason that `compare` gave with what to do; empty if it is."""
    return reason and f"{reason}. {ADVICE}"


def check() -> None:
    """Raises WrongStorage if the storage is not the one of the database: what is stored there is found by nobody; and
    OSError if that cannot be read now."""
    wanted = expected()
    if wanted is not None and (reason := compare(read(), wanted)):
        raise WrongStorage(reason)


def at_start(error: WrongStorage) -> str:
    """What to tell the person who starts a process: what is wrong, where, and what to do."""
    return (
        f"{error.reason} (here it is {where()}). Mount the storage of the database there, or set its bucket, and start "
        "again. If its files are gone for good, or lie here now: `python manage.py setup --take-storage`."
    )


def where() -> str:
    """The storage by its name on this machine: a directory, or a bucket."""
    try:
        return default_storage.path("")
    except NotImplementedError:
        return str(getattr(default_storage, "bucket_name", "") or type(default_storage).__name__)
