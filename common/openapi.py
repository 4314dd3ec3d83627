"""The OpenAPI document at /v1/openapi.json: what its operations have in common, and how the generator reads our code.

The rest comes from the code that does the work: serializers, fields (`json_schema`), paginators, routes.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from django.conf import settings
from drf_spectacular.extensions import OpenApiAuthenticationExtension, OpenApiSerializerFieldExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import Direction, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers

from common.idempotency import LONGEST_KEY

View = TypeVar("View", bound=Callable[..., Any])


class ErrorSerializer(serializers.Serializer[Any]):
    """The inside of `ApiError.envelope`."""

    message = serializers.CharField()
    type = serializers.CharField()
    param = serializers.CharField(allow_null=True)
    code = serializers.CharField(allow_null=True)


class ErrorEnvelopeSerializer(serializers.Serializer[Any]):
    error = ErrorSerializer()


IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "maxLength": LONGEST_KEY},
    OpenApiParameter.HEADER,
    description="A create that is sent again with the same key within 24 hours gets the first answer again.",
)


def operation(
    summary: str,
    answer: Any,
    *,
    request: Any = None,
    parameters: Sequence[OpenApiParameter] = (),
) -> Callable[[View], View]:
    """Documents a view's method: `answer` is the body of its 200, by its media type if that is not JSON."""
    return extend_schema(
        summary=summary,
        request=request,
        parameters=list(parameters),
        responses={
            **(answer if isinstance(answer, dict) else {200: answer}),
            "4XX": OpenApiResponse(ErrorEnvelopeSerializer, "Refused: nothing was changed."),
            "5XX": OpenApiResponse(ErrorEnvelopeSerializer, "Failed, or the server cannot answer now: try again."),
        },
    )


class ApiSchema(AutoSchema):
    def get_operation_id(self) -> str:
        view: Any = self.view
        return f"{self.get_tags()[0]}_{view.action}"

    def get_auth(self) -> list[dict[str, Any]]:
        """None is a choice too: until the first key is created."""
        return [*super().get_auth(), {}]

    def get_paginated_name(self, serializer_name: str) -> str:
        return f"{serializer_name}List"


class ApiFields(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = "common.fields.ApiField"
    match_subclasses = True

    def map_serializer_field(self, auto_schema: AutoSchema, direction: Direction) -> dict[str, Any]:
        schema: dict[str, Any] = self.target.json_schema()
        return schema


class ApiKeys(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "common.authentication.ApiKeyAuthentication"
    name = "apiKey"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, Any]:
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "Until the first key is created, none is needed; from then on every call needs one.",
        }


class AdminsSession(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "common.authentication.AdminSession"
    name = "administratorsSession"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, Any]:
        return {"type": "apiKey", "in": "cookie", "name": settings.SESSION_COOKIE_NAME}
