"""Validation: the input file becomes one row a line, or the batch fails with every bad line named."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from batches import backends, jsonl, leases, lifecycle
from batches.models import Backend, Batch, Lease, Line, Part, Status
from batchserver import failpoints
from batchserver.errors import batch_error
from files_api.models import File

logger = logging.getLogger(__name__)

SLICE_S = 2.0
GROUP_LINES = 1000
GROUP_BYTES = 32 * 2**20
MOST_ERRORS = 100


def validate(batch_id: str) -> bool:
    """Read on where the last slice stopped, for SLICE_S at most; True if there is more to read.

    Safe to run twice and at once: the cursor moves in the transaction that stores the lines, and one lease holds the
    batch. A slice that is lost is read again by the next.
    """
    lease = leases.acquire("validate")
    try:
        if not Batch.objects.filter(pk=batch_id, status=Status.VALIDATING, lease=None).update(lease=lease):
            return False  # cancelled meanwhile, or another worker is at it
        batch = Batch.objects.get(pk=batch_id)
        file = File.objects.all().held(batch.input_file_id, batch.pk)
        if file is None or file.purpose != "batch":
            return _fail_whole(batch, lease, _file_problem(batch, file))
        try:
            return _validate_slice(batch, file, lease)
        except FileNotFoundError:
            return _fail_whole(batch, lease, _file_problem(batch, None))
    finally:
        leases.release(lease)


def _file_problem(batch: Batch, file: File | None) -> dict[str, Any]:
    if file is None:
        message = f"Cannot find file {batch.input_file_id}."
    else:
        message = f"File {file.pk} has the purpose '{file.purpose}'; a batch needs a file with the purpose 'batch'."
    return batch_error("invalid_request", message, param="file_id")


def _validate_slice(batch: Batch, file: File, lease: Lease) -> bool:
    ends_at = time.monotonic() + SLICE_S
    check = _LineCheck(batch)
    with file.content.open("rb") as stream:
        lines = jsonl.read_lines(
            stream,
            offset=batch.validated_bytes,
            number=batch.validated_lines,
            max_line_bytes=settings.MAX_LINE_BYTES,
        )
        for group in _groups(lines, batch):
            if not _store(batch, lease, check, group):
                return False
            failpoints.reach("mid_validation")
            if batch.total + batch.error_count > settings.MAX_BATCH_LINES:
                message = f"The file has more than {settings.MAX_BATCH_LINES} lines (MAX_BATCH_LINES)."
                return _fail_whole(batch, lease, batch_error("too_many_lines", message))
            if time.monotonic() > ends_at:
                return True
    return _finish(batch, lease)


@dataclass
class _Group:
    """Lines that are stored in one transaction, and the place in the file behind them. Their bytes are let go."""

    parsed: list[jsonl.Request | jsonl.LineRefused]
    next_offset: int
    last_number: int


def _groups(lines: Iterator[jsonl.RawLine], batch: Batch) -> Iterator[_Group]:
    parsed: list[jsonl.Request | jsonl.LineRefused] = []
    start = batch.validated_bytes
    raw = None
    for raw in lines:
        try:
            parsed.append(
                jsonl.parse(
                    raw,
                    endpoint=batch.endpoint,
                    default_model=settings.MODEL_NAME,
                    max_line_bytes=settings.MAX_LINE_BYTES,
                )
            )
        except jsonl.LineRefused as refusal:
            parsed.append(refusal)
        if len(parsed) >= GROUP_LINES or raw.next_offset - start >= GROUP_BYTES:
            yield _Group(parsed, raw.next_offset, raw.number)
            parsed, start = [], raw.next_offset
    if parsed and raw is not None:
        yield _Group(parsed, raw.next_offset, raw.number)


def _store(batch: Batch, lease: Lease, check: "_LineCheck", group: _Group) -> bool:
    """Store the good lines and note the bad ones of a group, and move the cursor. False: the batch is not ours."""
    good, bad = check(group.parsed)
    with transaction.atomic():
        batch.errors += bad[: max(0, MOST_ERRORS - len(batch.errors))]
        batch.error_count += len(bad)
        batch.total += len(good)
        batch.validated_bytes = group.next_offset
        batch.validated_lines = group.last_number
        moved = Batch.objects.filter(pk=batch.pk, status=Status.VALIDATING, lease=lease).update(
            errors=batch.errors,
            error_count=batch.error_count,
            validated_bytes=batch.validated_bytes,
            validated_lines=batch.validated_lines,
            total=batch.total,
            nudged_at=timezone.now(),
        )
        if not moved:
            return False
        Line.objects.bulk_create(
            Line(
                batch=batch,
                part=check.part(request.model),
                number=request.number,
                custom_id=request.custom_id,
                offset=request.offset,
                length=request.length,
            )
            for request in good
        )
    return leases.renew(lease)


def _finish(batch: Batch, lease: Lease) -> bool:
    if batch.total + batch.error_count == 0:
        return _fail_whole(batch, lease, batch_error("empty_file", "The file has no request."))
    if batch.error_count:
        if more := batch.error_count - len(batch.errors):
            batch.errors.append(batch_error("more_errors", f"{more} more lines are invalid and not listed."))
        lifecycle.move(batch.pk, Status.FAILED, lease=lease, errors=batch.errors, total=0)
        return False
    models = list(batch.parts.values_list("model", flat=True)[:2])
    lifecycle.move(batch.pk, Status.IN_PROGRESS, lease=lease, model=models[0] if len(models) == 1 else None)
    return False


def _fail_whole(batch: Batch, lease: Lease, error: dict[str, Any]) -> bool:
    """Fail the batch for a reason that concerns the file and no single line."""
    lifecycle.move(batch.pk, Status.FAILED, lease=lease, errors=[error], total=0)
    return False


class _LineCheck:
    """Sorts a group of lines into requests and `errors` entries: the rules of jsonl, custom_ids that occurred before,
    and models that no backend has. Models are checked only against lists that are fresh; without one, a missing model
    shows at its first line."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.backends = [backend for backend in Backend.objects.exclude(kind="") if backend.is_fresh]
        self.known_models: dict[str, bool] = {}
        self.parts: dict[str, Part] = {}

    def part(self, model: str) -> Part:
        """The part of the batch for the lines that name this model; made if it is the first of them."""
        name = backends.resolve_alias(model)
        if name not in self.parts:
            self.parts[name], _ = Part.objects.get_or_create(batch=self.batch, model=name)
        return self.parts[name]

    def __call__(
        self, parsed: list[jsonl.Request | jsonl.LineRefused]
    ) -> tuple[list[jsonl.Request], list[dict[str, Any]]]:
        good: list[jsonl.Request] = []
        bad: list[dict[str, Any]] = []
        ids = [line.custom_id for line in parsed if isinstance(line, jsonl.Request)]
        seen = set(self.batch.lines.filter(custom_id__in=ids).values_list("custom_id", flat=True))
        for line in parsed:
            if isinstance(line, jsonl.LineRefused):
                bad.append(line.error)
            elif line.custom_id in seen:
                bad.append(_duplicate(line))
            elif not self._knows(line.model):
                bad.append(self._unknown_model(line))
            else:
                seen.add(line.custom_id)
                good.append(line)
        return good, bad

    def _knows(self, model: str) -> bool:
        if not self.backends:
            return True
        if model not in self.known_models:
            name = backends.resolve_alias(model)
            self.known_models[model] = any(
                backends.has_model(backend.kind, backend.model_names, name) for backend in self.backends
            )
        return self.known_models[model]

    def _unknown_model(self, line: jsonl.Request) -> dict[str, Any]:
        hint = backends.missing_model_hint(self.backends[0].kind, line.model)
        message = f"The provided model '{line.model}' is not supported by the Batch API. {hint}"
        return batch_error("model_not_found", message, param="body.model", line=line.number)


def _duplicate(line: jsonl.Request) -> dict[str, Any]:
    message = (
        f"The custom_id '{line.custom_id}' for this request is a duplicate of another request. The custom_id parameter "
        "must be unique for each request in a batch."
    )
    return batch_error("duplicate_custom_id", message, param="custom_id", line=line.number)
