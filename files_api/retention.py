"""Remove bytes that are not needed any more. Every function is safe to run twice, in any process."""

import itertools
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from django.core.files.storage import default_storage
from django.db.migrations.recorder import MigrationRecorder

from common import ids, signs_of_life, waits
from common.disk import RemoteError
from files_api import storage_id
from files_api.models import File, FileHold, UploadPart, UploadPartQuerySet, row_id
from files_api.storage import file_storage

logger = logging.getLogger(__name__)

# How long one sweep goes on, and how long it waits for one answer of a storage that is no disk: other duties wait for
# it.
SWEEP_S = 5.0
# No upload takes a day: an older file was left by a process that was killed.
LEFTOVER_AGE_S = 24 * 3600
IDS = (ids.FILE, ids.PART)
# The number of the next directory to sweep; each process begins at a random one.
_next_directory = itertools.count(random.randrange(10_000))


def release(holder: str) -> None:
    """Drop all holds of `holder`, and remove the bytes of hidden files that no other hold keeps.

    Raises OSError if bytes cannot be removed now: their hold then stays. Safe to run again.
    """
    for file in File.objects.filter(holds__holder=holder):
        if not file.is_visible:
            file.discard(but_for=holder)
        FileHold.objects.filter(file=file, holder=holder).delete()


def remove(parts: UploadPartQuerySet) -> None:
    """Remove upload parts. A part whose bytes cannot be removed now is left to `sweep`."""
    if error := _remove(parts):
        logger.error("the bytes of an upload part cannot be removed yet: %s", error.strerror)


T = TypeVar("T")


def _each(things: Iterable[T], remove: Callable[[T], object]) -> OSError | None:
    """Remove each of them; the last error, if some could not be removed. A storage that is away as a whole is asked
    once, and not for each of them."""
    failed = None
    for thing in things:
        try:
            remove(thing)
        except RemoteError as error:
            return error
        except OSError as error:
            failed = error
    return failed


def _remove(parts: Iterable[UploadPart]) -> OSError | None:
    """Remove upload parts, bytes first: a row that a kill leaves behind is found again."""

    def remove(part: UploadPart) -> None:
        part.content.delete(save=False)
        part.delete()

    return _each(parts, remove)


def _discard(file: File) -> None:
    if file.discard():
        logger.info("%s: bytes removed", file.pk)


def sweep(most: int = 500) -> None:
    """Remove the bytes of up to `most` hidden files, up to `most` parts of uploads that are over, and what killed
    processes left: temporary files, and bytes whose row was never committed. Takes some SWEEP_S; the next sweep does
    the rest.

    Tries everything, then raises the last OSError. Raises WrongStorage before, if the storage is another one.
    """
    storage_id.check()
    ends_at = time.monotonic() + SWEEP_S
    with waits.meanwhile(signs_of_life.alive, most_s=SWEEP_S, alone=True):
        failed = _each(_until(ends_at, File.objects.all().discardable()[:most]), _discard)
        failed = _remove(_until(ends_at, UploadPart.objects.all().discardable()[:most])) or failed
        if isinstance(failed, RemoteError):
            raise failed
        file_storage().drop_leftovers(LEFTOVER_AGE_S)
        _remove_orphans(most, ends_at)
    if failed is not None:
        raise failed


def _until(ends_at: float, things: Iterable[T]) -> Iterable[T]:
    return itertools.takewhile(lambda _: time.monotonic() < ends_at, things)


def _remove_orphans(most: int, ends_at: float) -> None:
    """Remove up to `most` leftovers without a row from one directory, the next one each time: there are thousands.

    A file older than this database stays: it may belong to another database, whose DATA_DIR or bucket this one was
    given.
    """
    storage = file_storage()
    directories = storage.directories()
    if not directories:
        return
    directory = directories[next(_next_directory) % len(directories)]
    database_made_at = MigrationRecorder.Migration.objects.earliest("applied").applied.timestamp()
    newest = time.time() - LEFTOVER_AGE_S
    found = storage.written_at(directory).items()
    # A bucket may have other things in it.
    old = [name for name, at in found if database_made_at < at < newest and row_id(name).startswith(IDS)]
    looked_at = random.sample(old, min(most, len(old)))
    # Bytes are named by the id of their row, so primary keys suffice.
    keys = {row_id(name) for name in looked_at}
    kept = {row.content.name for model in (File, UploadPart) for row in model._default_manager.filter(pk__in=keys)}
    for name in _until(ends_at, set(looked_at) - kept):
        default_storage.delete(name)
        logger.info("%s: bytes without a row removed", name)
