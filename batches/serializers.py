"""A batch request in, the batch object of the OpenAI API out: every key always there, times in Unix seconds."""

import re
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone
from rest_framework import serializers

from batches.jsonl import ENDPOINTS
from batches.models import Batch, Status
from batchserver import errors
from batchserver.errors import ApiError
from batchserver.fields import ExpiresAfterField, TextField
from batchserver.strict_json import is_storable
from files_api.models import File

LONGEST_WINDOW = timedelta(days=30)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class CompletionWindowField(TextField):
    """OpenAI's `24h`, and beyond it `<n>m`, `<n>h` or `<n>d` up to 30 days: 170,000 lines take a home GPU days."""

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


def window_length(window: str) -> timedelta | None:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", window)
    if match is None:
        return None
    length = timedelta(**{_UNITS[match[2]]: int(match[1])})
    return length if length <= LONGEST_WINDOW else None


class MetadataField(serializers.Field[dict[str, str], Any, Any, Any]):
    """At most 16 pairs of strings, refused in OpenAI's words."""

    MOST_PAIRS, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512

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
    """POST /v1/batches. Whether the input file exists and is good shows at validation, as with OpenAI."""

    input_file_id = TextField(max_length=64)
    endpoint = TextField(supported=ENDPOINTS)
    completion_window = CompletionWindowField()
    metadata = MetadataField(required=False, allow_null=True)
    output_expires_after = ExpiresAfterField(required=False, allow_null=True)

    def create(self, validated_data: dict[str, Any]) -> Batch:
        window = validated_data["completion_window"]
        now = timezone.now()
        with transaction.atomic():
            batch = Batch.objects.create(
                input_file_id=validated_data["input_file_id"],
                endpoint=validated_data["endpoint"],
                completion_window=window,
                metadata=validated_data.get("metadata"),
                output_lifetime=validated_data.get("output_expires_after"),
                created_at=now,
                expires_at=now + (window_length(window) or LONGEST_WINDOW),
                nudged_at=now,  # its first message is on its way
            )
            File.objects.all().hold(batch.input_file_id, batch.pk)
        return batch


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


class BatchSerializer(serializers.BaseSerializer[Batch]):
    def to_representation(self, instance: Batch) -> dict[str, Any]:
        batch = instance
        failed = batch.status == Status.FAILED
        return {
            "id": batch.pk,
            "object": "batch",
            "endpoint": batch.endpoint,
            "model": batch.model,
            "errors": {"object": "list", "data": batch.errors} if failed else None,
            "input_file_id": batch.input_file_id,
            "completion_window": batch.completion_window,
            "status": batch.status,
            "output_file_id": batch.output_file_id,
            "error_file_id": batch.error_file_id,
            "created_at": _seconds(batch.created_at),
            "in_progress_at": _seconds(batch.in_progress_at),
            "expires_at": _seconds(batch.expires_at),
            "finalizing_at": _seconds(batch.finalizing_at),
            "completed_at": _seconds(batch.completed_at),
            "failed_at": _seconds(batch.failed_at),
            "expired_at": _seconds(batch.expired_at),
            "cancelling_at": _seconds(batch.cancelling_at),
            "cancelled_at": _seconds(batch.cancelled_at),
            "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
            "usage": {
                "input_tokens": batch.input_tokens,
                "input_tokens_details": {"cached_tokens": batch.cached_tokens},
                "output_tokens": batch.output_tokens,
                "output_tokens_details": {"reasoning_tokens": batch.reasoning_tokens},
                "total_tokens": batch.input_tokens + batch.output_tokens,
            },
            "metadata": batch.metadata,
        }
