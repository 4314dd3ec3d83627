"""One drive's room at a shared backend, and whether the drive has the backend to itself."""

import time
from collections.abc import Iterable
from typing import Any

from batches import leases
from batches.backends.base import BackendKind
from batches.backends.in_flight import Call
from batches.backends.replies import Verdict
from batches.backends.states import PromptCache
from batches.dispatch import alone
from batches.dispatch.concurrency_limit import ConcurrencyLimit, portion
from batches.dispatch.questions import Purpose, Question
from batches.models import Backend, Lease, Line
from common.database import retrying

OCCUPANCY = Question(Purpose.OCCUPANCY, "", "")
ASK_AGAIN_S = 60.0  # a server that did not say how busy it is
# vLLM takes 6 ms to answer. Once the limit has not changed for so many answers, it is asked less often.
STEADY_ANSWERS, ASK_STEADY_S = 10, 5.0


class SharedBackend:
    """`room` calls may be in flight; none may be sent while `stands_aside` for another drive.

    `backend` is the row as the drive read it last; the drive reads the row again each second.
    """

    def __init__(self, backend: Backend, lease: Lease, kind: BackendKind) -> None:
        self._backend = backend
        self._lease = lease
        self._kind = kind
        self.limit = ConcurrencyLimit(
            backend.serves_at_once,
            most=kind.most_in_flight,
            size=backend.concurrency_limit,
            cache_is_by_slot=kind.cache is PromptCache.BY_SLOT,
        )
        self.room = 1
        self.stands_aside = False
        self._drives = leases.alive(backend.pk)
        self._ask_at = float("-inf")
        self._steady = 0  # answers since the limit changed
        self.was_unused = self._drives == [lease.pk]  # no other drive has used the backend lately
        if self.was_unused:
            # If the limit shrank because the server was busy, that is long over.
            backend.set_concurrency_limit(self.limit.size)
        self._known_size = self.limit.size  # the size that all drives know

    @property
    def lanes(self) -> int:
        """How many lanes of lines make the best use of the prompts that the backend keeps."""
        slots = self.limit.parallel if self._kind.cache is PromptCache.BY_SLOT else None
        return min(self.room, portion(slots or 1, self._drives, self._lease.pk))

    @property
    def is_oldest_drive(self) -> bool:
        """This drive decides for all drives of the backend."""
        return self._drives[:1] == [self._lease.pk]

    @property
    def begun(self) -> int:
        """How many of our calls the backend has begun: the oldest ones. Of slots that nobody has counted, there is one
        at least. If there are fewer slots than drives, the younger drives have none."""
        unknown = 1 if self._kind.cache is PromptCache.BY_SLOT else self.limit.running
        return portion(self.limit.parallel or unknown, self._drives, self._lease.pk, least=0)

    def note(self, call: Call[Line]) -> None:
        """Take in what became of a line's call."""
        self.limit.note(call, call.subject.model, time.monotonic())
        self.room = min(self.room, self.limit.size)  # at once if the limit shrank

    def call_beside(self, in_flight: Iterable[Call[Any]]) -> Call[Question] | None:
        """The call that asks the server how busy it is, beside those `in_flight`; None if there is nothing to ask. One
        drive asks, and decides for all."""
        if not self._kind.tells_occupancy or self.limit.parallel is not None or not self.is_oldest_drive:
            return None
        is_asked = any(call.subject == OCCUPANCY for call in in_flight)
        has_work = not self.limit.is_told or any(isinstance(call.subject, Line) for call in in_flight)
        if is_asked or not has_work or time.monotonic() < self._ask_at:
            return None
        return OCCUPANCY.call(self._kind, is_loaded=True)

    def note_answer(self, call: Call[Question]) -> None:
        """Take in the answer to a question: our room is larger at once, if the server has place for more calls."""
        if call.subject != OCCUPANCY:
            return
        now, size = time.monotonic(), self.limit.size
        if call.verdict is not Verdict.ANSWERED:
            self._ask_at = now + ASK_STEADY_S
            return
        self.limit.note_occupancy(call.result, now)
        self._steady = self._steady + 1 if self.limit.size == size else 0
        self._ask_at = now + (ASK_STEADY_S if self._steady >= STEADY_ANSWERS else 0.0)
        if call.result is None:
            self._ask_at = now + ASK_AGAIN_S
        self.room = portion(self.limit.size, self._drives, self._lease.pk)

    def look(self, *, is_idle: bool, in_flight: int) -> None:
        """Take our room of the concurrency limit, and stand aside for a drive that wants the backend to itself. We say
        that we stand by once we are idle: nothing in flight, and nothing to store."""
        self._drives = leases.alive(self._backend.pk)
        self._resize(is_full=in_flight >= self.room)
        self.room = portion(self.limit.size, self._drives, self._lease.pk)
        stood_by = self._lease.stands_by
        self.stands_aside = alone.is_anothers(self._backend, self._lease)
        alone.stand_by(self._lease, self.stands_aside and is_idle)
        if stood_by and not self.stands_aside:
            # Another drive may have taken the backend alone while our lease still said that we stand by.
            self._backend.refresh_from_db(fields=["alone"])
            self.stands_aside = alone.is_anothers(self._backend, self._lease)
            alone.stand_by(self._lease, self.stands_aside and is_idle)

    def _resize(self, *, is_full: bool) -> None:
        self.limit.know(self._backend.serves_at_once)
        if self.limit.size == self._known_size:
            self.limit.adopt(self._backend.concurrency_limit or self.limit.size)
            if self.is_oldest_drive:
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
            retrying(alone.give_back, self._backend, self._lease)
