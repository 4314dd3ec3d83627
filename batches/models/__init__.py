"""The truth about all work: what the broker or a process knows can be lost."""

from batches.models.backend import ANY_PAUSED_MODEL, Backend, Hold, ModelUse, PausedModel
from batches.models.batch import Batch, BatchQuerySet, Part, last_places
from batches.models.counts import Counts
from batches.models.figures import Figures
from batches.models.lease import Lease, Pulse
from batches.models.line import (
    NO_ROOM,
    OPEN,
    UNANSWERED,
    Answer,
    Line,
    LineQuerySet,
    LineState,
    Response,
)
from batches.models.statuses import FINAL, Priority, Status
from batches.models.webhook import WebhookDelivery

__all__ = [
    "ANY_PAUSED_MODEL",
    "FINAL",
    "NO_ROOM",
    "OPEN",
    "UNANSWERED",
    "Answer",
    "Backend",
    "Batch",
    "BatchQuerySet",
    "Counts",
    "Figures",
    "Hold",
    "Lease",
    "Line",
    "LineQuerySet",
    "LineState",
    "ModelUse",
    "Part",
    "PausedModel",
    "Priority",
    "Pulse",
    "Response",
    "Status",
    "WebhookDelivery",
    "last_places",
]
