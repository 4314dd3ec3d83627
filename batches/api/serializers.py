"""A batch request in, the batch object of the OpenAI API out: every key is always there, times are Unix seconds."""

import re
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone
from drf_spectacular.utils import extend_schema_serializer
from rest_framework import serializers

from batches.lines.jsonl import ENDPOINTS
from batches.models import Batch, Part, Priority, Status
from batches.status.progress import Progress
from common import errors
from common.errors import ApiError
from common.fields import ApiField, ConstantField, ExpiresAfterField, TextField, UnixTimeField, text_schema
from common.strict_json import is_storable
from files_api.models import File

LONGEST_WINDOW = timedelta(days=30)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_WINDOW = "([1-9][0-9]{0,5})([mhd])"


class CompletionWindowField(TextField):
    """OpenAI's `24h`, or `<n>m`, `<n>h` or `<n>d` up to 30 days: 170,000 lines take a home GPU days."""

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": f"^{_WINDOW}$",
            "description": "Minutes, hours or days, up to 30 days.",
            "examples": ["24h", "90m", "7d"],
        }

    def to_internal_value(self, data: Any) -> str:
        window = super().to_internal_value(data)
        if window_length(window) is None:
            raise ApiError(
                f"Invalid value: '{window}'. Supported values are: '24h', and a number of minutes, hours or days up "
                "to 30 days, such as '90m' or '7d'.",
                param="completion_window",
                code="invalid_value",
            )
        return window


class FileIdField(TextField):
    """The id of a file. White space and a BOM around it are what a file that it was read from, or a shell, left."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": self.max_length, "pattern": "^[!-~]+$"}

    def to_internal_value(self, data: Any) -> str:
        name = str(self.field_name)
        file_id = super().to_internal_value(data.strip().strip("\ufeff").strip() if isinstance(data, str) else data)
        if not file_id or any(letter.isspace() for letter in file_id):
            problem = "holds white space" if file_id else "is empty"
            raise ApiError(
                f"Invalid '{name}': '{file_id}' {problem}. Expected the id of an uploaded file, such as 'file-abc123'.",
                param=name,
                code="invalid_value",
            )
        return file_id


def window_length(window: str) -> timedelta | None:
    match = re.fullmatch(_WINDOW, window)
    if match is None:
        return None
    length = timedelta(**{_UNITS[match[2]]: int(match[1])})
    return length if length <= LONGEST_WINDOW else None


def priority(metadata: dict[str, str] | None) -> Priority:
    """The priority that `metadata.priority` names; any other value is plain metadata."""
    named = {"low": Priority.LOW, "high": Priority.HIGH}
    return named.get((metadata or {}).get("priority", ""), Priority.NORMAL)


class MetadataField(ApiField[dict[str, str], Any]):
    """At most 16 pairs of strings, refused in OpenAI's words."""

    MOST_PAIRS, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "maxProperties": self.MOST_PAIRS,
            "propertyNames": text_schema(self.LONGEST_KEY),
            "additionalProperties": text_schema(self.LONGEST_VALUE),
        }

    def to_internal_value(self, data: Any) -> dict[str, str]:
        if not isinstance(data, dict):
            raise errors.invalid_type("metadata", "a metadata object", data)
        if len(data) > self.MOST_PAIRS:
            raise ApiError(
                "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an "
                f"object with {len(data)} properties instead.",
                param="metadata",
                code="object_above_max_properties",
            )
        for key, value in data.items():
            if len(key) > self.LONGEST_KEY:
                raise ApiError(
                    f"Invalid property name in 'metadata': '{key[:3]}...{key[-3:]}' is too long. Expected a string "
                    f"with maximum length 64, but got a string with length {len(key)} instead.",
                    param=f"metadata.{key}",
                    code="property_name_above_max_length",
                )
            if not isinstance(value, str):
                raise errors.invalid_type(f"metadata.{key}", "a string", value)
            if len(value) > self.LONGEST_VALUE:
                raise errors.too_long(f"metadata.{key}", value, self.LONGEST_VALUE)
            if not is_storable(key + value):
                raise errors.not_storable("metadata")
        return data

    def to_representation(self, value: dict[str, str]) -> dict[str, str]:
        return value


class BatchCreateSerializer(serializers.Serializer[Batch]):
    """POST /v1/batches. Validation finds whether the input file exists and is good, as with OpenAI."""

    input_file_id = FileIdField(max_length=64)
    endpoint = TextField(supported=ENDPOINTS)
    completion_window = CompletionWindowField()
    metadata = MetadataField(required=False, allow_null=True)
    output_expires_after = ExpiresAfterField(required=False, allow_null=True)

    def create(self, validated_data: dict[str, Any]) -> Batch:
        window = validated_data["completion_window"]
        metadata = validated_data.get("metadata")
        now = timezone.now()
        with transaction.atomic():
            batch = Batch.objects.create(
                input_file_id=validated_data["input_file_id"],
                endpoint=validated_data["endpoint"],
                completion_window=window,
                metadata=metadata,
                priority=priority(metadata),
                output_lifetime=validated_data.get("output_expires_after"),
                created_at=now,
                expires_at=now + (window_length(window) or LONGEST_WINDOW),
                nudged_at=now,  # its first message is sent at the commit
            )
            File.objects.all().hold(batch.input_file_id, batch.pk)
        return batch


