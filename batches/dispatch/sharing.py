"""One drive's share of its backend: how many calls it may have in flight, and whether it has the backend to itself."""

import time
from collections.abc import Sequence

from batches.backends.calls import Call
from batches.dispatch import alone
from batches.dispatch.concurrency_limit import ConcurrencyLimit, portion
from batches.models import Backend, Lease, Line


class SharedBackend:
    """`room` calls may be in flight; none may be sent while `stands_aside` for another drive.

    `backend` is the row as the drive read it last; it reads it again before each `look`.
    """

    def __init__(self, backend: Backend, lease: Lease, *, most: int) -> None:
        self._backend = backend
        self._lease = lease
        self.limit = ConcurrencyLimit(backend.parallel, most=most, size=backend.concurrency_limit)
        self.room = 1
        self.stands_aside = False
        self.was_unused = alone.drives(backend) == [lease.pk]  # no other drive has used the backend lately
        if self.was_unused:
            # What the server was too busy for is long over.
            backend.set_concurrency_limit(self.limit.size)
        self._known_size = self.limit.size  # as all drives know it

    def note(self, call: Call[Line]) -> None:
        """Take in what became of a line's call."""
        self.limit.note(call, call.subject.model, time.monotonic())
        self.room = min(self.room, self.limit.size)  # at once if it shrank

    def look(self, *, is_idle: bool, in_flight: int) -> None:
        """Take our part of the window, and stand aside for a drive that wants the backend to itself: that is done once
        we are idle, with nothing in flight and nothing to store."""
        drives = alone.drives(self._backend)
        self._resize(drives, is_full=in_flight >= self.room)
        self.room = portion(self.limit.size, drives, self._lease.pk)
        self.stands_aside = alone.is_anothers(self._backend, self._lease)
        alone.stand_by(self._lease, self.stands_aside and is_idle)
        if not self.stands_aside:
            # Another one may have taken it while our row still said that we stand by.
            self._backend.refresh_from_db(fields=["alone"])
            self.stands_aside = alone.is_anothers(self._backend, self._lease)
            alone.stand_by(self._lease, self.stands_aside and is_idle)

    def _resize(self, drives: Sequence[int], *, is_full: bool) -> None:
        if self.limit.size == self._known_size:
            self.limit.adopt(self._backend.concurrency_limit or self.limit.size)
            if drives[:1] == [self._lease.pk]:
                # One of them decides for all when it may grow.
                self.limit.look(time.monotonic(), is_full=is_full)
        if self.limit.size != self._backend.concurrency_limit:
            self._backend.set_concurrency_limit(self.limit.size)
        self._known_size = self.limit.size

    def take_backend_alone(self) -> bool:
        """True once no other drive sends anything. Ask again until then."""
        return alone.take(self._backend, self._lease)

    def give_backend_back(self) -> None:
        """Let the other drives send again, whether they stood by already or not. Safe to call at any time."""
        if self._backend.alone_id == self._lease.pk:
            alone.give_back(self._backend, self._lease)
