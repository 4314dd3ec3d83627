"""Removing bytes that nobody can reach or needs any more. Every function is safe to run twice, in any process."""

import itertools
import logging
import random
import time
from contextlib import suppress
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.db.migrations.recorder import MigrationRecorder

from files_api.models import File, FileHold, UploadPart, UploadPartQuerySet

logger = logging.getLogger(__name__)

# No upload takes a day: what is older was left by a process that was killed.
LEFTOVER_AGE_S = 24 * 3600
# Whose turn it is among the directories; a process begins anywhere.
_turns = itertools.count(random.randrange(10_000))


def release(holder: str) -> None:
    """Drop all holds of `holder`, and the bytes of the files that were only waiting for that.

    Raises OSError if bytes cannot be removed now: they are held still. Safe to run again.
    """
    for file in File.objects.filter(holds__holder=holder):
        with transaction.atomic():
            FileHold.objects.filter(file=file, holder=holder).delete()
            if not file.is_visible:
                file.discard()


def remove(parts: UploadPartQuerySet) -> None:
    """Remove parts. One whose bytes cannot be removed now is left to `sweep`."""
    if error := _remove(parts):
        logger.error("the bytes of a part cannot be removed yet: %s", error.strerror)


def _remove(parts: UploadPartQuerySet) -> OSError | None:
    """Remove parts, bytes first: a row that is left behind by a kill is found again. The last error of those that
    could not be removed."""
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


def sweep(most: int = 100) -> None:
    """Remove the bytes of up to `most` hidden files, up to `most` parts of uploads that are over, and what killed
    processes left: temporary files, and bytes whose row was never committed.

    Raises an OSError of what could not be removed, once everything was tried.
    """
    failed = _discard_hidden(most)
    failed = _remove(UploadPart.objects.all().discardable()[:most]) or failed
    settings.UPLOAD_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in settings.UPLOAD_DIR.iterdir():
        # Gone already: its upload just finished, or another sweep was faster.
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - LEFTOVER_AGE_S:
                path.unlink()
    _remove_orphans(most)
    if failed is not None:
        raise failed


def _remove_orphans(most: int) -> None:
    """Remove up to `most` leftovers without a row from one directory, the next one each time: there are thousands.

    What is older than this database stays: it may be another database's, whose DATA_DIR this one was given.
    """
    directories = sorted(path for path in settings.FILES_DIR.iterdir() if path.is_dir() and path != settings.UPLOAD_DIR)
    if not directories:
        return
    directory = directories[next(_turns) % len(directories)]
    database_made_at = MigrationRecorder.Migration.objects.earliest("applied").applied.timestamp()
    old: dict[str, Path] = {}
    with suppress(FileNotFoundError):  # removed by somebody else meanwhile
        for path in directory.iterdir():
            if database_made_at < path.stat().st_mtime < time.time() - LEFTOVER_AGE_S:
                old[f"{directory.name}/{path.name}"] = path
    looked_at = random.sample(list(old), min(most, len(old)))
    # Bytes are named by the id of their row: this asks for primary keys.
    keys = [old[name].name.partition(".")[0] for name in looked_at]
    kept = {row.content.name for model in (File, UploadPart) for row in model._default_manager.filter(pk__in=keys)}
    for name in set(looked_at) - kept:
        old[name].unlink(missing_ok=True)
        logger.info("%s: bytes without a row removed", name)
