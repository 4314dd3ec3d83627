"""What is let go of a batch that is over: the answers on its rows, its input file, results that nobody delivered."""

from collections.abc import Callable

from django.core.files.storage import default_storage
from django.utils import timezone

from batches import output
from batches.models import Batch, Status
from batchserver import failpoints, ids
from files_api import retention
from files_api.models import File, stored_name


def tidy(batch_id: str, *, breathe: Callable[[], None]) -> None:
    """Let go of what a batch in a final status does not need any more. Safe to run twice.

    The rows give up their answers (the files hold them), a failed batch its lines, and the input file its hold.
    """
    batch = Batch.objects.get(pk=batch_id)
    if not batch.is_final or batch.tidied_at is not None:
        return
    for numbers in output.ranges(batch):
        lines = batch.lines.filter(number__range=numbers)
        if batch.status == Status.FAILED:
            lines.delete()
        else:
            lines.exclude(response="").update(response="")
        breathe()
        failpoints.reach("mid_tidy")
    _remove_lost_results(batch)
    retention.release(batch.pk)
    Batch.objects.filter(pk=batch.pk).update(tidied_at=timezone.now())


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
