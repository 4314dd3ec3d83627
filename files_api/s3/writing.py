"""Write an object by a multipart upload: it is there whole at the end, or not at all."""

import errno
import hashlib
import logging
import secrets
from base64 import b64encode
from tempfile import TemporaryFile
from typing import IO, Any

from django.conf import settings

from common.disk import RemoteError
from files_api.s3.bucket import Bucket
from files_api.storage import MeasuredFile

logger = logging.getLogger(__name__)

# All parts but the last have one size, as some servers want it. Amazon takes 10,000 parts, so these are 78 GiB; parts
# beyond MOST_ALIKE are larger, and an object has 1.7 TiB at most.
PART_BYTES = 2**23
MOST_ALIKE, GROWS_EVERY = 9000, 100
# The server says so if it does not know If-None-Match.
UNKNOWN = "NotImplemented"
NOTHING_REPLACED = {"IfNoneMatch": "*"}


class PartedFile(MeasuredFile):
    """Bytes on their way into an object. The part that is being filled lies in a temporary file without a name, and is
    sent when it is full: so an upload takes the disk PART_BYTES twice, however large it is, and hardly any memory,
    however slowly its client sends. The first part is kept for whoever looks at the beginning.

    What fits into one part is sent as one object. Each part has its MD5, so a server that got other bytes refuses it.
    """

    def __init__(self, stored_as: str, bucket: Bucket, key: str) -> None:
        super().__init__(stored_as, _nameless())
        self._bucket, self._key = bucket, key
        self._part: IO[bytes] = self.file
        self._filled = 0  # of the part that is being filled
        self._sent: list[dict[str, Any]] = []
        self._upload_id = ""
        # By it an object is known for ours, if the answer to the last request was lost.
        self._writer = secrets.token_hex(16)

    @property
    def _part_bytes(self) -> int:
        return PART_BYTES << max(0, len(self._sent) - MOST_ALIKE) // GROWS_EVERY

    def _take(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            if self._filled == self._part_bytes:
                self._send_part()
            piece = rest[: self._part_bytes - self._filled]
            self._part.write(piece)
            self._filled += len(piece)
            rest = rest[len(piece) :]

    def sync(self) -> None:
        if self._upload_id and self._filled:
            self._send_part()

    def _send_part(self) -> None:
        if not self._upload_id:
            answer = self._bucket.ask("create_multipart_upload", Key=self._key, **self._described)
            self._upload_id = answer["UploadId"]
        number = len(self._sent) + 1
        names: dict[str, Any] = {"Key": self._key, "UploadId": self._upload_id, "PartNumber": number}
        answer = self._bucket.ask("upload_part", **names, **_body(self._part))
        self._sent.append({"PartNumber": number, "ETag": answer["ETag"]})
        if self._part is self.file:
            self._part = _nameless()
        else:
            self._part.seek(0)
            self._part.truncate()
        self._filled = 0

    def commit(self, *, replaces: bool = False) -> None:
        """Make the object. Raises OSError; EEXIST if there is one of another writer, which stays unless this one
        `replaces` it."""
        self.sync()
        try:
            self._commit({} if replaces else NOTHING_REPLACED)
        except RemoteError as error:
            if not self._is_there(error):
                raise
        self._upload_id = ""

    def _commit(self, condition: dict[str, Any]) -> None:
        try:
            if self._upload_id:
                made_of: dict[str, Any] = {"UploadId": self._upload_id, "MultipartUpload": {"Parts": self._sent}}
                self._bucket.ask("complete_multipart_upload", Key=self._key, **made_of, **condition)
            else:
                self._bucket.ask("put_object", Key=self._key, **_body(self._part), **self._described, **condition)
        except RemoteError as error:
            if condition and error.code == UNKNOWN:
                return self._commit({})
            raise

    def _is_there(self, error: RemoteError) -> bool:
        """Whether the object was made all the same: a request that is sent twice finds what the first one did. Raises
        the OSError that says what is in its place."""
        if error.errno not in (errno.ESTALE, errno.ENOENT):
            return False
        try:
            found = self._bucket.ask("head_object", Key=self._key)
        except OSError:
            return False
        if found.get("Metadata", {}).get("writer") == self._writer:
            return True
        if error.errno == errno.ENOENT:
            return False
        raise RemoteError(errno.EEXIST, f"{self._bucket.where} has the object {self._key} already", "Look who wrote it")

    @property
    def _described(self) -> dict[str, Any]:
        return {"ContentType": "application/octet-stream", "Metadata": {"writer": self._writer}}

    def close(self) -> None:
        self._part.close()
        super().close()
        upload_id, self._upload_id = self._upload_id, ""
        if upload_id:
            try:
                self._bucket.ask("abort_multipart_upload", probe=True, Key=self._key, UploadId=upload_id)
            except OSError as error:
                logger.warning("an upload that was given up is left for the sweep: %s", error.strerror)


def _nameless() -> IO[bytes]:
    return TemporaryFile(dir=settings.UPLOAD_DIR)


def _body(file: Any) -> dict[str, Any]:
    """A file as the body of a request."""
    file.seek(0)
    digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    file.seek(0)
    return {"Body": file, "ContentMD5": b64encode(digest).decode()}
