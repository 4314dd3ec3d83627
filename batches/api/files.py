"""/v1/files, with what batches add: a result file is read from a place on, and before it is made."""

from django.http import HttpResponseBase
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework.request import Request

from batches.api.following import place_of, place_parameter, stream
from batches.following import followed_file
from batches.models import Batch
from common.errors import ApiError
from common.owners import rows
from files_api import views


@extend_schema_view(content=extend_schema(parameters=[place_parameter("offset")]))
class FileViewSet(views.FileViewSet):
    def download(self, request: Request, pk: str) -> HttpResponseBase:
        """The bytes of a file. Of a result file with `offset`, and of one that is not made yet: its lines in the order
        of finishing, as `/v1/batches/{id}/output` has them."""
        place = place_of(request, "offset")
        followed = followed_file(pk, among=rows(request, Batch.objects.all()))
        if followed and ("offset" in request.query_params or not followed.is_made):
            return stream(followed.batch, followed.kind, place, "application/octet-stream")
        if place:
            self.get_object()  # a 404 first
            raise ApiError(f"Invalid 'offset': '{place}'. The file {pk} is no result file of a batch.", param="offset")
        return super().download(request, pk)
