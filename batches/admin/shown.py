"""A batch as rows, pages and the first page show it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batches.models import Batch, Status
from batches.status import progress
from batches.status.progress import Progress
from common import database

LABELS = {
    Status.VALIDATING: "info",
    Status.IN_PROGRESS: "primary",
    Status.FINALIZING: "primary",
    Status.COMPLETED: "success",
    Status.FAILED: "danger",
    Status.EXPIRED: "danger",
    Status.CANCELLING: "warning",
    Status.CANCELLED: "warning",
}


@dataclass(frozen=True)
class Shown:
    """`told` None: no forecast was made. `filename` is that of the input file, where it is shown."""

    batch: Batch
    told: Progress | None = None
    filename: str = ""

    @property
    def label(self) -> str:
        return LABELS[Status(self.batch.status)]

    @property
    def bar(self) -> list[dict[str, Any]]:
        """Of all lines, those answered and those failed, in per cent."""
        total = max(1, self.batch.total)
        answered = {"title": "Answered", "value": round(100 * self.batch.completed / total, 1)}
        # The theme's own colour is named for the dark theme by itself.
        red = {"progress_class": "bg-red-600 dark:bg-red-500"}
        return [answered, {"title": "Failed", "value": round(100 * self.batch.failed / total, 1)} | red]

    @property
    def done(self) -> int:
        return self.batch.completed + self.batch.failed

    @property
    def percent(self) -> int:
        """Not 100 before the last line is finished."""
        return self.done * 100 // max(1, self.batch.total)

    @property
    def ended_at(self) -> datetime | None:
        batch = self.batch
        return batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at

    @property
    def window_is_missed(self) -> bool:
        """The forecast end lies beyond the window, or the window is over."""
        warnings = self.told.warnings if self.told else self.batch.warnings
        missed = any(each["code"] == progress.WINDOW_TOO_SHORT for each in warnings)
        return not self.batch.is_final and (missed or self.batch.expires_at <= database.now())
