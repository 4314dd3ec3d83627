"""Tidy a batch that is over: delete its responses, release its input file, remove result files that were not delivered.
Delete a batch, as a person or RETENTION_DAYS wants it.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from django.conf import settings
from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Coalesce

from batches import leases, lifecycle, results, steps
from batches.creation import LONGEST_WINDOW
from batches.lifecycle import Outcome
from batches.models import FINAL, Batch, Response, Status
from batches.status import totals
from common import database, failpoints, ids
from common.disk import trouble
from common.models import Owner
from files_api import retention
from files_api.models import File, FileHold, stored_name

logger = logging.getLogger(__name__)

SLICE_S = 2.0
DELETED_AT_ONCE, FILES_AT_ONCE = 10, 500


def tidy(batch_id: str, *, breathe: Callable[[], None]) -> Outcome:
    """Remove what a batch in a final status does not need any more. Safe to run twice and at once.

    The responses are deleted, which the result files have; a failed batch loses its lines, the input file its hold.
    """
    due = Q(status__in=FINAL, tidied_at=None)
    return steps.run(batch_id, "tidy", due, partial(_tidy, breathe=breathe))


def _tidy(batch: Batch, keeper: leases.Keeper, *, breathe: Callable[[], None]) -> Outcome:
    for numbers in results.ranges(batch):
        _delete_responses(batch, numbers)
        if batch.status == Status.FAILED:
            batch.lines.filter(number__range=numbers).delete()
        keeper.keep()
        breathe()
        failpoints.reach("mid_tidy")
    try:
        _remove_lost_results(batch)
        retention.release(batch.pk)
    except OSError as error:
        raise steps.CannotGoOn(
            f"The bytes of files that the batch needs no more cannot be removed: {trouble(error)}"
        ) from error
    Batch.objects.filter(pk=batch.pk).update(tidied_at=database.now())
    return Outcome.DONE


def delete(batch_id: str, *, slice_s: float = float("inf")) -> Outcome:
    """Delete a batch that is over: its lines, its deliveries and its result files; the input file stays, and so do the
    batches that retry it. MORE if `slice_s` ended before. Raises a 409 before the batch's end.

    Lines go in pages, so that no other writer waits long. Safe to run twice, at once, and again after an end half way.
    """
    ends_at = time.monotonic() + slice_s
    batch = Batch.objects.filter(pk=batch_id).first()
    if batch is None:
        return Outcome.DONE
    if not batch.is_final:
        raise lifecycle.too_early("delete", batch.status)
    for numbers in results.ranges(batch):
        _delete_responses(batch, numbers)  # a batch that ended a moment ago may not be tidied
        batch.lines.filter(number__range=numbers).delete()
        if time.monotonic() > ends_at:
            return Outcome.MORE
    with transaction.atomic():
        # Of two at once, one counts the batch among the deleted ones.
        if not Batch.objects.select_for_update().filter(pk=batch_id).exists():
            return Outcome.DONE
        totals.keep(Batch.objects.filter(pk=batch_id))
        files = File.objects.filter(pk__in=[batch.output_file_id, batch.error_file_id], deleted_at=None)
        files.update(deleted_at=database.now())
        FileHold.objects.filter(holder=batch_id).delete()
        batch.delete()
    logger.info("%s: deleted", batch_id)
    return Outcome.DONE


def outlived() -> list[str]:
    """The ids of batches that ended more than RETENTION_DAYS ago, the oldest first, DELETED_AT_ONCE at most."""
    if not settings.RETENTION_DAYS:
        return []
    oldest = _oldest_kept()
    ended_at = Coalesce("completed_at", "failed_at", "expired_at", "cancelled_at")
    over = Batch.objects.filter(created_at__lt=oldest, status__in=FINAL).alias(ended_at=ended_at)
    return list(over.filter(ended_at__lt=oldest).order_by("created_at").values_list("pk", flat=True)[:DELETED_AT_ONCE])


def delete_outlived_files() -> None:
    """Delete files that were uploaded more than RETENTION_DAYS ago, and that no batch has any more; FILES_AT_ONCE at
    most. Safe to run twice."""
    if not settings.RETENTION_DAYS:
        return
    named = Q(input_file=OuterRef("pk")) | Q(output_file=OuterRef("pk")) | Q(error_file=OuterRef("pk"))
    # Not by a batch of another owner, which may name any file and never gets it.
    free = ~Exists(Batch.objects.filter(named, owner=OuterRef("owner"))) & ~Exists(
        FileHold.objects.filter(file=OuterRef("pk"))
    )
    files = File.objects.all().visible().filter(free, created_at__lt=_oldest_kept())
    ids = list(files.values_list("pk", flat=True)[:FILES_AT_ONCE])
    # A batch may have been made of one of them meanwhile.
    if count := File.objects.filter(free, pk__in=ids, deleted_at=None).update(deleted_at=database.now()):
        logger.info("%d files deleted that no batch has, for RETENTION_DAYS is over", count)


def correct_owners() -> None:
    """Give result files to the owner of their batch, if a worker of a version without owners stored them as the first
    owner's, beside workers of this one. Safe to run twice."""
    lately = Batch.objects.exclude(owner=Owner.FIRST).filter(created_at__gt=database.now() - LONGEST_WINDOW)
    for name in ("output_file", "error_file"):
        for file_id, owner_id in lately.filter(**{f"{name}__owner": Owner.FIRST}).values_list(name, "owner"):
            File.objects.filter(pk=file_id, owner=Owner.FIRST).update(owner=owner_id)
            logger.warning("%s: given to the owner of its batch", file_id)


def _oldest_kept() -> datetime:
    return database.now() - timedelta(days=settings.RETENTION_DAYS)


def _delete_responses(batch: Batch, numbers: tuple[int, int]) -> None:
    Response.objects.filter(line__batch=batch, line__number__range=numbers).delete()


def _remove_lost_results(batch: Batch) -> None:
    """Remove result files that a finalizer wrote and could not deliver because it was killed."""
    for name, delivered in (("output", batch.output_file), ("error", batch.error_file)):
        directory, _, stem = stored_name(File(id=ids.derived_file_id(batch.pk, name)), "").rpartition("/")
        try:
            _, found = default_storage.listdir(directory)
        except FileNotFoundError:
            continue
        for filename in found:
            path = f"{directory}/{filename}"
            if filename.startswith(f"{stem}.") and (delivered is None or path != delivered.content.name):
                default_storage.delete(path)
