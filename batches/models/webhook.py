"""WebhookDelivery: an event on its way to WEBHOOK_URL."""

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from batches.models.batch import Batch


class WebhookDeliveryQuerySet(models.QuerySet["WebhookDelivery"]):
    def waiting(self) -> "WebhookDeliveryQuerySet":
        """Neither delivered nor given up."""
        return self.filter(next_at__isnull=False)

    def due(self) -> "WebhookDeliveryQuerySet":
        return self.filter(next_at__lte=Now())


class WebhookDelivery(models.Model):
    """An event on its way to WEBHOOK_URL. The id comes from the batch and the event, so a delivery exists once.

    `attempts` counts reservations: the UPDATE that stores the result of an attempt names its number.
    """

    id = models.CharField(primary_key=True, max_length=64, editable=False)
    batch = models.ForeignKey(Batch, models.CASCADE, related_name="webhook_deliveries")
    event = models.CharField(max_length=32)
    is_for_owner = models.BooleanField(
        default=False, db_default=False, help_text="To the address of the batch's owner, not to WEBHOOK_URL."
    )
    created_at = models.DateTimeField()
    attempts = models.PositiveIntegerField(default=0)
    next_at = models.DateTimeField(null=True, help_text="Empty: delivered or given up.")
    delivered_at = models.DateTimeField(null=True)
    last_error = models.TextField(default="")

    objects = WebhookDeliveryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "webhook deliveries"
        indexes: ClassVar = [
            models.Index(fields=["next_at"], name="webhook_due", condition=Q(next_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.event} of {self.batch_id}"
