"""Remove bytes that are not needed any more. Every function is safe to run twice, in any process."""

import itertools
import logging
import random
import time
from contextlib import suppress
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.db.migrations.recorder import MigrationRecorder

from files_api import storage_id
from files_api.models import File, FileHold, UploadPart, UploadPartQuerySet

logger = logging.getLogger(__name__)

# No upload takes a day: an older file was left by a process that was killed.
LEFTOVER_AGE_S = 24 * 3600
# The number of the next directory to sweep; each process begins at a random one.
_next_directory = itertools.count(random.randrange(10_000))


def release(holder: str) -> None:
    """Drop all holds of `holder`, and remove the bytes of hidden files that no other hold keeps.

    Raises OSError if bytes cannot be removed now: their hold then stays. Safe to run again.
    """
    for file in File.objects.filter(holds__holder=holder):
        with transaction.atomic():
            FileHold.objects.filter(file=file, holder=holder).delete()
            if not file.is_visible:
                file.discard()


def remove(parts: UploadPartQuerySet) -> None:
    """Remove upload parts. A part whose bytes cannot be removed now is left to `sweep`."""
    if error := _remove(parts):
        logger.error("the bytes of an upload part cannot be removed yet: %s", error.strerror)


def _remove(parts: UploadPartQuerySet) -> OSError | None:
    """Remove upload parts, bytes first: a row that a kill leaves behind is found again. The last error, if parts could
    not be removed."""
    failed = None
    for part in parts:
        try:
            part.content.delete(save=False)
            part.delete()
        except OSError as error:
            failed = error
    return failed


def _discard_hidden(most: int) -> OSError | None:
    failed = None
    for file in File.objects.all().discardable()[:most]:
        try:
            if file.discard():
                logger.info("%s: bytes removed", file.pk)
        except OSError as error:
            failed = error
    return failed


def sweep(most: int = 500) -> None:
    """Remove the bytes of up to `most` hidden files, up to `most` parts of uploads that are over, and what killed
    processes left: temporary files, and bytes whose row was never committed.

    Tries everything, then raises the last OSError. Raises WrongStorage before, if the storage is another one.
    """
    storage_id.check()
    failed = _discard_hidden(most)
    failed = _remove(UploadPart.objects.all().discardable()[:most]) or failed
    settings.UPLOAD_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in settings.UPLOAD_DIR.iterdir():
        # The file is gone if its upload just finished, or if another sweep was faster.
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - LEFTOVER_AGE_S:
                path.unlink()
    _remove_orphans(most)
    if failed is not None:
        raise failed


def _remove_orphans(most: int) -> None:
    """Remove up to `most` leftovers without a row from one directory, the next one each time: there are thousands.

    A file older than this database stays: it may belong to another database, whose DATA_DIR this one was given.
    """
    directories = sorted(path for path in settings.FILES_DIR.iterdir() if path.is_dir() and path != settings.UPLOAD_DIR)
    if not directories:
        return
    directory = directories[next(_next_directory) % len(directories)]
    database_made_at = MigrationRecorder.Migration.objects.earliest("applied").applied.timestamp()
    old: dict[str, Path] = {}
    with suppress(FileNotFoundError):  # another process removed it meanwhile
        for path in directory.iterdir():
            if database_made_at < path.stat().st_mtime < time.time() - LEFTOVER_AGE_S:
                old[f"{directory.name}/{path.name}"] = path
    looked_at = random.sample(list(old), min(most, len(old)))
    # Bytes are named by the id of their row, so primary keys suffice.
    keys = [old[name].name.partition(".")[0] for name in looked_at]
    kept = {row.content.name for model in (File, UploadPart) for row in model._default_manager.filter(pk__in=keys)}
    for name in set(looked_at) - kept:
        old[name].unlink(missing_ok=True)
        logger.info("%s: bytes without a row removed", name)
