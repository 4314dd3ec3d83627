"""Bytes on disk: a file is there whole, under its final name and fsynced, or not at all."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from django.conf import settings
from django.core.files.base import File as Content
from django.core.files.storage import FileSystemStorage, default_storage
from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.db import connection
from django.db.models.fields.files import FieldFile

from common import disk
from common.errors import ApiError
from files_api.models import File


class MeasuredFile(TemporaryUploadedFile):
    """A temporary file that is written once, from its start: `size` and `sha256` are those of what was written.

    The file lies in UPLOAD_DIR under a random name.
    """

    size: int
    file: Any

    def __init__(self) -> None:
        # Django's own __init__ takes the directory from FILE_UPLOAD_TEMP_DIR. Its system check wants that to exist at
        # any time, so before the first start too.
        temporary = NamedTemporaryFile(suffix=".upload", dir=settings.UPLOAD_DIR)  # noqa: SIM115  (closed by `close`)
        UploadedFile.__init__(self, temporary, "file", "application/octet-stream", 0, None)
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> None:  # type: ignore[override]  # a method here, a property in Django's mixin
        self.file.write(content)
        self._digest.update(content)
        self.size += len(content)

    def sync(self) -> None:
        """Fsync what was written, and go to the start."""
        self.file.flush()
        os.fsync(self.fileno())
        self.seek(0)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class DurableFileSystemStorage(FileSystemStorage):
    """Django's storage on disk, made safe against a full disk and a power cut.

    Django copies between file systems without a check for short writes, and fsyncs nothing. Here the bytes come from a
    temporary file of the same file system, are fsynced and renamed, and the directory is fsynced before the name is
    returned. An existing name is replaced: names come from ids, so the content can only be the same.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_overwrite=True)

    def _open(self, name: str, mode: str = "rb") -> "Content[bytes]":
        """Raises OSError if something else than a file lies there. Opening a pipe would wait for ever, and a link may
        lead to what is no client's."""
        path = self.path(name)
        if not Path(os.path.realpath(os.path.dirname(path))).is_relative_to(os.path.realpath(self.location)):
            raise OSError(errno.ELOOP, "A link leads out of its directory")
        stream = open(path, mode, opener=_without_links)  # noqa: SIM115  (handed on)
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            stream.close()
            raise OSError(errno.ENXIO, "It is no regular file")
        return Content(stream)

    def _save(self, name: str, content: "Content[bytes]") -> str:
        if not isinstance(content, TemporaryUploadedFile):
            with temporary_file() as copy:
                for chunk in content.chunks():
                    copy.write(chunk)
                return self._save(name, copy)
        final = Path(self.path(name))
        if not final.parent.is_dir():
            final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            disk.sync_directory(final.parent.parent)
        content.flush()
        os.fsync(content.fileno())
        os.replace(content.temporary_file_path(), final)
        disk.sync_directory(final.parent)
        return name


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def opened(file_id: str, content: FieldFile) -> "Content[bytes]":
    """The bytes of a file for a client. Raises a 404 if the file is deleted, and a 503 if its bytes cannot be read now,
    or are not on this host."""
    try:
        stream = content.open("rb")
        if content.size < content.instance.bytes:  # type: ignore[attr-defined]  # a File
            stream.close()
            raise FileNotFoundError(errno.ENOENT, "A part of the file is missing")
        return stream
    except ValueError:  # the row has no bytes any more
        raise _no_such(file_id) from None
    except FileNotFoundError as error:
        if _is_deleted(file_id):
            raise _no_such(file_id) from None
        raise _unreadable(error, file_id) from error
    except OSError as error:
        raise _unreadable(error, file_id) from error


def _no_such(file_id: str) -> ApiError:
    return ApiError(f"No such File object: {file_id}", status=404, param="id")


def _is_deleted(file_id: str) -> bool:
    """Whether the bytes were removed on purpose, maybe after the row was read."""
    return not File.objects.all().visible().filter(pk=file_id).exclude(content="").exists()


def _unreadable(error: OSError, file_id: str) -> ApiError:
    if error.errno in disk.IN_THE_WAY:
        message = f"The bytes of the file {file_id} are not there. {disk.trouble(error)}"
        return ApiError(message, status=404, param="id")
    message = f"The file {file_id} cannot be read now. {disk.trouble(error)}"
    return ApiError(message, status=503, type="server_error", headers={"Retry-After": "30"})


def missing_bytes(wanted: int = 0) -> int:
    """How many bytes the disk lacks to take `wanted` more and keep MIN_FREE_BYTES free; 0 if it has them, or if the
    storage is no disk of this machine."""
    free = free_bytes()
    return 0 if free is None else max(0, settings.MIN_FREE_BYTES + wanted - free)


def free_bytes() -> int | None:
    """What is free on the disk, the reserve of MIN_FREE_BYTES included; None if the storage is no disk of this
    machine."""
    try:
        return shutil.disk_usage(default_storage.path("")).free
    except (NotImplementedError, OSError):
        return None


def no_room_hint() -> str:
    """What to do about a disk that is nearly full; empty if the disk has room."""
    if not missing_bytes():
        return ""
    return (
        f"The disk of DATA_DIR has less than {settings.MIN_FREE_BYTES // 2**20} MiB left (MIN_FREE_BYTES). Make room."
    )


def why_not_writable() -> str:
    """Why no file can be stored now, and what to do; empty if one can. Writes a byte, and removes it."""
    if hint := no_room_hint():
        return hint
    if hint := _why_database_is_not_writable():
        return hint
    try:
        with temporary_file() as file:
            file.write(b"\n")
            file.flush()
    except OSError as error:
        return f"Files cannot be stored: {disk.trouble(error)}"
    return ""


def _why_database_is_not_writable() -> str:
    """Of SQLite, by its files and their directory. To write a row would wait behind whoever writes."""
    if connection.vendor != "sqlite" or not (path := Path(connection.settings_dict["NAME"])).is_file():
        return ""
    for each in (path.parent, path, path.with_name(f"{path.name}-wal")):
        if each.exists() and not os.access(each, os.W_OK):
            return "The database cannot be written. Let the user that runs the server write in DATA_DIR."
    return ""


@contextmanager
def temporary_file() -> Iterator[MeasuredFile]:
    """A file to write to and hand to a FileField inside the block; removed at the end of the block if still there.

    A process that is killed meanwhile leaves the file behind for `retention.sweep`.
    """
    file = MeasuredFile()
    try:
        yield file
    finally:
        file.close()
