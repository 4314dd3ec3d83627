"""Files of a batch for a person who is logged in: its input, its results, and what there is of them while it runs."""

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from batches.following import Following
from batches.models import Batch
from common.errors import ApiError
from common.permissions import may_look
from files_api import downloads
from files_api.models import File

FILES = "files_api.file"


def there_are(request: HttpRequest, batch: Batch) -> list[tuple[str, str]]:
    """What this person can download: kind and label. A deleted file is none."""
    if not may_look(request, FILES):
        return []
    files = File.objects.all().visible()
    of_batch = [batch.input_file_id, batch.output_file_id or "", batch.error_file_id or ""]
    there = set(files.filter(pk__in=of_batch).values_list("pk", flat=True))
    found = [("input", "Input")] if batch.input_file_id in there else []
    if batch.is_final:
        found += [("output", "Answers")] if batch.output_file_id in there else []
        found += [("errors", "Errors")] if batch.error_file_id in there else []
    else:
        found += [("output", "Answers so far")] if batch.completed else []
        found += [("errors", "Errors so far")] if batch.failed else []
    return found


def of(request: HttpRequest, batch: Batch, kind: str) -> HttpResponseBase:
    """`kind`: input, output or errors. Streamed, as an attachment. Raises Http404 for a file that is not there."""
    if not may_look(request, FILES):
        raise PermissionDenied
    if kind not in ("input", "output", "errors"):
        raise Http404
    if kind == "input":
        return _whole(request, batch.input_file_id)
    if batch.is_final:
        return _whole(request, batch.output_file_id if kind == "output" else batch.error_file_id)
    try:
        lines = Following.of(batch, kind, 0).lines()
    except ApiError as error:
        return _not_now(error)
    name = f"{batch.pk}_{kind}_so_far.jsonl"
    disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingHttpResponse(lines, content_type=downloads.BYTES, headers=disposition)


def _whole(request: HttpRequest, file_id: str | None) -> HttpResponseBase:
    file = File.objects.all().visible().filter(pk=file_id).first()
    if file is None:
        raise Http404("This file is deleted.")
    try:
        return downloads.download(request, file)
    except ApiError as error:
        return _not_now(error)


def _not_now(error: ApiError) -> HttpResponse:
    """What stands in place of a file that cannot be read now. Raises Http404 if it is deleted."""
    if error.status == 404:
        raise Http404(error.message) from None
    return HttpResponse(error.message, status=error.status, content_type="text/plain; charset=utf-8")
