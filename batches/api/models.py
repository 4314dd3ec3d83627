"""/v1/models: what lines can name."""

from drf_spectacular.utils import OpenApiParameter
from rest_framework import viewsets
from rest_framework.request import Request
from rest_framework.response import Response

from batches import registry
from batches.api.serializers import ModelListSerializer, ModelObjectSerializer
from common import errors
from common.errors import ApiError
from common.models import Scope
from common.openapi import operation

CONTEXT = OpenApiParameter(
    "context",
    bool,
    description="Ask the model server too how many tokens a line may take: `context_tokens`, null if it does not say.",
)


class ModelViewSet(viewsets.ViewSet):
    """What lines can name: the models of the live backends, and their aliases. Ids may contain `:` and `/`.

    The list has each model once; any name by which a line gets a model can be retrieved.
    """

    scopes = tuple(Scope)
    lookup_value_regex = r"[^\x00]+"

    @operation("List the models that lines can name", ModelListSerializer)
    def list(self, request: Request) -> Response:
        return Response(ModelListSerializer({"data": registry.known_models()}).data)

    @operation("Retrieve a model's object", ModelObjectSerializer, parameters=[CONTEXT])
    def retrieve(self, request: Request, pk: str) -> Response:
        wanted = request.query_params.get("context", "false")
        if wanted not in ("true", "false"):
            raise errors.invalid_value("context", wanted, ["true", "false"])
        if (model := registry.known_model(pk)) is None:
            raise ApiError(f"The model '{pk}' does not exist", status=404, param="model", code="model_not_found")
        if wanted == "true":
            model |= {"context_tokens": registry.context_of(pk)}
        return Response(ModelObjectSerializer(model).data)
