"""Uploads in, file objects out."""

from contextlib import AbstractContextManager
from typing import Any

from django.conf import settings
from rest_framework import serializers

from common import database, errors
from common.fields import (
    ByteCountField,
    ConstantField,
    ExpiresAfterField,
    FilePartField,
    TextField,
    TextListField,
    UnixTimeField,
)
from common.models import Owner
from files_api.accept import in_place
from files_api.models import PURPOSES, RESULTS, UPLOAD_LIFETIME, File, Upload, UploadPart
from files_api.storage import MeasuredFile
from files_api.uploads import OVER


class FileCreateSerializer(serializers.Serializer[File]):
    """POST /v1/files."""

    file = FilePartField()
    purpose = TextField(supported=PURPOSES)
    expires_after = ExpiresAfterField(required=False)

    @classmethod
    def from_form(cls, data: Any) -> "FileCreateSerializer":
        """From multipart fields, where members of an object are named `expires_after[seconds]` and numbers are text."""
        fields: dict[str, Any] = {name: data[name] for name in ("file", "purpose", "expires_after") if name in data}
        members = {
            key.removeprefix("expires_after[").removesuffix("]"): data[key]
            for key in data
            if key.startswith("expires_after[")
        }
        if members:
            text = members.get("seconds")
            if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 20:
                members["seconds"] = int(text)
            fields["expires_after"] = members
        return cls(data=fields)

    def in_place(self, owner: Owner) -> AbstractContextManager[File]:
        """As `accept.in_place`."""
        content: MeasuredFile = self.validated_data["file"]
        return in_place(
            content,
            owner=owner,
            filename=content.name or "upload",
            purpose=self.validated_data["purpose"],
            lifetime=self.validated_data.get("expires_after"),
        )


class UploadCreateSerializer(serializers.Serializer[Upload]):
    """POST /v1/uploads. Whether `mime_type` goes with the purpose is not checked: the official examples send `txt`.
    `save` is given the owner."""

    filename = TextField()
    purpose = TextField(supported=PURPOSES)
    bytes = ByteCountField()
    mime_type = TextField()
    expires_after = ExpiresAfterField(required=False, allow_null=True)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["bytes"] > settings.MAX_FILE_BYTES:
            raise errors.too_large("bytes", settings.MAX_FILE_BYTES)
        return attrs

    def create(self, validated_data: dict[str, Any]) -> Upload:
        now = database.now()
        return Upload.objects.create(
            owner=validated_data["owner"],
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


class FileSerializer(serializers.Serializer[File]):
    """The file object of the OpenAI API; times are Unix seconds."""

    id = serializers.CharField()
    object = ConstantField("file")
    bytes = serializers.IntegerField()
    created_at = UnixTimeField()
    expires_at = UnixTimeField(allow_null=True)
    filename = serializers.CharField()
    purpose = TextField(supported=[*PURPOSES, RESULTS])
    status = ConstantField("processed")
    status_details = ConstantField(None)


class FileDeletedSerializer(serializers.Serializer[File]):
    id = serializers.CharField()
    object = ConstantField("file")
    deleted = ConstantField(True)


class UploadSerializer(serializers.Serializer[Upload]):
    """The upload object; `file` is null until it is completed."""

    id = serializers.CharField()
    object = ConstantField("upload")
    bytes = serializers.IntegerField()
    created_at = UnixTimeField()
    expires_at = UnixTimeField()
    filename = serializers.CharField()
    purpose = TextField(supported=PURPOSES)
    status = TextField(supported=["pending", *OVER])
    file = FileSerializer(allow_null=True)


class UploadPartSerializer(serializers.Serializer[UploadPart]):
    id = serializers.CharField()
    object = ConstantField("upload.part")
    created_at = UnixTimeField()
    upload_id = serializers.CharField()
