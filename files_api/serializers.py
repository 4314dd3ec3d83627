"""Uploads in, file objects out."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.utils import timezone
from rest_framework import serializers

from batchserver import errors
from batchserver.fields import ByteCountField, ExpiresAfterField, TextField, TextListField
from files_api.accept import accept, check_filename
from files_api.models import PURPOSES, UPLOAD_LIFETIME, File, Upload, UploadPart
from files_api.storage import MeasuredFile


class FileCreateSerializer(serializers.Serializer[File]):
    """What POST /v1/files says beside the bytes; `save(content=…)` stores both."""

    purpose = TextField(supported=PURPOSES)
    expires_after = ExpiresAfterField(required=False)

    @classmethod
    def from_form(cls, data: Any) -> "FileCreateSerializer":
        """From multipart fields, in which an object's members are named `expires_after[seconds]`."""
        fields: dict[str, Any] = {"purpose": data["purpose"]} if "purpose" in data else {}
        members = {
            key: data[f"expires_after[{key}]"] for key in ("anchor", "seconds") if f"expires_after[{key}]" in data
        }
        if members:
            fields["expires_after"] = members
        return cls(data=fields)

    def create(self, validated_data: dict[str, Any]) -> File:
        content: MeasuredFile = validated_data["content"]
        return accept(
            content,
            filename=content.name or "upload",
            purpose=validated_data["purpose"],
            lifetime=validated_data.get("expires_after"),
        )


class UploadCreateSerializer(serializers.Serializer[Upload]):
    """POST /v1/uploads. Which `mime_type` goes with a purpose is not checked: the official examples send `txt`."""

    filename = TextField()
    purpose = TextField(supported=PURPOSES)
    bytes = ByteCountField()
    mime_type = TextField()
    expires_after = ExpiresAfterField(required=False, allow_null=True)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["bytes"] > settings.MAX_FILE_BYTES:
            raise errors.too_large("bytes", settings.MAX_FILE_BYTES)
        check_filename(attrs["filename"], attrs["purpose"])
        return attrs

    def create(self, validated_data: dict[str, Any]) -> Upload:
        now = timezone.now()
        return Upload.objects.create(
            filename=validated_data["filename"],
            purpose=validated_data["purpose"],
            bytes=validated_data["bytes"],
            file_lifetime=validated_data.get("expires_after"),
            created_at=now,
            expires_at=now + UPLOAD_LIFETIME,
        )


class UploadCompleteSerializer(serializers.Serializer[Upload]):
    """POST /v1/uploads/{id}/complete."""

    part_ids = TextListField(max_length=64)
    md5 = TextField(required=False, allow_null=True, max_length=64)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


class FileSerializer(serializers.BaseSerializer[File]):
    """The file object of the OpenAI API; times are Unix seconds."""

    def to_representation(self, instance: File) -> dict[str, Any]:
        return {
            "id": instance.pk,
            "object": "file",
            "bytes": instance.bytes,
            "created_at": _seconds(instance.created_at),
            "expires_at": _seconds(instance.expires_at) if instance.expires_at else None,
            "filename": instance.filename,
            "purpose": instance.purpose,
            "status": "processed",
            "status_details": None,
        }


class UploadSerializer(serializers.BaseSerializer[Upload]):
    """The upload object; `file` is null until it is completed."""

    def to_representation(self, instance: Upload) -> dict[str, Any]:
        return {
            "id": instance.pk,
            "object": "upload",
            "bytes": instance.bytes,
            "created_at": _seconds(instance.created_at),
            "expires_at": _seconds(instance.expires_at),
            "filename": instance.filename,
            "purpose": instance.purpose,
            "status": instance.status,
            "file": FileSerializer(instance.file).data if instance.file else None,
        }


class UploadPartSerializer(serializers.BaseSerializer[UploadPart]):
    def to_representation(self, instance: UploadPart) -> dict[str, Any]:
        return {
            "id": instance.pk,
            "object": "upload.part",
            "created_at": _seconds(instance.created_at),
            "upload_id": instance.upload_id,
        }
