"""Receive a form's file part: stream it into the storage, measure it, and refuse it as soon as it is too large."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from django.core.files.uploadhandler import FileUploadHandler
from django.http import QueryDict
from rest_framework.request import Request

from common import errors
from common.errors import ApiError
from common.negotiation import told_length
from files_api.storage import MeasuredFile, file_storage, missing_bytes

# Bytes of a form beside its file: boundaries, headers, short fields.
MULTIPART_OVERHEAD_BYTES = 2**16
# An upload of unknown length checks for room on the disk after each LOOK_EVERY_BYTES.
LOOK_EVERY_BYTES = 2**24


class MeasuringUploadHandler(FileUploadHandler):
    """Give the file part as a MeasuredFile. Its name does not depend on the client's file name."""

    chunk_size = 2**18
    most_bytes = 0  # set by `receive`, as the next one; a form that is read without `receive` takes no file
    stored_as = ""
    file: MeasuredFile

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        self.file = file_storage().incoming(self.stored_as)

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        size = self.file.size + len(raw_data)
        if size > self.most_bytes:
            self.upload_interrupted()
            raise errors.too_large(str(self.field_name), self.most_bytes)
        if size // LOOK_EVERY_BYTES > self.file.size // LOOK_EVERY_BYTES and missing_bytes():
            self.upload_interrupted()
            raise errors.no_room()
        with self._nothing_left():
            self.file.write(raw_data)

    def file_complete(self, file_size: int) -> MeasuredFile:
        with self._nothing_left():
            self.file.sync()
        self.file.name = self.file_name
        return self.file

    def upload_interrupted(self) -> None:
        if hasattr(self, "file"):
            self.file.close()

    @contextmanager
    def _nothing_left(self) -> Iterator[None]:
        """If it cannot be stored, remove at once what was received: Django closes whole files only."""
        try:
            yield
        except OSError:
            with suppress(OSError):  # closing writes what is buffered: that fails again, and removes the file
                self.upload_interrupted()
            raise


def least_bytes(request: Request) -> int:
    """How many bytes the form's file part has at least, by the Content-Length; 0 if nobody knows."""
    return max(0, told_length(request) - MULTIPART_OVERHEAD_BYTES)


def receive(request: Request, param: str, most_bytes: int, *, stored_as: str) -> MeasuredFile:
    """The form's file part `param`, of `most_bytes` at most, to be saved as `stored_as`. Call it before anything reads
    the form.

    A Content-Length that is too large is refused before its bytes arrive; any other upload is counted as it streams.
    """
    length = told_length(request)
    if length > most_bytes + MULTIPART_OVERHEAD_BYTES:
        raise errors.too_large(param, most_bytes)
    if missing_bytes(length):
        raise errors.no_room()
    handler = MeasuringUploadHandler(request._request)
    handler.most_bytes, handler.stored_as = most_bytes, stored_as
    request.upload_handlers = [handler]
    form = cast("QueryDict", request.data)
    content = form.get(param)
    if content is None:
        raise errors.missing_parameter(param)
    if not isinstance(content, MeasuredFile):
        raise ApiError(
            f"The part '{param}' has no file name: send it as a file, with `filename=` in its Content-Disposition.",
            param=param,
            code="invalid_type",
        )
    return content
