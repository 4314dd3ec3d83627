"""The admin's pages of batches: to look at, to pause, to cancel and to try again, not to edit."""

from batches.admin.backends import BackendAdmin, HoldAdmin, PausedModelAdmin
from batches.admin.batches import BatchAdmin
from batches.admin.lines import LineAdmin
from batches.admin.webhooks import WebhookDeliveryAdmin

__all__ = ["BackendAdmin", "BatchAdmin", "HoldAdmin", "LineAdmin", "PausedModelAdmin", "WebhookDeliveryAdmin"]
