"""Run a step of a batch in the control worker: under a lease that holds the batch, and always with an Outcome.

A step that failed is not asked for again at once: the batch stalls (`lifecycle.stall`), with the reason in a sentence.

Steps take turns: of the owners, then of the batches of each owner, by when the last step of each began.
"""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import cast

from django.db.models import Case, F, Q, When
from django.db.models.functions import Now

from batches import leases, lifecycle
from batches.lifecycle import Outcome
from batches.models import Batch
from common import database, waits
from common.database import from_now, retrying
from common.models import Owner
from files_api import storage_id

logger = logging.getLogger(__name__)

# A step that began later than this from now was stamped before the clock went back.
MOST_AHEAD = timedelta(minutes=1)


class CannotGoOn(Exception):
    """The step cannot be done now. The text says why and what to do, in sentences for a person; it has no path and
    no data of a client."""


def next_turn() -> str | None:
    """The batch whose turn it is to have its step done; None if no step is due, or others do all that are."""
    order = [_past(stamp).asc(nulls_first=True) for stamp in ("owner__step_at", "step_at")]
    waiting = Batch.objects.all().waiting_for_control().order_by(*order, "created_at", "pk")
    return waiting.values_list("pk", flat=True).first()


def _past(stamp: str) -> Case:
    """Null for a stamp of the future, or whoever has it would wait until then."""
    return Case(When(**{f"{stamp}__lte": from_now(MOST_AHEAD)}, then=F(stamp)))


def run(batch_id: str, purpose: str, due: Q, work: Callable[[Batch, leases.Keeper], Outcome]) -> Outcome:
    """Do `work` while a lease holds the batch, if the step is `due` for it; the outcome of the step.

    `work` keeps the lease alive; while it waits for a storage that is no disk, that is done here. It raises LeaseLost
    if the lease has expired, CannotGoOn if the step cannot be done now. Any other error is a fault of the server's own,
    and stalls the batch too: when it can go on is not known. `run` raises only errors of the database, if not even the
    stall can be stored.
    """
    if retrying(storage_id.trouble):
        return Outcome.LATER  # another host may do it: nothing is wrong with the batch, and `batches.hosts` says why
    with leases.Keeper(purpose) as keeper:
        waiting = Batch.objects.filter(due, pk=batch_id, lease=None).not_stalled()
        if not retrying(waiting.update, lease=keeper.lease, step_at=Now()):
            return _why_not(batch_id, due)
        batch = Batch.objects.get(pk=batch_id)
        try:
            retrying(_stamp_owner, cast(int, batch.owner_id))
            with waits.meanwhile(keeper.keep):
                outcome = work(batch, keeper)
        except leases.LeaseLost:
            outcome = _why_not(batch_id, due)
            if outcome is not Outcome.DONE:  # the step is not due any more, as after a cancel
                logger.warning("%s: %s was taken over", batch_id, purpose)
            return outcome
        except CannotGoOn as error:
            retrying(lifecycle.stall, batch_id, str(error))
            return Outcome.LATER
        except Exception as error:  # a bug stalls its batch, and is not tried again at once
            if retrying(lifecycle.stall, batch_id, _own_fault(error)):
                logger.exception("%s: %s failed", batch_id, purpose)
            return Outcome.LATER
        if batch.stalls and outcome in (Outcome.DONE, Outcome.MORE):
            lifecycle.unstall(batch_id)
        return outcome


def _stamp_owner(owner_id: int) -> None:
    """Whoever counts what the owner has may have the row; if that takes long, the owner has the next turn too."""
    with database.passing_by_locks():
        Owner.objects.filter(pk=owner_id).update(step_at=Now())


def _why_not(batch_id: str, due: Q) -> Outcome:
    """The outcome of a step that did not take place."""
    batch = Batch.objects.filter(due, pk=batch_id).first()
    if batch is None:
        return Outcome.DONE
    return Outcome.LATER if batch.lease_id is None else Outcome.HELD


def _own_fault(error: Exception) -> str:
    name = type(error).__name__
    if database.is_away(error):
        return f"The database does not answer ({name}). See the log of the control worker."
    return f"An error of the server's own ({name}). See the log of the control worker."
