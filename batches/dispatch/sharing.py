"""One drive's room at a shared backend, and whether the drive has the backend to itself."""

import time
from collections.abc import Sequence

from batches.backends.base import BackendKind
from batches.backends.calls import Call
from batches.dispatch import alone
from batches.dispatch.concurrency_limit import ConcurrencyLimit, portion
from batches.models import Backend, Lease, Line


class SharedBackend:
    """`room` calls may be in flight; none may be sent while `stands_aside` for another drive.

    `backend` is the row as the drive read it last; the drive reads the row again before each `look`.
    """

    def __init__(self, backend: Backend, lease: Lease, kind: BackendKind) -> None:
        self._backend = backend
        self._lease = lease
        self._kind = kind
        self.limit = ConcurrencyLimit(
            backend.serves_at_once,
            most=kind.most_in_flight,
            size=backend.concurrency_limit,
            cache_is_by_slot=kind.cache_is_by_slot,
        )
        self.room = 1
        self.stands_aside = False
        self._drives = [lease.pk]
        self.was_unused = alone.drives(backend) == [lease.pk]  # no other drive has used the backend lately
        if self.was_unused:
            # If the limit shrank because the server was busy, that is long over.
            backend.set_concurrency_limit(self.limit.size)
        self._known_size = self.limit.size  # the size that all drives know

    @property
    def lanes(self) -> int:
        """How many lanes of lines make the best use of the prompts that the backend keeps."""
        slots = self.limit.parallel if self._kind.cache_is_by_slot else None
        return min(self.room, slots or 1)

    @property
    def is_oldest_drive(self) -> bool:
        """This drive decides for all drives of the backend."""
        return self._drives[:1] == [self._lease.pk]

    @property
    def begun(self) -> int:
        """How many of our calls the backend has begun: the oldest ones. Of slots that nobody has counted, there is one
        at least. If there are fewer slots than drives, the younger drives have none."""
        unknown = 1 if self._kind.cache_is_by_slot else self.limit.running
        return portion(self.limit.parallel or unknown, self._drives, self._lease.pk, least=0)

    def note(self, call: Call[Line]) -> None:
        """Take in what became of a line's call."""
        self.limit.note(call, call.subject.model, time.monotonic())
        self.room = min(self.room, self.limit.size)  # at once if the limit shrank

    def look(self, *, is_idle: bool, in_flight: int) -> None:
        """Take our room of the concurrency limit, and stand aside for a drive that wants the backend to itself. We say
        that we stand by once we are idle: nothing in flight, and nothing to store."""
        drives = self._drives = alone.drives(self._backend)
        self._resize(drives, is_full=in_flight >= self.room)
        self.room = portion(self.limit.size, drives, self._lease.pk)
        self.stands_aside = alone.is_anothers(self._backend, self._lease)
        alone.stand_by(self._lease, self.stands_aside and is_idle)
        if not self.stands_aside:
            # Another drive may have taken the backend alone while our lease still said that we stand by.
            self._backend.refresh_from_db(fields=["alone"])
            self.stands_aside = alone.is_anothers(self._backend, self._lease)
            alone.stand_by(self._lease, self.stands_aside and is_idle)

    def _resize(self, drives: Sequence[int], *, is_full: bool) -> None:
        self.limit.know(self._backend.serves_at_once)
        if self.limit.size == self._known_size:
            self.limit.adopt(self._backend.concurrency_limit or self.limit.size)
            if self.is_oldest_drive:
                # The oldest drive decides for all when the limit may grow.
                self.limit.look(time.monotonic(), is_full=is_full)
        if self.limit.size != self._backend.concurrency_limit:
            self._backend.set_concurrency_limit(self.limit.size)
        self._known_size = self.limit.size

    def take_backend_alone(self) -> bool:
        """True once no other drive sends anything. Call again until then."""
        return alone.take(self._backend, self._lease)

    def give_backend_back(self) -> None:
        """Let the other drives send again, whether they stood by already or not. Safe to call at any time."""
        if self._backend.alone_id == self._lease.pk:
            alone.give_back(self._backend, self._lease)