class BatchErrorSerializer(serializers.Serializer[dict[str, Any]]):
    code = serializers.CharField()
    message = serializers.CharField()
    param = serializers.CharField(allow_null=True)
    line = serializers.IntegerField(allow_null=True)


class BatchErrorsSerializer(serializers.Serializer[Batch]):
    """Null unless validation has failed."""

    object = ConstantField("list")
    data = BatchErrorSerializer(many=True, source="errors")  # type: ignore[assignment]  # a field, which the metaclass removes from the class

    def get_attribute(self, instance: Batch) -> Batch | None:
        return instance if instance.status == Status.FAILED else None


class RequestCountsSerializer(serializers.Serializer[Batch]):
    total = serializers.IntegerField()
    completed = serializers.IntegerField()
    failed = serializers.IntegerField()


class InputTokensDetailsSerializer(serializers.Serializer[Batch]):
    cached_tokens = serializers.IntegerField()


class OutputTokensDetailsSerializer(serializers.Serializer[Batch]):
    reasoning_tokens = serializers.IntegerField()


class UsageSerializer(serializers.Serializer[Batch]):
    input_tokens = serializers.IntegerField()
    input_tokens_details = InputTokensDetailsSerializer(source="*")
    output_tokens = serializers.IntegerField()
    output_tokens_details = OutputTokensDetailsSerializer(source="*")
    total_tokens = serializers.IntegerField()


class BatchSerializer(serializers.Serializer[Batch]):
    id = serializers.CharField()
    object = ConstantField("batch")
    endpoint = TextField(supported=ENDPOINTS)
    model = serializers.CharField(allow_null=True)
    errors = BatchErrorsSerializer(allow_null=True)  # type: ignore[assignment]  # as above
    input_file_id = serializers.CharField()
    completion_window = serializers.CharField()
    status = TextField(supported=Status.values)
    output_file_id = serializers.CharField(allow_null=True)
    error_file_id = serializers.CharField(allow_null=True)
    created_at = UnixTimeField()
    in_progress_at = UnixTimeField(allow_null=True)
    expires_at = UnixTimeField()
    finalizing_at = UnixTimeField(allow_null=True)
    completed_at = UnixTimeField(allow_null=True)
    failed_at = UnixTimeField(allow_null=True)
    expired_at = UnixTimeField(allow_null=True)
    cancelling_at = UnixTimeField(allow_null=True)
    cancelled_at = UnixTimeField(allow_null=True)
    request_counts = RequestCountsSerializer(source="*")
    usage = UsageSerializer(source="*")
    metadata = MetadataField(allow_null=True)


class AllPausedSerializer(serializers.Serializer[dict[str, Any]]):
    object = ConstantField("batches.pause")
    paused = serializers.BooleanField()
    paused_at = UnixTimeField(allow_null=True)


class WarningSerializer(serializers.Serializer[dict[str, Any]]):
    code = serializers.CharField()
    message = serializers.CharField()


class ContextSerializer(serializers.Serializer[Part]):
    """A context that was chosen for the lines of one model, since they need more than the model has."""

    model = serializers.CharField()
    context_tokens = serializers.IntegerField(source="fitted_tokens")
    reason = serializers.CharField(source="fit_reason")


class ProgressSerializer(serializers.Serializer[Progress]):
    id = serializers.CharField(source="batch.id")
    object = ConstantField("batch.progress")
    status = TextField(supported=Status.values, source="batch.status")
    request_counts = RequestCountsSerializer(source="batch")
    lines_open = serializers.IntegerField()
    waiting_for = serializers.CharField(allow_null=True)
    warnings = WarningSerializer(many=True, source="batch.warnings")
    contexts = ContextSerializer(many=True)
    usage = UsageSerializer(source="batch")
    lines_per_minute = serializers.FloatField(allow_null=True)
    tokens_per_second = serializers.FloatField(allow_null=True)
    estimated_end = UnixTimeField(allow_null=True)
    estimated_from = serializers.CharField(allow_null=True)


@extend_schema_serializer(component_name="Model")
class ModelObjectSerializer(serializers.Serializer[dict[str, Any]]):
    id = serializers.CharField()
    object = ConstantField("model")
    created = serializers.IntegerField()
    owned_by = serializers.CharField()


@extend_schema_serializer(many=False)
class ModelListSerializer(serializers.Serializer[dict[str, Any]]):
    object = ConstantField("list")
    data = ModelObjectSerializer(many=True)  # type: ignore[assignment]  # as above
