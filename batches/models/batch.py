"""Batch, its Parts (the lines for one model each) and its Lines; and Answers, which another batch may reuse."""

from collections.abc import Collection
from datetime import timedelta
from typing import ClassVar

from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.db.models.expressions import RawSQL
from django.db.models.functions import Now
from django.utils import timezone

from batches.models.lease import Lease
from common import ids
from common.database import from_now
from files_api.models import File


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
    """`metadata.priority` of a batch: its lines go before, between or behind those of all others."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


FINAL = [Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED]


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
        return self.in_progress().filter(expires_at__lte=timezone.now())

    def with_lines_to_fail(self) -> "BatchQuerySet":
        """In progress, with pending lines for a model that will never answer."""
        pending = Line.objects.filter(part=OuterRef("pk"), state=LineState.PENDING)
        parts = Part.objects.filter(Exists(pending), batch=OuterRef("pk"), failure__isnull=False)
        return self.in_progress().filter(Exists(parts))

    def waiting_for_control(self) -> "BatchQuerySet":
        """A step of the control worker is due, and no worker does it now."""
        due = Q(status__in=[Status.VALIDATING, Status.FINALIZING, Status.CANCELLING])
        due |= Q(status__in=FINAL, tidied_at=None) | Q(pk__in=Batch.objects.with_lines_to_fail().values("pk"))
        return self.filter(due, lease=None).not_stalled()


# Longer than any backoff, of a line or of a stalled batch.
LONGEST_WAIT = timedelta(minutes=6)


class Batch(models.Model):
    """One batch job. Files are named by id, without a foreign key's constraint: a batch outlives its files."""

    id = models.CharField(primary_key=True, max_length=64, default=ids.new_batch_id, editable=False)
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

    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    in_progress_at = models.DateTimeField(null=True)
    finalizing_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True)
    expired_at = models.DateTimeField(null=True)
    cancelling_at = models.DateTimeField(null=True)
    cancelled_at = models.DateTimeField(null=True)

    # Counts move in the transaction that stores the results and are recounted from the rows at finalizing.
    total = models.PositiveIntegerField(default=0)
    completed = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)
    reasoning_tokens = models.PositiveBigIntegerField(default=0)
    # Lines that repeat another and cost nothing: all of them, and those that are completed or failed.
    repeated = models.PositiveIntegerField(default=0)
    repeated_finished = models.PositiveIntegerField(default=0)

    last_place = models.PositiveBigIntegerField(default=0, help_text="The highest `place` of its lines.")

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
    tidied_at = models.DateTimeField(null=True)

    objects = BatchQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "batches"
        indexes: ClassVar = [
            models.Index(fields=["created_at", "id"], name="batch_newest"),
            models.Index(fields=["status"], name="batch_status"),
            models.Index(fields=["stalled_at"], name="batch_stalled", condition=Q(stalled_at__isnull=False)),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(status__in=Status.values), name="batch_status_is_known"),
        ]

    def __str__(self) -> str:
        return self.id

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


class LineState(models.IntegerChoices):
    PENDING = 0
    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4
    EXPIRED = 5
    REPEATED = 6  # equal to an earlier line, its `original`, and answered with its answer


OPEN = [LineState.PENDING, LineState.RUNNING]
# Finished, and without an answer that is a result.
UNANSWERED = [LineState.FAILED, LineState.CANCELLED, LineState.EXPIRED]


class LineQuerySet(models.QuerySet["Line"]):
    def open(self) -> "LineQuerySet":
        return self.filter(state__in=OPEN)

    def claimable(self) -> "LineQuerySet":
        """Pending, and not in a backoff. A backoff longer than LONGEST_WAIT comes from a clock that went back, and does
        not count."""
        due = Q(not_before=None) | Q(not_before__lte=Now()) | Q(not_before__gt=from_now(LONGEST_WAIT))
        return self.filter(due, state=LineState.PENDING)

    def unanswered(self) -> "LineQuerySet":
        """Finished without an answer, in the very words of the index of these lines: SQLite uses it for no others."""
        return self.filter(RawSQL("batches_line.state IN (3, 4, 5)", (), output_field=models.BooleanField()))

    def claimed_by(self, lease: Lease) -> "LineQuerySet":
        return self.filter(lease=lease, state=LineState.RUNNING)


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


# `Line.error_code` while a line waits to be tried alone, because the card had no room for it in company.
NO_ROOM = "no_room"


