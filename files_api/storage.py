"""Where the bytes of files are: a file is there whole, under its final name and for good, or not at all.

`default_storage` is one of two, which answer the same questions (`FileStorage`): `DurableFileSystemStorage` here, and
`files_api.s3.storage.S3FileStorage`.
"""

import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, Protocol, cast

from django.conf import settings
from django.core.files.base import File as Content
from django.core.files.storage import FileSystemStorage, default_storage
from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.db import connection
from django.db.models.fields.files import FieldFile

from common import disk
from common.errors import ApiError
from files_api.models import File


class MeasuredFile(UploadedFile):  # type: ignore[type-arg]
    """Bytes on their way into the storage, written once from their start: `size` and `sha256` are those of what was
    written. Save it under the name `stored_as`; `close` removes what was not saved."""

    size: int
    file: Any

    def __init__(self, stored_as: str, file: Any) -> None:
        UploadedFile.__init__(self, file, "file", "application/octet-stream", 0, None)
        self.stored_as = stored_as
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> None:  # type: ignore[override]  # a method here, a property in Django's mixin
        """Raises OSError. What was written before is of no use then."""
        self._take(content)
        self._digest.update(content)
        self.size += len(content)

    def _take(self, content: bytes) -> None:
        self.file.write(content)

    def sync(self) -> None:
        """Do all that takes long: saving takes a moment after it. Nothing is written any more."""

    @property
    def head(self) -> IO[bytes]:
        """The beginning of what was written, some megabytes at least. Whoever reads it leaves it anywhere."""
        return cast("IO[bytes]", self.file)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class Spans(Protocol):
    """The bytes of a stored file at many places."""

    def has(self, offset: int, length: int) -> bool:
        """Whether `read` returns these bytes, or raises its error, without a wait for the network. If not, they are
        asked for, and this returns at once."""

    def read(self, offset: int, length: int) -> bytes:
        """Fewer bytes at the end of the file. Raises OSError."""

    def close(self) -> None: ...


class FileStorage(Protocol):
    """What the storage of files answers beside Django's own `open`, `save`, `delete`, `exists` and `listdir`."""

    takes_disk: bool  # whether files take room of what `free_bytes` counts

    def incoming(self, name: str) -> MeasuredFile:
        """A file to write to and to save under this name."""

    def spans(self, name: str) -> Spans: ...

    def free_bytes(self) -> int | None:
        """What is free on the disk of this machine that files or rows take; None if they take none."""

    def trouble(self) -> str:
        """Why no file can be stored now, and what to do, for a person; empty if one can."""

    def directories(self) -> list[str]:
        """The directories in which files lie."""

    def written_at(self, directory: str) -> dict[str, float]:
        """The names of the files in this directory, and when each was written, as Unix time. Empty if the directory is
        gone."""

    def drop_leftovers(self, older_than_s: float) -> None:
        """Remove what processes that were killed so long ago had not saved."""

    def signed_url(self, name: str, filename: str) -> str:
        """Where a client gets these bytes without this server; empty if it does not."""


class LocalFile(MeasuredFile, TemporaryUploadedFile):
    """A temporary file of the file system of the storage, under a random name in UPLOAD_DIR."""

    def __init__(self, stored_as: str) -> None:
        # Django's own __init__ takes the directory from FILE_UPLOAD_TEMP_DIR. Its system check wants that to exist at
        # any time, so before the first start too.
        temporary = NamedTemporaryFile(suffix=".upload", dir=settings.UPLOAD_DIR)  # noqa: SIM115  (closed by `close`)
        MeasuredFile.__init__(self, stored_as, temporary)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.fileno())
        self.seek(0)


class _LocalSpans:
    """Reads at once: a disk has no answer to wait for."""

    def __init__(self, stream: "Content[bytes]") -> None:
        self._stream = stream
        self.close = stream.close

    def has(self, offset: int, length: int) -> bool:
        return True

    def read(self, offset: int, length: int) -> bytes:
        self._stream.seek(offset)
        content: bytes = self._stream.read(length)
        return content


