"""One drive's share of its backend: how many calls it may have in flight, and whether it has the backend to itself."""

import time
from collections.abc import Sequence

from batches import alone
from batches.backends.calls import Call, CallPool
from batches.models import Backend, Lease
from batches.window import Window, share


class Share:
    """`room` calls may be in flight; none may be sent while `stands_aside` for another drive.

    `backend` is the row as the drive read it last; it reads it again before each `look`.
    """

    def __init__(self, backend: Backend, lease: Lease, calls: CallPool, *, most: int) -> None:
        self.backend = backend
        self.lease = lease
        self.calls = calls
        self.window = Window(backend.parallel, most=most, size=backend.window)
        self.room = 1
        self.stands_aside = False
        self.has_backend_alone = False
        if alone.drives(backend) == [lease.pk]:
            # Nobody used it lately: what was loaded may be gone, and what it was too busy for is long over.
            backend.now_has_loaded("")
            backend.resize_window(self.window.size)
        self._known_size = self.window.size  # as all drives know it

    def note(self, call: Call) -> None:
        """Take in what became of a call."""
        self.window.note(call, time.monotonic())
        self.room = min(self.room, self.window.size)  # at once if it shrank

    def look(self, *, is_idle: bool) -> None:
        """Take our part of the window, and stand aside for a drive that wants the backend to itself: that is done once
        we are idle, with nothing in flight and nothing to store."""
        drives = alone.drives(self.backend)
        self._resize(drives)
        self.room = share(self.window.size, drives, self.lease.pk)
        self.calls.running, self.calls.is_known = self.window.running, self.window.parallel is not None
        self.stands_aside = alone.is_anothers(self.backend, self.lease)
        alone.stand_by(self.lease, self.stands_aside and is_idle)
        if not self.stands_aside:
            # Another one may have taken it while our row still said that we stand by.
            self.backend.refresh_from_db(fields=["alone"])
            self.stands_aside = alone.is_anothers(self.backend, self.lease)
            alone.stand_by(self.lease, self.stands_aside and is_idle)

    def _resize(self, drives: Sequence[int]) -> None:
        if self.window.size == self._known_size:
            self.window.adopt(self.backend.window or self.window.size)
            if drives[:1] == [self.lease.pk]:
                # One of them decides for all when it may grow.
                self.window.look(time.monotonic(), is_full=len(self.calls.in_flight) >= self.room)
        if self.window.size != self.backend.window:
            self.backend.resize_window(self.window.size)
        self._known_size = self.window.size

    def take_backend_alone(self) -> bool:
        """True once no other drive sends anything. Ask again until then."""
        self.has_backend_alone = alone.take(self.backend, self.lease)
        return self.has_backend_alone

    def give_backend_back(self) -> None:
        """Also where others did not stand by yet. Safe to call at any time."""
        if self.backend.alone_id == self.lease.pk:
            alone.give_back(self.backend, self.lease)
        self.has_backend_alone = False
