"""The bytes of an object at many places, kept on the disk: each stretch is asked for once, however many lines it
has."""

import os
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from tempfile import TemporaryFile

from django.conf import settings

from files_api.s3.reading import RangeReader

BLOCK_BYTES = 2**22
# Neighbours are asked for in one request.
MOST_BLOCKS_AT_ONCE = 4
# A disk that is full stays so: no fewer blocks are kept, so that a line that lies in two of them is had whole.
LEAST_KEPT = 16
PIECE_BYTES = 2**18


class CachedSpans:
    """Implements `files_api.storage.Spans`. The lines of a batch are sent in an order of their own, so their places lie
    all over its input file. Blocks around them are fetched by a thread, and lie in a sparse temporary file that has no
    name, so nothing is left of it after a kill.

    `open_` opens the object; it is called in that thread.
    """

    def __init__(self, open_: Callable[[], RangeReader]) -> None:
        self._open = open_
        self._changed = threading.Condition()
        self._there: set[int] = set()
        self._wanted: list[int] = []
        self._error: Exception | None = None
        self._is_closed = False
        self._size: int | None = None
        self._file = TemporaryFile(dir=settings.UPLOAD_DIR, buffering=0)  # noqa: SIM115  (closed by the thread)
        threading.Thread(target=self._run, name="input file", daemon=True).start()

    def has(self, offset: int, length: int) -> bool:
        with self._changed:
            if self._error is not None:
                return True
            missing = [each for each in self._blocks(offset, length) if each not in self._there]
            if new := [each for each in missing if each not in self._wanted]:
                self._wanted += new
                self._changed.notify()
            return not missing and self._size is not None

    def read(self, offset: int, length: int) -> bytes:
        """Waits for the bytes if `has` did not say that they are there."""
        with self._changed:
            while not self.has(offset, length):
                self._changed.wait()
            if self._error is not None:
                raise self._error
            assert self._size is not None
            return os.pread(self._file.fileno(), max(0, min(length, self._size - offset)), offset)

    def close(self) -> None:
        """Waits for nothing: the thread ends once its request is over."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _blocks(self, offset: int, length: int) -> Iterable[int]:
        end = offset + length if self._size is None else min(offset + length, self._size)
        return range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES))

    def _run(self) -> None:
        reader = None
        try:
            reader = self._open()
            with self._changed:
                self._size = reader.size
            while blocks := self._next():
                self._fetch(reader, blocks)
        except Exception as error:  # noqa: BLE001  (whoever reads gets it)
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            with suppress(Exception):
                if reader is not None:
                    reader.close()
            self._wait_for_close()
            self._file.close()

    def _wait_for_close(self) -> None:
        with self._changed:
            while not self._is_closed:
                self._changed.wait()

    def _next(self) -> list[int]:
        """The blocks that are fetched now, which are neighbours; none if it is closed."""
        with self._changed:
            while not self._wanted and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return []
            blocks = [self._wanted[0]]
            while len(blocks) < MOST_BLOCKS_AT_ONCE and blocks[-1] + 1 in self._wanted:
                blocks.append(blocks[-1] + 1)
            self._make_room(len(blocks) * BLOCK_BYTES)
            return blocks

    def _make_room(self, size: int) -> None:
        """If the disk gets full, forget what was kept: it is asked for again as needed."""
        is_full = shutil.disk_usage(settings.UPLOAD_DIR).free < settings.MIN_FREE_BYTES + size
        if is_full and len(self._there) > LEAST_KEPT:
            self._there.clear()
            self._file.truncate(0)

    def _fetch(self, reader: RangeReader, blocks: list[int]) -> None:
        position, end = blocks[0] * BLOCK_BYTES, min(reader.size, (blocks[-1] + 1) * BLOCK_BYTES)
        reader.ask_at_once_for(end - position)
        reader.seek(position)
        piece = bytearray(PIECE_BYTES)
        while position < end and not self._is_closed:
            read = reader.readinto(memoryview(piece)[: end - position])
            os.pwrite(self._file.fileno(), memoryview(piece)[:read], position)
            position += read
            self._note(block for block in blocks if min(reader.size, (block + 1) * BLOCK_BYTES) <= position)
        self._note(blocks)

    def _note(self, blocks: Iterable[int]) -> None:
        with self._changed:
            for block in blocks:
                if block not in self._there:
                    self._there.add(block)
                    with suppress(ValueError):
                        self._wanted.remove(block)
            self._changed.notify_all()
