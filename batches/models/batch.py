"""Batch, and its Parts: the lines for one model each."""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now

from batches.models.counts import COUNTERS, FOLDED, Counted, read
from batches.models.lease import Lease
from batches.models.line import LONGEST_WAIT, Line, LineState
from batches.models.statuses import FINAL, Priority, Status
from common import database, ids
from common.database import from_now
from common.models import owner_field
from files_api.models import File


class BatchQuerySet(models.QuerySet["Batch"]):
    def in_progress(self) -> "BatchQuerySet":
        return self.filter(status=Status.IN_PROGRESS)

    def not_stalled(self) -> "BatchQuerySet":
        """Batches whose next step is not stalled, or is due for another try. A backoff longer than LONGEST_WAIT comes
        from a clock that went back, and does not count."""
        return self.filter(Q(retry_at=None) | Q(retry_at__lte=Now()) | Q(retry_at__gt=from_now(LONGEST_WAIT)))

    def runnable(self) -> "BatchQuerySet":
        """In progress, neither paused by a person nor stalled."""
        return self.in_progress().filter(paused_at=None).not_stalled()

    def drained(self) -> "BatchQuerySet":
        """In progress with every line finished."""
        return self.in_progress().exclude(Exists(Line.objects.open().filter(part__batch=OuterRef("pk"))))

    def overdue(self) -> "BatchQuerySet":
        """In progress past the end of the completion window."""
        return self.in_progress().filter(expires_at__lte=Now())

    def with_lines_to_fail(self) -> "BatchQuerySet":
        """In progress, with pending lines for a model that will never answer."""
        pending = Line.objects.filter(part=OuterRef("pk"), state=LineState.PENDING)
        parts = Part.objects.filter(Exists(pending), batch=OuterRef("pk"), failure__isnull=False)
        return self.in_progress().filter(Exists(parts))

    def waiting_for_control(self) -> "BatchQuerySet":
        """A step of the control worker is due, and no worker does it now."""
        due = Q(status__in=[Status.VALIDATING, Status.FINALIZING, Status.CANCELLING])
        due |= Q(status__in=FINAL) | Q(pk__in=Batch.objects.with_lines_to_fail().values("pk"))
        # Nothing is left to do with a batch that is tidied; an index has the others.
        return self.filter(due, tidied_at=None, lease=None).not_stalled()


