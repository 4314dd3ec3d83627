"""/v1/files: upload, list, retrieve, delete, download; and /v1/uploads: a file that comes in parts."""

import json
from typing import Any

from django.conf import settings
from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiRequest, inline_serializer
from rest_framework import viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from common import idempotency
from common.errors import ApiError
from common.fields import FilePartField
from common.models import Scope
from common.negotiation import json_object
from common.openapi import IDEMPOTENCY_KEY, operation
from common.owners import owner_of, rows
from common.pagination import CursorPagination
from files_api import downloads, stored_bytes, uploads
from files_api.accept import store
from files_api.form import FormParser
from files_api.models import (
    NOT_DOWNLOADABLE,
    PURPOSES,
    RESULTS,
    File,
    FileQuerySet,
    Upload,
    UploadPart,
    stored_name,
    stored_part_name,
)
from files_api.serializers import (
    FileCreateSerializer,
    FileDeletedSerializer,
    FileSerializer,
    UploadCompleteSerializer,
    UploadCreateSerializer,
    UploadPartSerializer,
    UploadSerializer,
)
from files_api.upload_handler import least_bytes, receive


class FilePagination(CursorPagination):
    most_limit = 10_000
    default_limit = 10_000
    orders = ("asc", "desc")


class FileViewSet(viewsets.GenericViewSet[File]):
    scopes = (Scope.BATCHES,)
    serializer_class = FileSerializer
    parser_classes = (FormParser,)
    pagination_class = FilePagination
    lookup_value_regex = r"[^/\x00]+"

    def get_queryset(self) -> FileQuerySet:
        return rows(self.request, File.objects.all()).visible()

    def find(self) -> File | None:
        return self.get_queryset().filter(pk=self.kwargs["pk"]).first()

    def get_object(self) -> File:
        file = self.find()
        if file is None:
            raise ApiError(f"No such File object: {self.kwargs['pk']}", status=404, param="id")
        return file

    @operation(
        "Upload a file",
        FileSerializer,
        # `expires_after[seconds]`: what `from_form` reads.
        request={
            "multipart/form-data": OpenApiRequest(
                FileCreateSerializer, {"expires_after": {"style": "deepObject", "explode": True}}
            )
        },
        parameters=[IDEMPOTENCY_KEY],
    )
    def create(self, request: Request) -> Response:
        owner = owner_of(request)
        if not idempotency.is_repeated(request):  # what is sent again is stored already, and takes no more
            stored_bytes.look_ahead(owner, least_bytes(request))
        content = receive(request, "file", settings.MAX_FILE_BYTES, stored_as=stored_name(File(), ""))
        form = FileCreateSerializer.from_form(request.data)
        form.is_valid(raise_exception=True)
        fields = form.validated_data
        asked = repr((content.sha256, content.name, fields["purpose"], fields.get("expires_after")))
        if (before := idempotency.answered(request, asked)) is not None:
            return before
        with form.in_place(owner) as file:

            def create() -> Response:
                store(file)
                return Response(FileSerializer(file).data)

            return idempotency.once(request, asked, create)

    @operation("List files", FileSerializer, parameters=[OpenApiParameter("purpose")])
    def list(self, request: Request) -> Response:
        files = self.get_queryset()
        if purpose := request.query_params.get("purpose"):
            files = files.filter(purpose=purpose) if purpose in [*PURPOSES, RESULTS] else files.none()
        page = self.paginate_queryset(files)
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @operation("Retrieve a file's object", FileSerializer)
    def retrieve(self, request: Request, pk: str) -> Response:
        return Response(FileSerializer(self.get_object()).data)

    @operation("Delete a file", FileDeletedSerializer)
    def destroy(self, request: Request, pk: str) -> Response:
        file = self.get_object()
        file.hide()
        return Response(FileDeletedSerializer(file).data)

    @operation("Download a file", {(200, "application/octet-stream"): OpenApiTypes.BINARY})
    @action(detail=True)
    def content(self, request: Request, pk: str) -> Any:
        return self.download(request)

    def download(self, request: Request) -> HttpResponseBase:
        """The bytes of the file that is asked for."""
        return self.bytes_of(self.get_object(), request)

    def bytes_of(self, file: File, request: Request) -> HttpResponseBase:
        """Raises a 400 if the purpose of the file keeps it here."""
        if file.purpose in NOT_DOWNLOADABLE:
            raise ApiError(f"Not allowed to download files of purpose: {file.purpose}")
        return downloads.download(request._request, file)


class UploadViewSet(viewsets.GenericViewSet[Upload]):
    scopes = (Scope.BATCHES,)
    serializer_class = UploadSerializer
    lookup_value_regex = r"[^/\x00]+"

    def get_object(self) -> Upload:
        upload = rows(self.request, Upload.objects.all()).filter(pk=self.kwargs["pk"]).first()
        if upload is None:
            raise ApiError(f"No such Upload object: {self.kwargs['pk']}", status=404, param="id")
        return upload

    @operation(
        "Begin an upload in parts", UploadSerializer, request=UploadCreateSerializer, parameters=[IDEMPOTENCY_KEY]
    )
    def create(self, request: Request) -> Response:
        asked = json_object(request)
        form = UploadCreateSerializer(data=asked)
        form.is_valid(raise_exception=True)

        def create() -> Response:
            owner = owner_of(request)
            stored_bytes.look_ahead(owner, form.validated_data["bytes"])
            return Response(UploadSerializer(form.save(owner=owner)).data)

        return idempotency.once(request, json.dumps(asked, sort_keys=True), create)

    @operation(
        "Add a part", UploadPartSerializer, request=inline_serializer("UploadPartCreate", {"data": FilePartField()})
    )
    @action(detail=True, methods=["post"], parser_classes=[FormParser])
    def parts(self, request: Request, pk: str) -> Response:
        upload = self.get_object()
        name = stored_part_name(UploadPart(), "")
        part = uploads.add_part(upload, receive(request, "data", uploads.MOST_PART_BYTES, stored_as=name))
        return Response(UploadPartSerializer(part).data)

    @operation("Join the parts to a file", UploadSerializer, request=UploadCompleteSerializer)
    @action(detail=True, methods=["post"])
    def complete(self, request: Request, pk: str) -> Response:
        upload = self.get_object()
        form = UploadCompleteSerializer(data=json_object(request))
        form.is_valid(raise_exception=True)
        upload = uploads.complete(upload, form.validated_data["part_ids"], form.validated_data.get("md5"))
        return Response(UploadSerializer(upload).data)

    @operation("Cancel an upload", UploadSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        return Response(UploadSerializer(uploads.cancel(self.get_object())).data)
