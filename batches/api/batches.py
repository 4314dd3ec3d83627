"""/v1/batches: create, list, retrieve, delete, and what is done to one or asked about it."""

import json
from datetime import datetime
from typing import Any

from django.db import transaction
from drf_spectacular.types import OpenApiTypes
from rest_framework import viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from batches import cleanup, creation, forecasts, lifecycle, retry, tasks
from batches.api.following import place_of, place_parameter, stream
from batches.api.serializers import (
    AllPausedSerializer,
    BatchCreateSerializer,
    BatchDeletedSerializer,
    BatchSerializer,
    ExtendSerializer,
    PrioritySerializer,
    ProgressSerializer,
    ReasonListSerializer,
    RetrySerializer,
)
from batches.models import Batch, BatchQuerySet
from batches.scheduling import switch
from batches.status import progress, reasons
from common import failpoints, idempotency
from common.authentication import AdminSession, ApiKeyAuthentication
from common.errors import ApiError
from common.models import Scope
from common.negotiation import json_object
from common.openapi import IDEMPOTENCY_KEY, operation
from common.owners import owner_of, rows
from common.pagination import CursorPagination

JSONL = {(200, "application/jsonl"): OpenApiTypes.BINARY}
AFTER = place_parameter("after")
# What concerns everybody's batches.
FOR_ADMINISTRATORS: dict[str, Any] = {
    "scopes": (Scope.ADMIN,),
    "authentication_classes": (AdminSession, ApiKeyAuthentication),
}


