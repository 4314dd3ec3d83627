"""Taking in a file's bytes: streamed to disk, counted and hashed on the way."""

import hashlib
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.core.files.uploadhandler import FileUploadHandler

from batchserver import errors


class MeasuredFile(TemporaryUploadedFile):
    """An upload on disk, with the SHA-256 of what arrived."""

    sha256 = ""


class MeasuringUploadHandler(FileUploadHandler):
    """Stream a file part to UPLOAD_DIR and refuse it as soon as it is larger than MAX_FILE_BYTES.

    The temporary name owes nothing to the client's file name.
    """

    chunk_size = 2**18
    file: MeasuredFile

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        self.file = MeasuredFile("file", self.content_type, 0, self.charset, self.content_type_extra)
        self.digest = hashlib.sha256()
        self.received_bytes = 0

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        self.received_bytes += len(raw_data)
        if self.received_bytes > settings.MAX_FILE_BYTES:
            self.upload_interrupted()
            raise errors.too_large(settings.MAX_FILE_BYTES)
        self.digest.update(raw_data)
        self.file.write(raw_data)

    def file_complete(self, file_size: int) -> MeasuredFile:
        self.file.flush()
        self.file.seek(0)
        self.file.size = file_size
        self.file.sha256 = self.digest.hexdigest()
        self.file.name = self.file_name
        return self.file

    def upload_interrupted(self) -> None:
        if hasattr(self, "file"):
            self.file.close()
