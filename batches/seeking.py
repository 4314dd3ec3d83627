"""How an inference worker finds work for its backend by itself, every second.

So nobody else need know what the backend has, and no message goes to a worker whose backend lacks the model: any number
of idle workers are at work within two seconds, and a worker that stands by begins where another one fell silent.
"""

import logging
from collections.abc import Collection

from django.conf import settings

from batches import leases
from batches.models import ANY_PAUSED_MODEL, Backend, Batch
from batches.scheduling import gate, turns
from common.database import GIVEN, Asked, Column

logger = logging.getLogger(__name__)


# Whether any backend may have work: a batch, or a model whose pause may be over.
ANYTHING = Asked(Batch.objects.in_progress, *ANY_PAUSED_MODEL.queries)


class Seeker:
    """Looks for work for the backend that this process is configured to use."""

    def __init__(self) -> None:
        self._successor = leases.Successor()

    def look(self) -> int:
        """How many more drives there is work for now; 0 if the backend is paused. Call every second.

        One small query on a server without work, and a handful otherwise, with any number of backends. Hands back the
        lines of drives on this backend that fell silent.
        """
        found = _OWN.of(settings.BACKEND_NAME) if ANYTHING.is_true() else []
        if not found:
            return 0
        [own] = found
        if taken := self._successor.look(own):
            logger.warning("took over the work of drives that fell silent: %s", taken)
        idle = max(0, settings.MAX_CONCURRENT_BATCHES - len(leases.at_work(own)))
        return idle if idle and with_work(Backend.objects.filter(pk=own)) else 0


# The id of the backend that has this name, if it is not paused and has answered once.
_OWN = Column(lambda: Backend.objects.filter(name=GIVEN, paused_at=None).exclude(kind=""))


def with_work(backends: Collection[Backend]) -> list[Backend]:
    """Those that have work for a drive now. Lines may be sent to them. Or lines wait for persons: then a drive has to
    wait for their share."""
    gates = gate.looks(backends)
    lets_wait = settings.BATCH_SHARE > 0
    return turns.with_work(
        [each for each in backends if not gates[each.pk].reason or (gates[each.pk].is_for_persons and lets_wait)]
    )
