"""A batch request in, the batch object of the OpenAI API out: every key is always there, times are Unix seconds."""

from typing import Any

from drf_spectacular.utils import extend_schema_serializer
from rest_framework import serializers

from batches import creation, retry
from batches.following import early_id
from batches.lines.jsonl import ENDPOINTS
from batches.models import Batch, Part, Priority, Status
from batches.status import reasons
from batches.status.progress import Progress
from common import errors
from common.errors import ApiError
from common.fields import ApiField, ConstantField, ExpiresAfterField, TextField, UnixTimeField, text_schema
from common.strict_json import is_storable


class CompletionWindowField(TextField):
    """OpenAI's `24h`, or `<n>m`, `<n>h` or `<n>d` up to 30 days: 170,000 lines take a home GPU days."""

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": f"^{creation.WINDOW}$",
            "description": "Minutes, hours or days, up to 30 days.",
            "examples": ["24h", "90m", "7d"],
        }

    def to_internal_value(self, data: Any) -> str:
        window = super().to_internal_value(data)
        if creation.window_length(window) is None:
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
    """POST /v1/batches. Validation finds whether the input file exists and is good, as with OpenAI. `save` is given the
    owner."""

    input_file_id = FileIdField(max_length=64)
    endpoint = TextField(supported=ENDPOINTS)
    completion_window = CompletionWindowField()
    metadata = MetadataField(required=False, allow_null=True)
    output_expires_after = ExpiresAfterField(required=False, allow_null=True)

    def create(self, validated_data: dict[str, Any]) -> Batch:
        metadata = validated_data.get("metadata")
        return creation.create(
            owner=validated_data["owner"],
            input_file_id=validated_data["input_file_id"],
            endpoint=validated_data["endpoint"],
            completion_window=validated_data["completion_window"],
            metadata=metadata,
            output_lifetime=validated_data.get("output_expires_after"),
            priority=creation.priority(metadata),
        )


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
    # A member of our own, of a retry alone: the batch whose lines it asks again.
    retry_of = serializers.CharField(source="retry_of_id", required=False)

    def to_representation(self, instance: Batch) -> dict[str, Any]:
        told = super().to_representation(instance)
        if instance.retry_of_id is None:
            del told["retry_of"]
        told["output_file_id"] = told["output_file_id"] or early_id(instance, "output")
        told["error_file_id"] = told["error_file_id"] or early_id(instance, "errors")
        return told


class ExtendSerializer(serializers.Serializer[dict[str, Any]]):
    completion_window = CompletionWindowField()


class PriorityField(ApiField[Priority, int]):
    def json_schema(self) -> dict[str, Any]:
        return {"type": "integer", "enum": Priority.values}

    def to_internal_value(self, data: Any) -> Priority:
        if type(data) is not int:
            raise errors.invalid_type("priority", "an integer", data)
        if data not in Priority.values:
            raise errors.invalid_value("priority", data, [str(each) for each in Priority.values])
        return Priority(data)

    def to_representation(self, value: Priority) -> int:
        return int(value)


class PrioritySerializer(serializers.Serializer[dict[str, Any]]):
    priority = PriorityField()


class CodesField(ApiField[list[str], Any]):
    """A list of codes as `/reasons` tells them."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "string"}}

    def to_internal_value(self, data: Any) -> list[str]:
        if not isinstance(data, list):
            raise errors.invalid_type("codes", "an array", data)
        for each in data:
            if not isinstance(each, str):
                raise errors.invalid_type("codes", "an array of strings", each)
            if not is_storable(each):
                raise errors.not_storable("codes")
        return data

    def to_representation(self, value: list[str]) -> list[str]:
        return value


class RetrySerializer(serializers.Serializer[dict[str, Any]]):
    """POST /v1/batches/{id}/retry; what is left out is as in the parent."""

    errors = TextField(supported=retry.ERRORS, required=False)  # type: ignore[assignment]  # as above
    codes = CodesField(required=False)
    model = TextField(max_length=255, required=False)
    completion_window = CompletionWindowField(required=False)
    metadata = MetadataField(required=False)


class ReasonSerializer(serializers.Serializer[reasons.Reason]):
    code = serializers.CharField()
    message = serializers.CharField()
    count = serializers.IntegerField()
    first = serializers.ListField(child=serializers.CharField())


@extend_schema_serializer(many=False)
class ReasonListSerializer(serializers.Serializer[dict[str, Any]]):
    object = ConstantField("list")
    data = ReasonSerializer(many=True)  # type: ignore[assignment]  # as above


class BatchDeletedSerializer(serializers.Serializer[dict[str, Any]]):
    id = serializers.CharField()
    object = ConstantField("batch")
    deleted = ConstantField(True)


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
    warnings = WarningSerializer(many=True)
    contexts = ContextSerializer(many=True)
    usage = UsageSerializer(source="batch")
    lines_per_minute = serializers.FloatField(allow_null=True)
    tokens_per_second = serializers.FloatField(allow_null=True)
    estimated_end = UnixTimeField(allow_null=True)
    estimated_from = serializers.CharField(allow_null=True)
    expires_at = UnixTimeField(source="batch.expires_at")
    disk_needed_bytes = serializers.IntegerField(source="disk.needed_bytes", allow_null=True)
    disk_free_bytes = serializers.IntegerField(source="disk.free_bytes", allow_null=True)


@extend_schema_serializer(component_name="Model")
class ModelObjectSerializer(serializers.Serializer[dict[str, Any]]):
    id = serializers.CharField()
    object = ConstantField("model")
    created = serializers.IntegerField()
    owned_by = serializers.CharField()
    # A member of our own, if it is asked for.
    context_tokens = serializers.IntegerField(required=False, allow_null=True)

    def to_representation(self, instance: dict[str, Any]) -> dict[str, Any]:
        told = super().to_representation(instance)
        if "context_tokens" not in instance:
            del told["context_tokens"]
        return told


@extend_schema_serializer(many=False)
class ModelListSerializer(serializers.Serializer[dict[str, Any]]):
    object = ConstantField("list")
    data = ModelObjectSerializer(many=True)  # type: ignore[assignment]  # as above
