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
    def download(self, request: Request) -> HttpResponseBase:
        """The bytes of a file. Of a result file with `offset`, and of one that is not made yet: its lines in the order
        of finishing, as `/v1/batches/{id}/output` has them."""
        place, is_followed = place_of(request, "offset"), "offset" in request.query_params
        if not is_followed and (file := self.find()) is not None:  # without a look at batches
            return self.bytes_of(file, request)
        file_id = self.kwargs["pk"]
        followed = followed_file(file_id, among=rows(request, Batch.objects.all()))
        if followed and (is_followed or not followed.is_made):
            return stream(followed.batch, followed.kind, place, "application/octet-stream")
        file = self.get_object()
        if place:
            raise ApiError(
                f"Invalid 'offset': '{place}'. The file {file_id} is no result file of a batch.", param="offset"
            )
        return self.bytes_of(file, request)
