"""Read an object by ranges: in order, or here and there; and go on where a connection broke."""

import errno
import io
import time
from contextlib import suppress
from functools import partial
from typing import Any

from common.disk import RemoteError
from files_api.s3.bucket import Bucket

# What is asked for at once grows while reading goes on in order: a look here and there costs little, and a whole object
# few requests.
FIRST_BYTES, GROWTH, MOST_BYTES = 2**17, 4, 2**25
# Nearer bytes ahead are read and thrown away: that is faster than another request.
SKIPPED_BYTES = 2**18
# How long reading is tried again after a connection broke, or the server said that it is busy.
PATIENCE_S = 20.0
FIRST_PAUSE_S = 0.2
MAY_PASS = (errno.EIO, errno.EAGAIN, errno.ENOTCONN, errno.ETIMEDOUT)


class RangeReader(io.RawIOBase):
    """The bytes of one object as they are now. If another takes its place meanwhile, reading raises OSError (ESTALE)
    instead of mixing the two. Put a BufferedReader around it to read lines."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        """Asks for the first byte: that tells how many there are. Raises OSError, FileNotFoundError too."""
        super().__init__()
        self._bucket, self._key = bucket, key
        self._position = 0
        self._body: Any = None  # of the answer that is being read
        self._body_at = self._body_end = 0
        self._range_bytes = 0  # of the last request
        self._wished_bytes = 0
        self._size, self._etag = self._look()

    def _look(self) -> tuple[int, str]:
        # Not HEAD: its errors have no code, so a bucket that is missing would look like an object that is missing.
        answer = self._bucket.wait_for(self._first_byte)
        if answer is None:
            return 0, ""
        return int(answer["ContentRange"].rpartition("/")[2]), answer["ETag"]

    def _first_byte(self) -> Any:
        client = self._bucket.client()
        try:
            answer = client.get_object(Bucket=self._bucket.name, Key=self._key, Range="bytes=0-0")
            answer["Body"].read()
            return answer
        except client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:
                return None  # it has no byte
            raise

    @property
    def size(self) -> int:
        return self._size

    def ask_at_once_for(self, size: int) -> None:
        """Let the next request be for so many bytes."""
        self._drop()
        self._wished_bytes = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Costs nothing: the next read asks for what is missing."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        ends_at, pause_s = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
        while True:
            try:
                piece = self._bucket.wait_for(lambda: self._read(wanted))
            except RemoteError as error:
                self._drop()
                if error.errno not in MAY_PASS or time.monotonic() + pause_s > ends_at:
                    raise
                self._bucket.wait_for(partial(time.sleep, pause_s))
                pause_s *= 2
                continue
            buffer[: len(piece)] = piece
            self._position += len(piece)
            return len(piece)

    def _read(self, wanted: int) -> bytes:
        ahead = self._position - self._body_at
        if self._body is None or not 0 <= ahead <= SKIPPED_BYTES or self._position >= self._body_end:
            self._begin()
        elif ahead:
            self._take(ahead)
        piece = self._take(min(wanted, self._body_end - self._body_at))
        if self._body_at == self._body_end:
            self._drop()  # it was read to its end, so its connection is free
        return piece

    def _take(self, size: int) -> bytes:
        piece: bytes = self._body.read(size)
        self._body_at += len(piece)
        if len(piece) < size:
            raise TimeoutError(errno.ETIMEDOUT, "The answer is shorter than it says")
        return piece

    def _begin(self) -> None:
        goes_on = self._position == self._body_end and self._range_bytes
        grown = min(MOST_BYTES, self._range_bytes * GROWTH) if goes_on else FIRST_BYTES
        self._range_bytes, self._wished_bytes = self._wished_bytes or grown, 0
        self._drop()
        end = min(self._size, self._position + self._range_bytes)
        answer = self._bucket.client().get_object(
            Bucket=self._bucket.name,
            Key=self._key,
            Range=f"bytes={self._position}-{end - 1}",
            IfMatch=self._etag,
        )
        self._body, self._body_at, self._body_end = answer["Body"], self._position, end

    def _drop(self) -> None:
        if self._body is not None:
            with suppress(Exception):
                self._body.close()
            self._body = None

    def close(self) -> None:
        self._drop()
        super().close()
