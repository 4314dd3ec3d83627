"""Serializer fields that both apps share. They refuse with OpenAI's messages, and each gives its own JSON Schema."""

from datetime import datetime, timedelta
from typing import Any, TypeVar

from rest_framework import serializers

from common import errors
from common.strict_json import is_storable

LEAST_EXPIRY_S, MOST_EXPIRY_S = 3600, 2_592_000
MOST_BYTES = 2**63 - 1

Value = TypeVar("Value")
Shown = TypeVar("Shown")


class ApiField(serializers.Field[Value, Any, Shown, Any]):
    """A field that gives its JSON Schema to the OpenAPI document, which adds whether it may be null or missing."""

    def json_schema(self) -> dict[str, Any]:
        raise NotImplementedError


class TextField(ApiField[str, str]):
    """A JSON string; DRF's own CharField would take a number for one."""

    def __init__(self, *, supported: list[str] | None = None, max_length: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supported = supported
        self.max_length = max_length

    def json_schema(self) -> dict[str, Any]:
        if self.supported is not None:
            return {"type": "string", "enum": self.supported}
        return text_schema(self.max_length)

    def to_internal_value(self, data: Any) -> str:
        text = _text(str(self.field_name), data, self.max_length)
        if self.supported is not None and text not in self.supported:
            raise errors.invalid_value(str(self.field_name), text, self.supported)
        return text

    def to_representation(self, value: str) -> str:
        return value


class TextListField(ApiField[list[str], list[str]]):
    """A JSON array of strings."""

    def __init__(self, *, max_length: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_length = max_length

    def json_schema(self) -> dict[str, Any]:
        return {"type": "array", "items": text_schema(self.max_length)}

    def to_internal_value(self, data: Any) -> list[str]:
        if not isinstance(data, list):
            raise errors.invalid_type(str(self.field_name), "an array", data)
        return [_text(f"{self.field_name}[{index}]", item, self.max_length) for index, item in enumerate(data)]

    def to_representation(self, value: list[str]) -> list[str]:
        return value


def text_schema(most: int) -> dict[str, Any]:
    """The schema of a string that `_text` takes, as far as JSON Schema can express it."""
    return {"type": "string", "maxLength": most, "pattern": r"^[^\u0000]*$"}


def _text(name: str, data: Any, most: int) -> str:
    if not isinstance(data, str):
        raise errors.invalid_type(name, "a string", data)
    if len(data) > most:
        raise errors.too_long(name, data, most)
    if not is_storable(data):
        raise errors.not_storable(name)
    return data


class ByteCountField(ApiField[int, int]):
    """A JSON integer from 0."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": 0, "maximum": MOST_BYTES}

    def to_internal_value(self, data: Any) -> int:
        name = str(self.field_name)
        if not isinstance(data, int) or isinstance(data, bool):
            raise errors.invalid_type(name, "an integer", data)
        if refusal := errors.out_of_range(name, data, least=0, most=MOST_BYTES):
            raise refusal
        return data

    def to_representation(self, value: int) -> int:
        return value


class ExpiresAfterField(ApiField[timedelta, Any]):
    """`{"anchor": "created_at", "seconds": 3600…2592000}` as a timedelta."""

    def json_schema(self) -> dict[str, Any]:
        anchor = {"type": "string", "enum": ["created_at"]}
        seconds = {"type": "integer", "minimum": LEAST_EXPIRY_S, "maximum": MOST_EXPIRY_S}
        properties = {"anchor": anchor, "seconds": seconds}
        return {"type": "object", "properties": properties, "required": list(properties)}

    def to_internal_value(self, data: Any) -> timedelta:
        name = str(self.field_name)
        if not isinstance(data, dict):
            raise errors.invalid_type(name, "an object", data)
        for key in ("anchor", "seconds"):
            if data.get(key) is None:
                raise errors.missing_parameter(f"{name}.{key}")
        if data["anchor"] != "created_at":
            raise errors.invalid_value(f"{name}.anchor", data["anchor"], ["created_at"])
        seconds = data["seconds"]
        if not isinstance(seconds, int) or isinstance(seconds, bool):
            raise errors.invalid_type(f"{name}.seconds", "an integer", seconds)
        if refusal := errors.out_of_range(f"{name}.seconds", seconds, least=LEAST_EXPIRY_S, most=MOST_EXPIRY_S):
            raise refusal
        return timedelta(seconds=seconds)

    def to_representation(self, value: timedelta) -> Any:
        return {"anchor": "created_at", "seconds": int(value.total_seconds())}


class FilePartField(ApiField[Any, None]):
    """A form's file part, as `upload_handler.receive` gives it."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "binary"}

    def to_internal_value(self, data: Any) -> Any:
        return data


class UnixTimeField(ApiField[datetime, int]):
    """A time in answers, in whole Unix seconds."""

    def json_schema(self) -> dict[str, Any]:
        return {"type": "integer", "description": "Unix time in seconds."}

    def to_representation(self, value: datetime) -> int:
        return int(value.timestamp())


class ConstantField(ApiField[Any, Any]):
    """A value that is the same in every answer."""

    def __init__(self, constant: str | bool | None, **kwargs: Any) -> None:
        super().__init__(source="*", **kwargs)
        self.constant = constant

    def json_schema(self) -> dict[str, Any]:
        if self.constant is None:
            return {"type": "null"}
        return {"type": "boolean" if isinstance(self.constant, bool) else "string", "const": self.constant}

    def to_representation(self, value: Any) -> Any:
        return self.constant
