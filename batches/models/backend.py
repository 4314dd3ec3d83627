"""Backend, and what keeps lines from it: its pause, the pause of one model, a hold."""

import re
from datetime import timedelta
from typing import Any, ClassVar

from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now

from batches import backends
from batches.models.lease import Lease
from common import database
from common.database import Asked, from_now

WORKER_MISSING_AFTER = timedelta(seconds=30)


class BackendQuerySet(models.QuerySet["Backend"]):
    def live(self) -> "BackendQuerySet":
        """Backends whose workers reported lately, whether or not the backends answered."""
        return self.filter(worker_seen_at__gt=database.now() - WORKER_MISSING_AFTER)


class Backend(models.Model):
    """A model server as its worker last saw it. Its workers share its concurrency limit, loaded model and pause."""

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
    loaded_model = models.CharField(max_length=255, default="", help_text="Made ready by its drives.")
    parallel = models.PositiveIntegerField(null=True, help_text="Calls that it serves at once, if it says so.")
    counted_slots = models.PositiveIntegerField(
        null=True, help_text="Calls of its loaded model that it serves at once, counted because it does not say so."
    )
    concurrency_limit = models.PositiveIntegerField(
        default=0, help_text="Calls in flight, of all its drives; 0: not known yet."
    )
    share_had = models.FloatField(
        null=True, help_text="Of the last ten minutes in which persons could keep lines back, the part that lines had."
    )
    alone = models.ForeignKey(
        Lease,
        models.DO_NOTHING,
        db_constraint=False,
        null=True,
        related_name="+",
        help_text="The drive that has it to itself: to load another model, or to try a line that may bring it down.",
    )

    objects = BackendQuerySet.as_manager()

    FRESH = timedelta(seconds=20)

    def __str__(self) -> str:
        return self.name

    @property
    def model_names(self) -> list[str]:
        return [model["id"] for model in self.listed]

    def listed_name(self, name: str) -> str:
        """The name by which the backend listed the model when it was last asked; empty if it did not list it."""
        return backends.listed_name(self.kind, self.model_names, name) if self.kind else ""

    def has_model(self, name: str) -> bool:
        """Whether the backend listed the model when it was last asked."""
        return self.listed_name(name) != ""

    def base_of(self, model: str) -> str:
        """The same text for models that are loaded together, since they have one set of weights: a model, the LoRA
        modules that change it, and other names of it. Of a model that the backend does not list, its name."""
        listed = {each["id"]: each for each in self.listed}
        entry = listed.get(self.listed_name(model), {})
        if parent := entry.get("parent"):
            entry = listed.get(parent, {"id": parent})
        return str(entry.get("root") or entry.get("id") or model)

    def missing_model_hint(self, model: str, endpoint: str = "") -> str:
        """What to type so that the backend answers lines for a model that it does not list."""
        return backends.missing_model_hint(self.kind, model, self.model_names, endpoint=endpoint)

    @property
    def is_fresh(self) -> bool:
        """Whether the list of models can be trusted: the backend answered within FRESH."""
        return self.seen_at is not None and self.seen_at > database.now() - self.FRESH

    @property
    def is_paused(self) -> bool:
        return self.paused_at is not None

    def pause(self, reason: str, *, at_least: timedelta | None = None) -> None:
        """Send nothing more until the backend answers its worker again, and not before `at_least` is over."""
        now = database.now()
        self._store(paused_at=now, pause_reason=reason, resume_at=now + at_least if at_least else None)

    def resume(self) -> None:
        self._store(paused_at=None, pause_reason="", resume_at=None)

    def read_again(self) -> None:
        """What `refresh_from_db` does, at a third of its CPU time: each drive does it each second. Raises
        DoesNotExist."""
        found = list(Backend.objects.raw("SELECT * FROM batches_backend WHERE id = %s", [self.pk]))
        if not found:
            raise Backend.DoesNotExist(f"There is no backend {self.pk} any more.")
        for field in self._meta.concrete_fields:
            setattr(self, field.attname, getattr(found[0], field.attname))

    @property
    def serves_at_once(self) -> int | None:
        """How many calls the backend computes at once: as it says, or else as counted; None if nobody knows."""
        return self.parallel or self.counted_slots

    def now_has_loaded(self, model: str) -> None:
        """Note the model that the drives send lines of; empty: unknown, so a model is loaded before the next line.

        Each model has slots of its own, and a server that was started again may give it others.
        """
        if self.loaded_model != model:
            self._store(loaded_model=model, counted_slots=None)

    def has_counted_slots(self, slots: int) -> None:
        self._store(counted_slots=slots)

    def set_share_had(self, share: float | None) -> None:
        self._store(share_had=share)

    def set_concurrency_limit(self, size: int) -> None:
        self._store(concurrency_limit=size)

    def _store(self, **values: Any) -> None:
        # The row first: if the database does not answer, the caller tries again from the same values.
        Backend.objects.filter(pk=self.pk).update(**values)
        for name, value in values.items():
            setattr(self, name, value)