class Batch(models.Model):
    """One batch job. Files are named by id, without a foreign key's constraint: a batch outlives its files."""

    id = models.CharField(primary_key=True, max_length=64, default=ids.new_batch_id, editable=False)
    owner = owner_field()
    endpoint = models.CharField(max_length=64)
    completion_window = models.CharField(max_length=16)
    metadata = models.JSONField(null=True, blank=True)
    output_lifetime = models.DurationField(
        null=True, blank=True, help_text="How long the result files are kept once made; for ever where empty."
    )
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.VALIDATING)
    model = models.CharField(max_length=255, null=True, help_text="Null until validated, or where lines name several.")  # noqa: DJ001
    priority = models.SmallIntegerField(choices=Priority.choices, default=Priority.NORMAL)
    paused_at = models.DateTimeField(null=True, help_text="No line of it is sent until a person resumes it.")

    input_file = models.ForeignKey(File, models.DO_NOTHING, db_constraint=False, related_name="+")
    output_file = models.ForeignKey(File, models.DO_NOTHING, db_constraint=False, null=True, related_name="+")
    error_file = models.ForeignKey(File, models.DO_NOTHING, db_constraint=False, null=True, related_name="+")

    retry_of = models.ForeignKey(
        "self",
        models.DO_NOTHING,
        db_constraint=False,
        null=True,
        related_name="retries",
        help_text="The batch whose failed lines it asks again; it may be deleted since.",
    )

    created_at = models.DateTimeField(default=database.now)
    expires_at = models.DateTimeField()
    in_progress_at = models.DateTimeField(null=True)
    finalizing_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True)
    expired_at = models.DateTimeField(null=True)
    cancelling_at = models.DateTimeField(null=True)
    cancelled_at = models.DateTimeField(null=True)

    total = models.PositiveIntegerField(default=0)
    # Lines that repeat another and cost nothing; `repeated_finished` are those of them that are completed or failed.
    repeated = models.PositiveIntegerField(default=0)
    # Counted apart from what drives at work count (Counts). To be written: who reads takes `completed` and its like.
    folded_completed = models.PositiveIntegerField(default=0, db_column="completed")
    folded_failed = models.PositiveIntegerField(default=0, db_column="failed")
    folded_input_tokens = models.PositiveBigIntegerField(default=0, db_column="input_tokens")
    folded_cached_tokens = models.PositiveBigIntegerField(default=0, db_column="cached_tokens")
    folded_output_tokens = models.PositiveBigIntegerField(default=0, db_column="output_tokens")
    folded_reasoning_tokens = models.PositiveBigIntegerField(default=0, db_column="reasoning_tokens")
    folded_repeated_finished = models.PositiveIntegerField(default=0, db_column="repeated_finished")

    last_place = models.PositiveBigIntegerField(default=0, help_text="The highest `place` that its lines were given.")

    # Where validation stands: saved in the transaction that stores the lines read so far.
    validated_bytes = models.PositiveBigIntegerField(default=0)
    validated_lines = models.PositiveIntegerField(default=0)
    errors = models.JSONField(default=list, blank=True)
    error_count = models.PositiveIntegerField(default=0)
    # What a person should know while the batch runs: [{"code", "message"}], and "model" if a warning concerns one.
    warnings = models.JSONField(default=list, blank=True)

    # Why its next step is stalled, whatever its status (lifecycle.stall).
    stall_reason = models.TextField(default="", blank=True, help_text="Why its next step cannot be done now.")
    stalled_at = models.DateTimeField(null=True, help_text="Since when.")
    stalls = models.PositiveSmallIntegerField(default=0, help_text="Times the step was tried since then.")
    retry_at = models.DateTimeField(null=True, help_text="The step is not tried before.")

    lease = models.ForeignKey(Lease, models.DO_NOTHING, db_constraint=False, null=True, related_name="+")
    nudged_at = models.DateTimeField(null=True)
    step_at = models.DateTimeField(null=True, help_text="When a step of it last began; empty: it had none yet.")
    tidied_at = models.DateTimeField(null=True)

    objects = BatchQuerySet.as_manager()

    _counted: Counted | None = None

    class Meta:
        verbose_name_plural = "batches"
        indexes: ClassVar = [
            models.Index(fields=["created_at", "id"], name="batch_newest"),
            models.Index(fields=["owner", "created_at", "id"], name="batch_newest_of_owner"),
            models.Index(fields=["status"], name="batch_status"),
            models.Index(fields=["stalled_at"], name="batch_stalled", condition=Q(stalled_at__isnull=False)),
            # Steps that are due are looked for all the time, among batches of years.
            models.Index(fields=["lease"], name="batch_not_tidied", condition=Q(tidied_at__isnull=True)),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(status__in=Status.values), name="batch_status_is_known"),
        ]

    def __str__(self) -> str:
        return self.id

    def refresh_from_db(self, *args: Any, **kwargs: Any) -> None:
        super().refresh_from_db(*args, **kwargs)
        self._counted = None

    @staticmethod
    def read_counters(batches: "Sequence[Batch]") -> None:
        """Read the counters of all these in one statement, before each is asked for its own."""
        counted = read([batch.pk for batch in batches if not batch.is_final])
        for batch in batches:
            batch._counted = counted.get(batch.pk)

    @property
    def counted(self) -> Counted:
        """Its counters, with those of drives at work. They are read when they are first asked for, and again after
        `refresh_from_db`."""
        if self._counted is None and not self.is_final:
            self._counted = read([self.pk]).get(self.pk)
        return self._counted or Counted._make([*(getattr(self, FOLDED[name]) for name in COUNTERS), self.last_place])

    @property
    def completed(self) -> int:
        return self.counted.completed

    @property
    def failed(self) -> int:
        return self.counted.failed

    @property
    def input_tokens(self) -> int:
        return self.counted.input_tokens

    @property
    def cached_tokens(self) -> int:
        return self.counted.cached_tokens

    @property
    def output_tokens(self) -> int:
        return self.counted.output_tokens

    @property
    def reasoning_tokens(self) -> int:
        return self.counted.reasoning_tokens

    @property
    def repeated_finished(self) -> int:
        return self.counted.repeated_finished

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def lines_open(self) -> int:
        return max(0, self.total - self.completed - self.failed)

    @property
    def lines_to_send(self) -> int:
        """The open lines without those that repeat another."""
        return max(0, self.lines_open - (self.repeated - self.repeated_finished))

    @property
    def is_final(self) -> bool:
        return self.status in FINAL


def last_places(batch_ids: Collection[str]) -> dict[str, int]:
    """`last_place` of these batches, whose rows are locked until the end of the caller's transaction."""
    batches = Batch.objects.select_for_update().filter(pk__in=batch_ids).order_by("pk")
    return dict(batches.values_list("pk", "last_place"))


class Part(models.Model):
    """The lines of one batch for one model: what takes turns on a backend."""

    batch = models.ForeignKey(Batch, models.CASCADE, related_name="parts")
    model = models.CharField(max_length=255)
    context_tokens = models.PositiveIntegerField(
        default=0, help_text="What its longest line takes at most, prompt and answer, by an estimate."
    )
    served_by = models.CharField(
        max_length=512,
        default="",
        help_text="A model derived from it, with a larger context, that gets its lines.",
    )
    fitted_tokens = models.PositiveIntegerField(default=0, help_text="The context of that derived model; 0: none.")
    fit_reason = models.TextField(default="", help_text="Why it has this context.")
    turn_at = models.DateTimeField(null=True, help_text="When its last turn began; empty: it had none yet.")
    failure = models.JSONField(
        null=True, help_text="Why its model will never answer: its pending lines fail with this reply, unsent."
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["batch", "model"], name="part_once"),
        ]

    def __str__(self) -> str:
        return f"{self.batch_id} by {self.model}"

    @property
    def served_model(self) -> str:
        """The model that gets its lines, by its name at the model server."""
        return self.served_by or self.model
