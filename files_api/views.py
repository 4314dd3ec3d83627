"""/v1/files: upload, list, retrieve, delete, download."""

from typing import Any

from django.conf import settings
from django.http import FileResponse
from rest_framework import viewsets
from rest_framework.decorators import action
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from batchserver import errors, idempotency
from batchserver.api import CursorPagination
from batchserver.errors import ApiError
from files_api.models import NOT_DOWNLOADABLE, PURPOSES, RESULTS, File, FileQuerySet
from files_api.serializers import FileSerializer, FileUploadSerializer

MULTIPART_OVERHEAD_BYTES = 2**16


class FilePagination(CursorPagination):
    most_limit = 10_000
    default_limit = 10_000
    orders = ("asc", "desc")


class FileViewSet(viewsets.GenericViewSet[File]):
    serializer_class = FileSerializer
    parser_classes = (MultiPartParser,)
    pagination_class = FilePagination
    lookup_value_regex = r"[^/\x00]+"

    def get_queryset(self) -> FileQuerySet:
        return File.objects.all().visible()

    def get_object(self) -> File:
        file = self.get_queryset().filter(pk=self.kwargs["pk"]).first()
        if file is None:
            raise ApiError(f"No such File object: {self.kwargs['pk']}", status=404, param="id")
        return file

    def create(self, request: Request) -> Response:
        # An honest Content-Length is refused before its bytes arrive; any other upload is counted as it streams.
        length = int(request.META.get("CONTENT_LENGTH") or 0)
        chunked = request.headers.get("Transfer-Encoding", "").lower() == "chunked"
        if not chunked and length > settings.MAX_FILE_BYTES + MULTIPART_OVERHEAD_BYTES:
            raise errors.too_large(settings.MAX_FILE_BYTES)
        upload = FileUploadSerializer.from_form(request.data)
        upload.is_valid(raise_exception=True)
        return idempotency.once(request, repr(upload.asked), lambda: Response(FileSerializer(upload.save()).data))

    def list(self, request: Request) -> Response:
        files = self.get_queryset()
        if purpose := request.query_params.get("purpose"):
            files = files.filter(purpose=purpose) if purpose in [*PURPOSES, RESULTS] else files.none()
        page = self.paginate_queryset(files)
        return self.get_paginated_response([FileSerializer(file).data for file in page or []])

    def retrieve(self, request: Request, pk: str) -> Response:
        return Response(FileSerializer(self.get_object()).data)

    def destroy(self, request: Request, pk: str) -> Response:
        file = self.get_object()
        file.hide()
        return Response({"id": file.pk, "object": "file", "deleted": True})

    @action(detail=True)
    def content(self, request: Request, pk: str) -> Any:
        file = self.get_object()
        if file.purpose in NOT_DOWNLOADABLE:
            raise ApiError(f"Not allowed to download files of purpose: {file.purpose}")
        try:
            stream = file.content.open("rb")
        except (FileNotFoundError, ValueError):
            # Deleted between our look and the opening.
            raise ApiError(f"No such File object: {pk}", status=404, param="id") from None
        return FileResponse(stream, as_attachment=True, filename=file.filename, content_type="application/octet-stream")