class Line(models.Model):
    """One line of the input file, and its answer until the result files have it.

    The request itself stays in the input file, at `offset`. `lease` is the claim: the UPDATE that stores an answer
    names it, so a worker whose lease expired cannot write.
    """

    # No index of its own: the indexes of the two constraints begin with it.
    batch = models.ForeignKey(Batch, models.CASCADE, related_name="lines", db_index=False)
    part = models.ForeignKey(Part, models.CASCADE, related_name="lines", db_index=False)
    number = models.PositiveIntegerField(help_text="1-based, in the input file.")
    custom_id = models.CharField(max_length=512)
    offset = models.PositiveBigIntegerField()
    length = models.PositiveIntegerField(help_text="Bytes, without the line's end.")
    order_key = models.BinaryField(
        max_length=255,
        default=b"",
        help_text="Lines that begin alike sort beside each other.",
    )
    digest = models.BinaryField(max_length=16, null=True, help_text="Of a request that has one answer alone.")
    original = models.ForeignKey(
        "self", models.DO_NOTHING, db_constraint=False, db_index=False, null=True, related_name="repeats"
    )

    state = models.PositiveSmallIntegerField(choices=LineState.choices, default=LineState.PENDING)
    lease = models.ForeignKey(
        Lease, models.DO_NOTHING, db_constraint=False, db_index=False, null=True, related_name="+"
    )
    attempts = models.PositiveSmallIntegerField(default=0, help_text="Charged for the line's own faults only.")
    backend_crashes = models.PositiveSmallIntegerField(default=0, help_text="Times it brought the backend down.")
    needs_trial = models.BooleanField(default=False, help_text="It failed: sent again only to a model in order.")
    most_together = models.PositiveIntegerField(
        null=True,
        help_text="The server broke down while it was in flight: it is sent again among so many such lines at most.",
    )
    lost_claims = models.PositiveSmallIntegerField(default=0, help_text="Times a worker died that held it.")
    not_before = models.DateTimeField(null=True)

    http_status = models.PositiveSmallIntegerField(null=True)
    response = models.TextField(default="", help_text="The reply's JSON; emptied once the result files hold it.")
    # Why it failed; of a line that is not finished, why its last answer was not used, if it waits for that reason.
    error_code = models.CharField(max_length=64, default="")
    error_message = models.TextField(default="")
    input_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    output_tokens = models.PositiveIntegerField(default=0)
    reasoning_tokens = models.PositiveIntegerField(default=0)
    duration_ms = models.PositiveIntegerField(null=True)
    finished_at = models.DateTimeField(null=True)
    # Whoever gives places holds the batch's row until the commit, so places appear in their order: a reader that saw
    # one misses none below it. There are gaps. A repeat has the place of its original.
    place = models.PositiveBigIntegerField(null=True, help_text="In the order in which the batch's lines finished.")

    objects = LineQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["batch", "number"], name="line_number_once"),
            models.UniqueConstraint(fields=["batch", "custom_id"], name="line_custom_id_once"),
        ]
        indexes: ClassVar = [
            # For the claim, and for "is a line left?". Not partial: SQLite uses that for the very same condition only.
            models.Index(fields=["part", "state", "order_key", "number"], name="line_by_turn"),
            models.Index(
                fields=["batch", "state", "error_code", "number"],
                name="line_unanswered",
                condition=Q(state__in=[3, 4, 5]),
            ),
            models.Index(fields=["batch", "place"], name="line_in_order", condition=Q(place__isnull=False)),
            models.Index(fields=["lease"], name="line_claimed", condition=Q(lease__isnull=False)),
            models.Index(fields=["part", "digest"], name="line_by_digest", condition=Q(digest__isnull=False)),
            models.Index(fields=["original"], name="line_repeated", condition=Q(original__isnull=False)),
            models.Index(
                fields=["part", "state", "most_together"], name="line_split", condition=Q(most_together__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.batch_id} line {self.number}"

    @property
    def model(self) -> str:
        return self.part.model

    @property
    def is_split(self) -> bool:
        """The server broke down under it and others: it is in flight with such lines alone."""
        return self.most_together is not None

    @property
    def served_model(self) -> str:
        return self.part.served_model


class Answer(models.Model):
    """The answer of a line, kept for an equal line of another batch. Only with ANSWER_ONCE_ACROSS_BATCHES."""

    digest = models.CharField(primary_key=True, max_length=32)
    response = models.TextField()
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["created_at"], name="answer_oldest")]

    def __str__(self) -> str:
        return self.digest
