"""Whether a batch will end within its completion window, told before a night is lost.

What is found is stored in `Batch.warnings`, as what dispatch finds about contexts is.
"""

import logging

from django.db import transaction

from batches.models import Batch
from batches.scheduling import gate
from batches.status import progress

logger = logging.getLogger(__name__)

WINDOW_TOO_SHORT = "window_too_short"
MOST_BATCHES = 100  # those whose windows end first


def watch() -> None:
    """Compare the forecast of each batch in progress with its completion window. Safe to run at any time."""
    for batch in Batch.objects.all().in_progress().order_by("expires_at")[:MOST_BATCHES]:
        check(batch)


def check(batch: Batch) -> None:
    """Store the warning if the forecast end lies beyond the window, and take it back if it does not. Without a forecast
    nothing changes. Logs a warning that is new. Safe to run twice, and beside others that warn about the same batch."""
    end = progress.of(batch).estimated_end
    if end is None:
        return
    found = []
    if end > batch.expires_at:
        message = (
            f"Its last line may be finished at {gate.clock(end)}, and its completion window ends at "
            f"{gate.clock(batch.expires_at)}: the lines that are left then fail. Extend the window in the admin or by "
            f'POST /v1/batches/{batch.pk}/extend {{"completion_window": "7d"}}, which counts from now.'
        )
        found = [{"code": WINDOW_TOO_SHORT, "message": message}]
    with transaction.atomic():
        stored = Batch.objects.select_for_update().values_list("warnings", flat=True).get(pk=batch.pk)
        before = [each for each in stored if each["code"] == WINDOW_TOO_SHORT]
        if before == found:
            return
        others = [each for each in stored if each not in before]
        Batch.objects.filter(pk=batch.pk).update(warnings=others + found)
    if found and not before:
        logger.warning("%s: %s", batch.pk, found[0]["message"])
