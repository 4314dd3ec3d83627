"""WebhookDelivery: an event on its way to WEBHOOK_URL, or to the address of a batch's owner."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from batches.models.batch import Batch
from common import database, ids


class WebhookDeliveryQuerySet(models.QuerySet["WebhookDelivery"]):
    def waiting(self) -> "WebhookDeliveryQuerySet":
        """Neither delivered nor given up."""
        return self.filter(next_at__isnull=False)

    def due(self) -> "WebhookDeliveryQuerySet":
        """Those for an owner's address, and for WEBHOOK_URL while there is one."""
        has_address = Q() if settings.WEBHOOK_URL else Q(is_for_owner=True)
        return self.filter(has_address, next_at__lte=Now())

    def addresses(self) -> "set[int | None]":
        """Whose addresses they are for: the ids of owners, and None for WEBHOOK_URL."""
        found = self.values_list("is_for_owner", "batch__owner").distinct()
        return {owner if is_for_owner else None for is_for_owner, owner in found}

    def to(self, address: int | None) -> "WebhookDeliveryQuerySet":
        """Those for one of the addresses that `addresses` names."""
        return (
            self.filter(is_for_owner=False) if address is None else self.filter(is_for_owner=True, batch__owner=address)
        )


class WebhookDelivery(models.Model):
    """An event on its way to an address. The id comes from the batch, the event and whose address it is, so a delivery
    exists once.

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

    @staticmethod
    def announce(batch_id: str, event: str, *about: str) -> None:
        """Make the event due, in the caller's transaction, for WEBHOOK_URL and for the address of the batch's owner,
        whichever there is. With something that it is `about` it is safe to run twice; without, a second event of the
        name raises IntegrityError."""
        has_owner = Batch.objects.filter(pk=batch_id).exclude(owner__webhook_url="").exists()
        WebhookDelivery.objects.bulk_create(
            [
                WebhookDelivery(
                    id=ids.derived_id(ids.EVENT, batch_id, event, *about, *(["owner"] if is_for_owner else [])),
                    batch_id=batch_id,
                    event=event,
                    is_for_owner=is_for_owner,
                    created_at=database.now(),
                    next_at=Now(),
                )
                for is_for_owner, is_there in ((False, bool(settings.WEBHOOK_URL)), (True, has_owner))
                if is_there
            ],
            ignore_conflicts=bool(about),
        )
