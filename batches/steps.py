"""A step of a batch by the control worker: under a lease that holds the batch, and ended with an Outcome, always.

A step that failed is not asked for again at once: the batch stalls (`lifecycle.stall`), with the reason in a sentence.
"""

import logging
from collections.abc import Callable

from django.db import InterfaceError, OperationalError
from django.db.models import Q

from batches import leases, lifecycle
from batches.lifecycle import Outcome
from batches.models import Batch
from common.database import retrying

logger = logging.getLogger(__name__)


class CannotGoOn(Exception):
    """The step cannot be done now. The text says why and what to do, in sentences for a person; it names no path and
    holds nothing of a client's."""


def run(batch_id: str, purpose: str, due: Q, work: Callable[[Batch, leases.Keeper], Outcome]) -> Outcome:
    """Do `work` while a lease holds the batch, if the step is `due` for it; what became of it.

    `work` keeps the lease alive, and raises LeaseLost once it is not ours, CannotGoOn if the step cannot be done now.
    Any other error is a fault of ours, and stalls the batch too: nobody knows when it may go on. Raises only what the
    database raises if it cannot even store that.
    """
    with leases.Keeper(purpose) as keeper:
        waiting = Batch.objects.filter(due, pk=batch_id, lease=None).not_stalled()
        if not retrying(waiting.update, lease=keeper.lease):
            return _why_not(batch_id, due)
        batch = Batch.objects.get(pk=batch_id)
        try:
            outcome = work(batch, keeper)
        except leases.LeaseLost:
            outcome = _why_not(batch_id, due)
            if outcome is not Outcome.DONE:  # as after a cancel
                logger.warning("%s: %s was taken over", batch_id, purpose)
            return outcome
        except CannotGoOn as error:
            retrying(lifecycle.stall, batch_id, str(error))
            return Outcome.LATER
        except Exception as error:  # a bug holds up its batch, and does not spin
            if retrying(lifecycle.stall, batch_id, _own_fault(error)):
                logger.exception("%s: %s failed", batch_id, purpose)
            return Outcome.LATER
        if batch.stalls and outcome in (Outcome.DONE, Outcome.MORE):
            lifecycle.unstall(batch_id)
        return outcome


def _why_not(batch_id: str, due: Q) -> Outcome:
    """The outcome of a step that did not take place."""
    batch = Batch.objects.filter(due, pk=batch_id).first()
    if batch is None:
        return Outcome.DONE
    return Outcome.LATER if batch.lease_id is None else Outcome.HELD


def _own_fault(error: Exception) -> str:
    name = type(error).__name__
    if isinstance(error, OperationalError | InterfaceError):
        return f"The database does not answer ({name}). The log of the control worker has its words."
    return f"An error of the server's own ({name}). See the log of the control worker."
