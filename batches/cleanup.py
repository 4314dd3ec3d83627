"""Tidy a batch that is over: empty its rows, release its input file, remove result files that were not delivered."""

import logging
from collections.abc import Callable
from functools import partial

from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from batches import leases, lifecycle, results, steps
from batches.lifecycle import Outcome
from batches.models import FINAL, Batch, Status
from batches.status import totals
from common import failpoints, ids
from files_api import retention
from files_api.models import File, FileHold, stored_name
from files_api.storage import trouble

logger = logging.getLogger(__name__)


def tidy(batch_id: str, *, breathe: Callable[[], None]) -> Outcome:
    """Remove what a batch in a final status does not need any more. Safe to run twice and at once.

    The rows lose their answers, which the result files have; a failed batch loses its lines, the input file its hold.
    """
    due = Q(status__in=FINAL, tidied_at=None)
    return steps.run(batch_id, "tidy", due, partial(_tidy, breathe=breathe))


def _tidy(batch: Batch, keeper: leases.Keeper, *, breathe: Callable[[], None]) -> Outcome:
    for numbers in results.ranges(batch):
        lines = batch.lines.filter(number__range=numbers)
        if batch.status == Status.FAILED:
            lines.delete()
        else:
            lines.exclude(response="").update(response="")
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
    Batch.objects.filter(pk=batch.pk).update(tidied_at=timezone.now())
    return Outcome.DONE


def delete(batch_id: str) -> None:
    """Delete a batch that is over: its lines, its deliveries and its result files; the input file stays, and so do the
    batches that retry it. Raises a 409 before its end.

    Lines go in pages, so that no other writer waits long. Safe to run again after an end half way.
    """
    batch = Batch.objects.get(pk=batch_id)
    if not batch.is_final:
        raise lifecycle.too_early("delete", batch.status)
    for numbers in results.ranges(batch):
        batch.lines.filter(number__range=numbers).delete()
    with transaction.atomic():
        totals.keep(Batch.objects.filter(pk=batch_id))
        files = File.objects.filter(pk__in=[batch.output_file_id, batch.error_file_id], deleted_at=None)
        files.update(deleted_at=timezone.now())
        FileHold.objects.filter(holder=batch_id).delete()
        batch.delete()
    logger.info("%s: deleted", batch_id)


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
