"""Batch, Line, Lease, Backend: the truth about all work. Whatever the broker or a process knows can be lost."""

from datetime import timedelta
from typing import Any, ClassVar

from django.db import models
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now
from django.utils import timezone

from batchserver import ids
from batchserver.database import from_now
from files_api.models import File


class Lease(models.Model):
    """The right of one process to work on something, until `expires_at` by the database's clock.

    Its id is the fencing token: never used twice (AUTOINCREMENT), named by every write that the right allows.
    `host`, `pid` and `started` tell whether the process is still there, to whoever runs on the same host.
    """

    purpose = models.CharField(max_length=32)
    host = models.CharField(max_length=128)
    pid = models.IntegerField()
    started = models.CharField(max_length=32)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.purpose} by {self.pid} on {self.host}"


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


FINAL = [Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED]


class BatchQuerySet(models.QuerySet["Batch"]):
    def in_progress(self) -> "BatchQuerySet":
        return self.filter(status=Status.IN_PROGRESS)

    def drained(self) -> "BatchQuerySet":
        """In progress with every line finished."""
        return self.in_progress().exclude(Exists(Line.objects.open().filter(batch=OuterRef("pk"))))

    def overdue(self) -> "BatchQuerySet":
        """In progress past the end of the completion window."""
        return self.in_progress().filter(expires_at__lte=timezone.now())

    def waiting_for_control(self) -> "BatchQuerySet":
        """A step of the control worker is due and nobody is at it."""
        due = [Status.VALIDATING, Status.FINALIZING, Status.CANCELLING]
        return self.filter(Q(status__in=due) | Q(status__in=FINAL, tidied_at=None), lease=None)


