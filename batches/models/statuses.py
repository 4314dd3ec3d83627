"""What a batch can be, and which batch's lines go first."""

from django.db import models


class Status(models.TextChoices):
    """The eight statuses of the OpenAI Batch API. Only `lifecycle` writes them."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class Priority(models.IntegerChoices):
    """`metadata.priority` of a batch: its lines go before, between or behind those of its owner's others."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


FINAL = [Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED]