class DurableFileSystemStorage(FileSystemStorage):
    """Django's storage on disk, made safe against a full disk and a power cut.

    Django copies between file systems without a check for short writes, and fsyncs nothing. Here the bytes come from a
    temporary file of the same file system, are fsynced and renamed, and the directory is fsynced before the name is
    returned. An existing name is replaced: names come from ids, so the content can only be the same.
    """

    takes_disk = True

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
        if not isinstance(content, LocalFile):
            return copied(self, name, content)
        final = Path(self.path(name))
        if not final.parent.is_dir():
            final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            disk.sync_directory(final.parent.parent)
        content.flush()
        os.fsync(content.fileno())
        os.replace(content.temporary_file_path(), final)
        disk.sync_directory(final.parent)
        return name

    def incoming(self, name: str) -> LocalFile:
        return LocalFile(name)

    def spans(self, name: str) -> Spans:
        """Raises OSError."""
        return _LocalSpans(self._open(name))

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.location).free

    def trouble(self) -> str:
        """Writes a byte, and removes it."""
        try:
            with temporary_file("") as file:
                file.write(b"\n")
                file.file.flush()
        except OSError as error:
            return f"Files cannot be stored: {disk.trouble(error)}"
        return ""

    def directories(self) -> list[str]:
        found = Path(self.location).iterdir()
        return sorted(path.name for path in found if path.is_dir() and path != Path(settings.UPLOAD_DIR))

    def written_at(self, directory: str) -> dict[str, float]:
        found = {}
        with suppress(FileNotFoundError):  # another process removed it meanwhile
            for path in (Path(self.location) / directory).iterdir():
                found[f"{directory}/{path.name}"] = path.stat().st_mtime
        return found

    def drop_leftovers(self, older_than_s: float) -> None:
        settings.UPLOAD_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in settings.UPLOAD_DIR.iterdir():
            # The file is gone if its upload just finished, or if another sweep was faster.
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - older_than_s:
                    path.unlink()

    def signed_url(self, name: str, filename: str) -> str:
        """Empty: this server alone reads the disk."""
        return ""


def copied(storage: Any, name: str, content: "Content[Any]") -> str:
    """Save any content as Django saves it, whatever wrote it; the name."""
    with incoming(storage, name) as copy:
        for chunk in content.chunks():
            copy.write(chunk)
        copy.sync()
        saved: str = storage._save(name, copy)
        return saved


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


def spans(content: FieldFile) -> Spans:
    """The bytes of a stored file at many places. Raises OSError, and ValueError if the file has no bytes any more."""
    if not content.name:
        raise ValueError("The file has no bytes any more")
    return file_storage().spans(content.name)


def missing_bytes(wanted: int = 0) -> int:
    """How many bytes the disk lacks to take `wanted` more and keep MIN_FREE_BYTES free; 0 if it has them, or if nothing
    that grows is on a disk of this machine."""
    free = free_bytes()
    return 0 if free is None else max(0, settings.MIN_FREE_BYTES + wanted - free)


def free_bytes() -> int | None:
    """What is free on the disk of files or rows, the reserve of MIN_FREE_BYTES included; None if they are on no disk of
    this machine."""
    try:
        return file_storage().free_bytes()
    except OSError:
        return None


def disk_of_database() -> int | None:
    """What is free on the disk on which SQLite's database grows; None if the database is another one."""
    return shutil.disk_usage(settings.DATA_DIR).free if connection.vendor == "sqlite" else None


def files_take_disk() -> bool:
    """Whether a file takes room of what `free_bytes` counts."""
    return file_storage().takes_disk


def file_storage() -> FileStorage:
    return cast("FileStorage", default_storage)


def no_room_hint() -> str:
    """What to do about a disk that is nearly full; empty if the disk has room."""
    if not missing_bytes():
        return ""
    return (
        f"The disk of DATA_DIR has less than {settings.MIN_FREE_BYTES // 2**20} MiB left (MIN_FREE_BYTES). Make room."
    )


def why_not_writable() -> str:
    """Why no file can be stored now, and what to do; empty if one can."""
    return no_room_hint() or _why_database_is_not_writable() or file_storage().trouble()


def _why_database_is_not_writable() -> str:
    """Of SQLite, by its files and their directory. To write a row would wait behind whoever writes."""
    if connection.vendor != "sqlite" or not (path := Path(connection.settings_dict["NAME"])).is_file():
        return ""
    for each in (path.parent, path, path.with_name(f"{path.name}-wal")):
        if each.exists() and not os.access(each, os.W_OK):
            return "The database cannot be written. Let the user that runs the server write in DATA_DIR."
    return ""


def temporary_file(name: str) -> AbstractContextManager[MeasuredFile]:
    """A file to write to and to save under this name inside the block; removed at the end of the block if it was not
    saved.

    What a process leaves that is killed meanwhile is removed by `retention.sweep`.
    """
    return incoming(file_storage(), name)


@contextmanager
def incoming(storage: FileStorage, name: str) -> Iterator[MeasuredFile]:
    file = storage.incoming(name)
    try:
        yield file
    finally:
        file.close()