def _complaint(reason: str) -> str:
    # A server's own words name the memory that is free, a port or a process, each time another one.
    return re.sub(r"\d+(\.\d+)?", "#", reason.partition(". ")[0])


class PausedModelQuerySet(models.QuerySet["PausedModel"]):
    def due(self) -> "PausedModelQuerySet":
        """Paused models whose trial is due."""
        return self.filter(resume_at__lte=Now())


class PausedModel(models.Model):
    """A model that fails everything on a backend, at one endpoint: its lines wait, and lines of other models go on."""

    backend = models.ForeignKey(Backend, models.CASCADE, related_name="paused_models")
    endpoint = models.CharField(max_length=64)
    model = models.CharField(max_length=255)
    reason = models.TextField()
    since = models.DateTimeField(default=database.now, help_text="Failing for this reason, while the backend answers.")
    failed_trials = models.PositiveIntegerField(default=0)
    resume_at = models.DateTimeField()

    objects = PausedModelQuerySet.as_manager()

    SHORTEST_PAUSE, FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=1), timedelta(seconds=5), timedelta(minutes=5)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["backend", "endpoint", "model"], name="one_pause_a_model"),
        ]

    def __str__(self) -> str:
        return f"{self.model} at {self.endpoint}"

    @classmethod
    def pause(
        cls,
        backend: Backend,
        endpoint: str,
        model: str,
        reason: str,
        *,
        at_least: timedelta,
        patience: timedelta | None = None,
    ) -> "PausedModel":
        """Pause the model, or prolong its pause: FIRST_PAUSE, doubled with each failed trial, LONGEST_PAUSE at most.

        It does not last beyond the `patience`, counted from the first pause for this reason. The first sentence of a
        reason says what is wrong, the others what to do. Its numbers are not compared.
        """
        paused, _ = cls.objects.get_or_create(
            backend=backend, endpoint=endpoint, model=model, defaults={"reason": reason, "resume_at": database.now()}
        )
        for_ = max(at_least, min(cls.LONGEST_PAUSE, cls.FIRST_PAUSE * 2 ** min(paused.failed_trials, 10)))
        if _complaint(paused.reason) != _complaint(reason):
            paused.since = database.now()
        paused.reason = reason
        if patience is not None:
            for_ = min(for_, max(cls.SHORTEST_PAUSE, paused.since + patience - database.now()))
        cls.objects.filter(pk=paused.pk).update(
            reason=reason, since=paused.since, failed_trials=F("failed_trials") + 1, resume_at=from_now(for_)
        )
        return paused

    def take(self) -> bool:
        """Take the right to a trial of the model; True for one of several drives, the others find it due later."""
        mine = PausedModel.objects.filter(pk=self.pk).due()
        return mine.update(resume_at=from_now(self.LONGEST_PAUSE)) == 1


# Whether any model is paused on any backend.
ANY_PAUSED_MODEL = Asked(lambda: PausedModel.objects.all())


class HoldQuerySet(models.QuerySet["Hold"]):
    def active(self) -> "HoldQuerySet":
        return self.filter(Q(until=None) | Q(until__gt=Now()))

    def of(self, backend: Backend) -> "HoldQuerySet":
        """Active holds that concern this backend."""
        return self.active().filter(Q(backend=None) | Q(backend=backend))


class Hold(models.Model):
    """While a hold is active no new line is sent, or, if its reason is a share, lines are sent in spite of others."""

    class Reason(models.TextChoices):
        PERSON = "person"  # a person's request is at the backend
        AFTER_PERSON = "after_person"  # it was, a moment ago
        OTHERS = "others"  # somebody uses the backend without us
        PAUSED = "paused"  # an operator paused all
        SHARE = "share"  # lines are sent beside persons' requests
        SHARE_BETWEEN = "share_between"  # lines are sent between persons' requests

    backend = models.ForeignKey(Backend, models.CASCADE, null=True, related_name="holds", help_text="Empty: all.")
    reason = models.CharField(max_length=16, choices=Reason.choices)
    created_at = models.DateTimeField(default=database.now)
    until = models.DateTimeField(null=True, help_text="Renewed while it lasts; empty: until it is removed.")
    model = models.CharField(max_length=255, default="", blank=True, help_text="What others use.")

    objects = HoldQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["until"], name="hold_until")]

    def __str__(self) -> str:
        return self.reason


class ModelUse(models.Model):
    """When a model was last used by us, for lines, for persons or for our own questions: other use is by others."""

    backend = models.ForeignKey(Backend, models.CASCADE, related_name="model_uses")
    model = models.CharField(max_length=255, help_text="The same text for all names of one model.")
    at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["backend", "model"], name="one_use_a_model")]

    def __str__(self) -> str:
        return self.model
