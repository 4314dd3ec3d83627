"""A file upload in, a file object out."""

import json
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.utils import timezone
from rest_framework import serializers

from batchserver import errors
from batchserver.errors import ApiError
from batchserver.fields import ExpiresAfterField, TextField
from files_api.models import PURPOSES, File
from files_api.uploads import MeasuredFile

BATCH_FILE_LIFETIME = timedelta(days=30)


class UploadField(serializers.Field[MeasuredFile, Any, Any, Any]):
    def to_internal_value(self, data: Any) -> MeasuredFile:
        if not isinstance(data, MeasuredFile):
            raise errors.invalid_type("file", "a file", data)
        return data


class FileUploadSerializer(serializers.Serializer[File]):
    """POST /v1/files. A batch file has to be named *.jsonl or have no extension (the SDKs name raw bytes `upload`), and
    its first line has to be JSON; the other lines are read when a batch is created from it."""

    file = UploadField()
    purpose = TextField(supported=PURPOSES)
    expires_after = ExpiresAfterField(required=False)

    @classmethod
    def from_form(cls, data: Any) -> "FileUploadSerializer":
        """From multipart fields, in which an object's members are named `expires_after[seconds]`."""
        fields: dict[str, Any] = {key: data[key] for key in ("file", "purpose") if key in data}
        members = {
            key: data[f"expires_after[{key}]"] for key in ("anchor", "seconds") if f"expires_after[{key}]" in data
        }
        if members:
            fields["expires_after"] = members
        return cls(data=fields)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["purpose"] == "batch":
            _check_batch_file(attrs["file"])
        return attrs

    @property
    def asked(self) -> tuple[object, ...]:
        """All that was asked for: equal for two uploads that mean the same."""
        data = self.validated_data
        return data["file"].sha256, data["file"].name, data["purpose"], data.get("expires_after")

    def create(self, validated_data: dict[str, Any]) -> File:
        upload: MeasuredFile = validated_data["file"]
        now = timezone.now()
        lifetime = validated_data.get("expires_after")
        if lifetime is None and validated_data["purpose"] == "batch":
            lifetime = BATCH_FILE_LIFETIME
        file = File(
            filename=upload.name or "upload",
            purpose=validated_data["purpose"],
            bytes=upload.size or 0,
            sha256=upload.sha256,
            created_at=now,
            expires_at=now + lifetime if lifetime else None,
        )
        # The bytes are in place and fsynced before the row that points at them is committed.
        file.content.save("", upload, save=False)
        try:
            file.save(force_insert=True)
        except DatabaseError:
            file.content.delete(save=False)
            raise
        return file


def _check_batch_file(file: MeasuredFile) -> None:
    refusal = ApiError("Invalid file format for Batch API. Must be .jsonl")
    stem, dot, extension = (file.name or "").rpartition(".")
    if dot and stem and extension.lower() != "jsonl":
        raise refusal
    first = file.readline(settings.MAX_LINE_BYTES + 1)
    file.seek(0)
    if len(first) > settings.MAX_LINE_BYTES:
        return  # validation names the over-long line
    try:
        json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ApiError(
            "Invalid file format for Batch API. The first line is not valid JSON; the file must be .jsonl, one JSON "
            "object on each line."
        ) from None


class FileSerializer(serializers.BaseSerializer[File]):
    """The file object of the OpenAI API; times are Unix seconds."""

    def to_representation(self, instance: File) -> dict[str, Any]:
        return {
            "id": instance.pk,
            "object": "file",
            "bytes": instance.bytes,
            "created_at": int(instance.created_at.timestamp()),
            "expires_at": int(instance.expires_at.timestamp()) if instance.expires_at else None,
            "filename": instance.filename,
            "purpose": instance.purpose,
            "status": "processed",
            "status_details": None,
        }
