"""The bytes of a file as an answer to whoever may have them."""

from django.conf import settings
from django.http import FileResponse, HttpRequest, HttpResponseBase, HttpResponseRedirect

from files_api.models import File
from files_api.storage import file_storage, opened

BYTES = "application/octet-stream"  # no browser shows it or runs it
CHUNK_BYTES = 2**17


def download(request: HttpRequest, file: File) -> HttpResponseBase:
    """The bytes as an attachment; with DOWNLOADS_BY_REDIRECT, where the storage can be asked by the client itself, a
    redirect there. Raises a 404 if they are not there, and a 503 if they cannot be read now."""
    if url := _elsewhere(request, file):
        # Whoever has the address has the file.
        return HttpResponseRedirect(url, headers={"Cache-Control": "no-store"})
    answer = FileResponse(opened(file.pk, file.content), as_attachment=True, filename=file.filename, content_type=BYTES)
    answer.block_size = CHUNK_BYTES
    return answer


def _elsewhere(request: HttpRequest, file: File) -> str:
    """Where this client finds the bytes without us; empty if it does not."""
    # An address that is signed for GET is good for nothing else.
    if not settings.DOWNLOADS_BY_REDIRECT or request.method != "GET" or not file.content.name:
        return ""
    return file_storage().signed_url(file.content.name, file.filename)
