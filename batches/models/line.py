"""Line, its Response until the result files hold it, and Answers that another batch may reuse."""

from collections.abc import Iterable
from datetime import timedelta
from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.expressions import RawSQL
from django.db.models.functions import Now

from batches.models.lease import Lease
from common import database
from common.database import from_now, insert

# Longer than any backoff, of a line or of a stalled batch.
LONGEST_WAIT = timedelta(minutes=6)


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


# `Line.error_code` while a line waits to be tried alone, because the card had no room for it in company.
NO_ROOM = "no_room"


class Line(models.Model):
    """One line of the input file, and what became of it.

    The request itself stays in the input file, at `offset`; the reply is in a row of its own, a Response, until the
    result files have it. `lease` is the claim: the UPDATE that stores an answer names it, so a worker whose lease
    expired cannot write.
    """

    # No index of its own: the indexes of the two constraints begin with it.
    batch = models.ForeignKey("Batch", models.CASCADE, related_name="lines", db_index=False)
    part = models.ForeignKey("Part", models.CASCADE, related_name="lines", db_index=False)
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
    # Why it failed; of a line that is not finished, why its last answer was not used, if it waits for that reason.
    error_code = models.CharField(max_length=64, default="")
    error_message = models.TextField(default="")
    input_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    output_tokens = models.PositiveIntegerField(default=0)
    reasoning_tokens = models.PositiveIntegerField(default=0)
    duration_ms = models.PositiveIntegerField(null=True)
    finished_at = models.DateTimeField(null=True)
    # Places appear in their order up to `Counted.settled_place`: a reader that goes so far misses none below it. There
    # are gaps. A repeat has the place of its original.
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


class Response(models.Model):
    """The reply to a line, as JSON, until the result files hold it: then its row is deleted, so that SQLite uses the
    pages again. A line that was never answered has none."""

    # Lines are deleted by the million, and Django would read each of them first to delete its response with it. So
    # whoever deletes lines deletes their responses before; the constraint finds whoever forgets.
    line = models.OneToOneField(Line, models.DO_NOTHING, primary_key=True, related_name="response")
    body = models.TextField()

    def __str__(self) -> str:
        return f"response to {self.line}"

    @classmethod
    def store(cls, bodies: Iterable[tuple[int, str]]) -> None:
        """Insert the bodies of lines, given by the lines' ids; an empty body is no response."""
        if rows := [(line_id, body) for line_id, body in bodies if body]:
            insert(cls, ("line", "body"), rows)


class Answer(models.Model):
    """The answer of a line, kept for an equal line of another batch. Only with ANSWER_ONCE_ACROSS_BATCHES."""

    digest = models.CharField(primary_key=True, max_length=32)
    response = models.TextField()
    created_at = models.DateTimeField(default=database.now)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["created_at"], name="answer_oldest")]

    def __str__(self) -> str:
        return self.digest
