"""File: bytes with an id, and Upload: a File that comes in upload parts. Nothing here knows batches: a hold keeps the
bytes of a file that is still needed."""

from datetime import timedelta
from typing import ClassVar

from django.db import models, transaction
from django.db.models import Exists, OuterRef, Q

from common import database, ids
from common.models import owner_field

PURPOSES = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
RESULTS = "batch_output"  # made by us, never uploaded
NOT_DOWNLOADABLE = ["assistants", "user_data"]


class FileQuerySet(models.QuerySet["File"]):
    def visible(self) -> "FileQuerySet":
        """Neither deleted nor expired: what the API shows."""
        return self.filter(deleted_at=None).exclude(expires_at__lte=database.now())

    def discardable(self, *, but_for: str = "") -> "FileQuerySet":
        """Hidden files that still have bytes, which no hold keeps but those of `but_for`."""
        hidden = Q(deleted_at__isnull=False) | Q(expires_at__lte=database.now())
        # Not a join: Postgres does not lock rows of an outer join.
        held = FileHold.objects.filter(file=OuterRef("pk")).exclude(holder=but_for)
        return self.filter(hidden).exclude(content="").exclude(Exists(held))

    def hold(self, file_id: str, holder: str) -> bool:
        """Keep a visible file's bytes until `release(holder)`, even if it is deleted meanwhile. False: no such file.

        Call it inside a transaction. Safe to run twice.
        """
        file = self.visible().select_for_update().filter(pk=file_id).first()
        if file is None:
            return False
        FileHold.objects.get_or_create(file=file, holder=holder)
        return True

    def held(self, file_id: str, holder: str) -> "File | None":
        """The file that `holder` holds, hidden or not."""
        return self.filter(pk=file_id, holds__holder=holder).first()


def stored_name(file: "File", filename: str) -> str:
    """Where a file's bytes live below the storage's root: made from its id, never from the client's name.

    `filename` comes from our own code, by `content.save`: empty, or a suffix that tells two writers apart.
    """
    return f"{file.pk[5:7]}/{file.pk}{filename}"


def row_id(name: str) -> str:
    """The id of the file or upload part whose bytes have this name."""
    return name.rpartition("/")[2].partition(".")[0]


class File(models.Model):
    """A stored file. Deleting or expiring hides it at once; its bytes are removed when the last hold is released."""

    id = models.CharField(primary_key=True, max_length=64, default=ids.new_file_id, editable=False)
    owner = owner_field()
    filename = models.CharField(max_length=255, help_text="As the client named it; shown, never used as a path.")
    purpose = models.CharField(max_length=32)
    bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    content = models.FileField(upload_to=stored_name, max_length=255)
    created_at = models.DateTimeField(default=database.now)
    expires_at = models.DateTimeField(null=True, blank=True)
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects = FileQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["created_at", "id"], name="file_newest"),
            models.Index(fields=["owner", "created_at", "id"], name="file_newest_of_owner"),
        ]

    def __str__(self) -> str:
        return self.id

    @property
    def is_visible(self) -> bool:
        return self.deleted_at is None and (self.expires_at is None or self.expires_at > database.now())

    def hide(self) -> None:
        """Hide the file from the API, and remove its bytes unless a hold keeps them."""
        File.objects.filter(pk=self.pk, deleted_at=None).update(deleted_at=database.now())
        self.discard()

    def discard(self, *, but_for: str = "") -> bool:
        """Remove the bytes of a hidden file; False if a hold keeps them, but one of `but_for`. Safe to run twice.
        Raises OSError."""
        with transaction.atomic():
            # The lock waits for whoever is just taking a hold. A hidden file gets no new one.
            file = File.objects.select_for_update().filter(pk=self.pk).discardable(but_for=but_for).first()
        if file is None:
            return False
        # Behind the transaction: a storage may take its time, and others wait for the lock.
        file.content.delete(save=False)
        File.objects.filter(pk=self.pk).update(content="")
        return True


class FileHold(models.Model):
    """`holder` (the id of a batch, for instance) still needs the bytes of a file."""

    file = models.ForeignKey(File, on_delete=models.CASCADE, related_name="holds")
    holder = models.CharField(max_length=64, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["file", "holder"], name="one_hold_each")]

    def __str__(self) -> str:
        return f"{self.file_id} held by {self.holder}"


UPLOAD_LIFETIME = timedelta(hours=1)


class Upload(models.Model):
    """A file that arrives in parts: pending for an hour, until it is completed or cancelled."""

    id = models.CharField(primary_key=True, max_length=64, default=ids.new_upload_id, editable=False)
    owner = owner_field()
    filename = models.CharField(max_length=255)
    purpose = models.CharField(max_length=32)
    bytes = models.BigIntegerField(help_text="As announced; the parts have to have so many together.")
    file_lifetime = models.DurationField(null=True, blank=True, help_text="Of the File, from its creation.")
    created_at = models.DateTimeField(default=database.now)
    expires_at = models.DateTimeField()
    cancelled_at = models.DateTimeField(null=True)
    file = models.ForeignKey(File, models.SET_NULL, null=True, related_name="+")
    joined_part_ids = models.JSONField(default=list, help_text="The parts that the File was made of, in order.")

    def __str__(self) -> str:
        return self.id

    @property
    def status(self) -> str:
        if self.file_id is not None:
            return "completed"
        if self.cancelled_at is not None:
            return "cancelled"
        return "expired" if self.expires_at <= database.now() else "pending"


class UploadPartQuerySet(models.QuerySet["UploadPart"]):
    def discardable(self) -> "UploadPartQuerySet":
        """Parts of uploads that are over; those of expired ones after UPLOAD_LIFETIME, as they may just be joined."""
        over = Q(upload__file__isnull=False) | Q(upload__cancelled_at__isnull=False)
        return self.filter(over | Q(upload__expires_at__lte=database.now() - UPLOAD_LIFETIME))


def stored_part_name(part: "UploadPart", filename: str) -> str:
    """Where the bytes live: beside the directories of files, whose names have two characters each."""
    return f"parts/{part.pk}"


class UploadPart(models.Model):
    """A piece of an upload, with its bytes in place. It has no number: completing the upload gives the order."""

    id = models.CharField(primary_key=True, max_length=64, default=ids.new_part_id, editable=False)
    upload = models.ForeignKey(Upload, models.CASCADE, related_name="parts")
    bytes = models.BigIntegerField()
    content = models.FileField(upload_to=stored_part_name, max_length=255)
    created_at = models.DateTimeField(default=database.now)

    objects = UploadPartQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.id} of {self.upload_id}"


class Storage(models.Model):
    """The storage in which the bytes of all rows lie, in one row. The storage has the same mark in an object of its
    own (`files_api/storage_id.py`)."""

    THE_ONE = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=THE_ONE, editable=False)
    mark = models.CharField(max_length=64)
    seen_at = models.DateTimeField(null=True, help_text="When a process last said that it works with it.")

    def __str__(self) -> str:
        return self.mark