class Batch(models.Model):
    """One batch job. Files are named by id without a foreign key's constraint: a batch outlives its files."""

    id = models.CharField(primary_key=True, max_length=64, default=ids.new_batch_id, editable=False)
    endpoint = models.CharField(max_length=64)
    completion_window = models.CharField(max_length=16)
    metadata = models.JSONField(null=True, blank=True)
    output_lifetime = models.DurationField(
        null=True, blank=True, help_text="How long the result files are kept once made; for ever where empty."
    )
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.VALIDATING)
    model = models.CharField(max_length=255, null=True, help_text="Null until validated, or where lines name several.")  # noqa: DJ001

    input_file = models.ForeignKey(File, models.DO_NOTHING, db_constraint=False, related_name="+")
    output_file = models.ForeignKey(File, models.DO_NOTHING, db_constraint=False, null=True, related_name="+")
    error_file = models.ForeignKey(File, models.DO_NOTHING, db_constraint=False, null=True, related_name="+")

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

    # Where validation stands: saved in the transaction that stores the lines read so far.
    validated_bytes = models.PositiveBigIntegerField(default=0)
    validated_lines = models.PositiveIntegerField(default=0)
    errors = models.JSONField(default=list, blank=True)
    error_count = models.PositiveIntegerField(default=0)

    lease = models.ForeignKey(Lease, models.DO_NOTHING, db_constraint=False, null=True, related_name="+")
    nudged_at = models.DateTimeField(null=True)
    tidied_at = models.DateTimeField(null=True)

    objects = BatchQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "batches"
        indexes: ClassVar = [
            models.Index(fields=["created_at", "id"], name="batch_newest"),
            models.Index(fields=["status"], name="batch_status"),
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
    def is_final(self) -> bool:
        return self.status in FINAL


class LineState(models.IntegerChoices):
    PENDING = 0
    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4
    EXPIRED = 5


OPEN = [LineState.PENDING, LineState.RUNNING]


class LineQuerySet(models.QuerySet["Line"]):
    def open(self) -> "LineQuerySet":
        return self.filter(state__in=OPEN)

    def claimable(self) -> "LineQuerySet":
        """Pending, and not waiting before another attempt."""
        return self.filter(Q(not_before=None) | Q(not_before__lte=Now()), state=LineState.PENDING)

    def held_by(self, lease: Lease) -> "LineQuerySet":
        return self.filter(lease=lease, state=LineState.RUNNING)


class Line(models.Model):
    """One line of the input file, and its answer until the result files hold it.

    The request itself stays in the input file, at `offset`. `lease` is the claim: the UPDATE that stores a result
    names it, so a worker that was declared dead cannot write.
    """

    batch = models.ForeignKey(Batch, models.CASCADE, related_name="lines")
    number = models.PositiveIntegerField(help_text="1-based, in the input file.")
    custom_id = models.CharField(max_length=512)
    offset = models.PositiveBigIntegerField()
    length = models.PositiveIntegerField(help_text="Bytes, without the line's end.")
    model = models.CharField(max_length=255)

    state = models.PositiveSmallIntegerField(choices=LineState.choices, default=LineState.PENDING)
    lease = models.ForeignKey(
        Lease, models.DO_NOTHING, db_constraint=False, db_index=False, null=True, related_name="+"
    )
    attempts = models.PositiveSmallIntegerField(default=0, help_text="Charged for the line's own faults only.")
    backend_crashes = models.PositiveSmallIntegerField(default=0, help_text="Times it brought the backend down.")
    needs_trial = models.BooleanField(default=False, help_text="It failed: sent again only to a model in order.")
    lost_claims = models.PositiveSmallIntegerField(default=0, help_text="Times a worker died that held it.")
    not_before = models.DateTimeField(null=True)

    http_status = models.PositiveSmallIntegerField(null=True)
    response = models.TextField(default="", help_text="The reply's JSON; emptied once the result files hold it.")
    error_code = models.CharField(max_length=64, default="")
    error_message = models.TextField(default="")
    input_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    output_tokens = models.PositiveIntegerField(default=0)
    reasoning_tokens = models.PositiveIntegerField(default=0)
    duration_ms = models.PositiveIntegerField(null=True)
    finished_at = models.DateTimeField(null=True)

    objects = LineQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["batch", "number"], name="line_number_once"),
            models.UniqueConstraint(fields=["batch", "custom_id"], name="line_custom_id_once"),
        ]
        indexes: ClassVar = [
            # The claim, and "is anything left?". Not partial: SQLite would use that only for the very same condition.
            models.Index(fields=["batch", "state", "number"], name="line_by_state"),
            models.Index(fields=["lease"], name="line_claimed", condition=Q(lease__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.batch_id} line {self.number}"


class WebhookDeliveryQuerySet(models.QuerySet["WebhookDelivery"]):
    def waiting(self) -> "WebhookDeliveryQuerySet":
        """Neither delivered nor given up."""
        return self.filter(next_at__isnull=False)

    def due(self) -> "WebhookDeliveryQuerySet":
        return self.filter(next_at__lte=Now())


class WebhookDelivery(models.Model):
    """An event on its way to WEBHOOK_URL. Its id comes from what it tells, so it exists once.

    `attempts` counts claims: the UPDATE that stores an attempt's result names its number.
    """

    id = models.CharField(primary_key=True, max_length=64, editable=False)
    batch = models.ForeignKey(Batch, models.CASCADE, related_name="webhook_deliveries")
    event = models.CharField(max_length=32)
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


class Backend(models.Model):
    """A model server as its worker last saw it. Window, loaded models and pause belong to it, not to a worker."""

    name = models.CharField(max_length=255, unique=True)
    url = models.CharField(max_length=255)
    kind = models.CharField(max_length=32, default="", help_text="Found by asking; empty until it answered once.")
    version = models.CharField(max_length=64, default="")
    listed = models.JSONField(default=list, help_text="Its models: id, created, owned_by.")
    loaded_names = models.JSONField(default=list)
    worker = models.CharField(max_length=255, default="")
    worker_seen_at = models.DateTimeField(null=True)
    seen_at = models.DateTimeField(null=True, help_text="When it last answered.")
    paused_at = models.DateTimeField(null=True)
    pause_reason = models.TextField(default="", help_text="Why no line is sent, and what to do about it.")
    resume_at = models.DateTimeField(null=True, help_text="A pause is not lifted before.")

    FRESH = timedelta(seconds=20)

    def __str__(self) -> str:
        return self.name

    @property
    def model_names(self) -> list[str]:
        return [model["id"] for model in self.listed]

    @property
    def is_fresh(self) -> bool:
        """Its list of models can be trusted: it answered a moment ago."""
        return self.seen_at is not None and self.seen_at > timezone.now() - self.FRESH

    @property
    def is_paused(self) -> bool:
        return self.paused_at is not None

    def pause(self, reason: str, *, at_least: timedelta | None = None) -> None:
        """Send nothing more until the backend answers its worker again, and for `at_least` so long."""
        now = timezone.now()
        self._store(paused_at=now, pause_reason=reason, resume_at=now + at_least if at_least else None)

    def resume(self) -> None:
        self._store(paused_at=None, pause_reason="", resume_at=None)

    def _store(self, **values: Any) -> None:
        # The row first: where the database does not answer this is done again, from the same values.
        Backend.objects.filter(pk=self.pk).update(**values)
        for name, value in values.items():
            setattr(self, name, value)


class PausedModelQuerySet(models.QuerySet["PausedModel"]):
    def due(self) -> "PausedModelQuerySet":
        """To be tried again."""
        return self.filter(resume_at__lte=Now())


class PausedModel(models.Model):
    """A model that fails everything on a backend, at one endpoint: its lines wait, those of other models go on."""

    backend = models.ForeignKey(Backend, models.CASCADE, related_name="paused_models")
    endpoint = models.CharField(max_length=64)
    model = models.CharField(max_length=255)
    reason = models.TextField()
    since = models.DateTimeField(default=timezone.now, help_text="Failing for this reason, while the backend answers.")
    failed_trials = models.PositiveIntegerField(default=0)
    resume_at = models.DateTimeField()

    objects = PausedModelQuerySet.as_manager()

    FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=5), timedelta(minutes=5)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["backend", "endpoint", "model"], name="one_pause_a_model"),
        ]

    def __str__(self) -> str:
        return f"{self.model} at {self.endpoint}"

    @classmethod
    def pause(cls, backend: Backend, endpoint: str, model: str, reason: str, *, at_least: timedelta) -> "PausedModel":
        """Pause it, or again: for a while that doubles with each failed trial."""
        paused, _ = cls.objects.get_or_create(
            backend=backend, endpoint=endpoint, model=model, defaults={"reason": reason, "resume_at": timezone.now()}
        )
        for_ = max(at_least, min(cls.LONGEST_PAUSE, cls.FIRST_PAUSE * 2 ** min(paused.failed_trials, 10)))
        if paused.reason != reason:
            paused.reason, paused.since = reason, timezone.now()
        cls.objects.filter(pk=paused.pk).update(
            reason=reason, since=paused.since, failed_trials=F("failed_trials") + 1, resume_at=from_now(for_)
        )
        return paused

    def take(self) -> bool:
        """The right to try it again, for one of several drives; the others find it due later."""
        mine = PausedModel.objects.filter(pk=self.pk).due()
        return mine.update(resume_at=from_now(self.LONGEST_PAUSE)) == 1


class Pulse(models.Model):
    """When something that many may ask for was last done: one row, moved by whoever is first."""

    name = models.CharField(primary_key=True, max_length=64)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name

    @classmethod
    def due(cls, name: str, every: timedelta) -> bool:
        """True for one caller in each `every`, by the database's clock; the others leave it to that one."""
        if cls.objects.filter(Q(at__lte=from_now(-every)) | Q(at__gt=Now()), pk=name).update(at=Now()):
            return True
        _, created = cls.objects.get_or_create(pk=name, defaults={"at": timezone.now()})
        return created

    @classmethod
    def stamp(cls, name: str) -> None:
        cls.objects.update_or_create(pk=name, defaults={"at": timezone.now()})