class BatchViewSet(viewsets.GenericViewSet[Batch]):
    scopes: tuple[Scope, ...] = (Scope.BATCHES,)
    serializer_class = BatchSerializer
    pagination_class = CursorPagination
    lookup_value_regex = r"[^/\x00]+"

    def get_queryset(self) -> BatchQuerySet:
        return rows(self.request, Batch.objects.all())

    def get_object(self) -> Batch:
        batch_id = self.kwargs["pk"]
        if not batch_id.startswith("batch"):
            raise ApiError(
                f"Invalid 'batch_id': '{batch_id}'. Expected an ID that begins with 'batch'.",
                param="batch_id",
                code="invalid_value",
            )
        batch = self.get_queryset().filter(pk=batch_id).first()
        if batch is None:
            raise ApiError(f"No batch found with id '{batch_id}'.", status=404)
        return batch

    @operation("Create a batch", BatchSerializer, request=BatchCreateSerializer, parameters=[IDEMPOTENCY_KEY])
    def create(self, request: Request) -> Response:
        asked = json_object(request)
        form = BatchCreateSerializer(data=asked)
        form.is_valid(raise_exception=True)

        def create() -> Response:
            batch = form.save(owner=owner_of(request))
            # A committed batch is accepted: a wake-up that fails must not answer with a 5xx. The tick finds the batch.
            transaction.on_commit(lambda: _wake(batch.pk), robust=True)
            return Response(BatchSerializer(batch).data)

        return idempotency.once(request, json.dumps(asked, sort_keys=True), create)

    @operation("List batches", BatchSerializer)
    def list(self, request: Request) -> Response:
        page = self.paginate_queryset(self.get_queryset()) or []
        Batch.read_counters(page)
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @operation("Retrieve a batch", BatchSerializer)
    def retrieve(self, request: Request, pk: str) -> Response:
        return Response(BatchSerializer(self.get_object()).data)

    @operation("Cancel a batch", BatchSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        batch = self.get_object()
        lifecycle.cancel(batch.pk)
        transaction.on_commit(lambda: tasks.wake_control(batch.pk))
        batch.refresh_from_db()
        return Response(BatchSerializer(batch).data)

    @operation("Pause a batch", BatchSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        switch.pause(self.get_object().pk)
        return self.retrieve(request, pk)

    @operation("Resume a batch", BatchSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        switch.resume(self.get_object().pk)
        transaction.on_commit(lambda: tasks.wake(tasks.drive))
        return self.retrieve(request, pk)

    @operation("Pause all batches", AllPausedSerializer)
    @action(detail=False, methods=["post"], url_path="pause", **FOR_ADMINISTRATORS)
    def pause_all(self, request: Request) -> Response:
        return _all_paused(switch.pause_all())

    @operation("Resume all batches", AllPausedSerializer)
    @action(detail=False, methods=["post"], url_path="resume", **FOR_ADMINISTRATORS)
    def resume_all(self, request: Request) -> Response:
        switch.resume_all()
        transaction.on_commit(lambda: tasks.wake(tasks.drive))
        return _all_paused(None)

    @operation("Extend the completion window of a batch", BatchSerializer, request=ExtendSerializer)
    @action(detail=True, methods=["post"])
    def extend(self, request: Request, pk: str) -> Response:
        batch = self.get_object()
        form = ExtendSerializer(data=json_object(request))
        form.is_valid(raise_exception=True)
        length = creation.window_length(form.validated_data["completion_window"])
        forecasts.extend(batch.pk, length or creation.LONGEST_WINDOW)
        return self.retrieve(request, pk)

    @operation("Change the priority of a batch", BatchSerializer, request=PrioritySerializer)
    @action(detail=True, methods=["post"])
    def priority(self, request: Request, pk: str) -> Response:
        batch = self.get_object()
        form = PrioritySerializer(data=json_object(request))
        form.is_valid(raise_exception=True)
        switch.set_priority(batch.pk, form.validated_data["priority"])
        return self.retrieve(request, pk)

    @operation("Tell why lines have no answer", ReasonListSerializer)
    @action(detail=True)
    def reasons(self, request: Request, pk: str) -> Response:
        return Response(ReasonListSerializer({"data": reasons.of(self.get_object())}).data)

    @operation(
        "Ask the failed lines of a batch again",
        BatchSerializer,
        request=RetrySerializer,
        parameters=[IDEMPOTENCY_KEY],
    )
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        parent = self.get_object()
        asked = json_object(request)
        form = RetrySerializer(data=asked)
        form.is_valid(raise_exception=True)
        text = json.dumps(asked, sort_keys=True)
        if (before := idempotency.answered(request, text)) is not None:
            return before
        fields = form.validated_data
        window, metadata = fields.pop("completion_window", None), fields.pop("metadata", None)
        wish = retry.Wish(parent, **fields)
        with retry.input_of(wish) as file:

            def create() -> Response:
                batch = retry.create(wish, file, window=window, metadata=metadata)
                transaction.on_commit(lambda: _wake(batch.pk), robust=True)
                return Response(BatchSerializer(batch).data)

            return idempotency.once(request, text, create)

    @operation("Stream the lines that are answered so far", JSONL, parameters=[AFTER])
    @action(detail=True)
    def output(self, request: Request, pk: str) -> Any:
        return stream(self.get_object(), "output", place_of(request, "after"))

    @operation("Stream the lines that failed so far", JSONL, parameters=[AFTER])
    @action(detail=True)
    def errors(self, request: Request, pk: str) -> Any:
        return stream(self.get_object(), "errors", place_of(request, "after"))

    @operation("Delete a batch that is over", BatchDeletedSerializer)
    def destroy(self, request: Request, pk: str) -> Response:
        batch = self.get_object()
        cleanup.delete(batch.pk)
        return Response(BatchDeletedSerializer({"id": batch.pk}).data)

    @operation("Tell how far a batch is", ProgressSerializer)
    @action(detail=True)
    def progress(self, request: Request, pk: str) -> Response:
        return Response(ProgressSerializer(progress.of(self.get_object())).data)


def _all_paused(since: datetime | None) -> Response:
    return Response(AllPausedSerializer({"paused": since is not None, "paused_at": since}).data)


def _wake(batch_id: str) -> None:
    failpoints.reach("after_create_committed")
    tasks.wake_control(batch_id)
