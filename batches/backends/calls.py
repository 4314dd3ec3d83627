"""Calls in flight: each in a thread with a connection of its own, so that the drive's loop never waits for a call."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from urllib3.exceptions import HTTPError

from batches.backends.base import BackendKind, Exchange, Unchecked
from batches.backends.connection import NEVER_SENT, Connection, Cut, ReplyTooLarge
from batches.backends.replies import Reply, Verdict, refused

logger = logging.getLogger(__name__)

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


@dataclass(eq=False)
class Call(Generic[S_co]):
    """One request to the model server, made for its `subject`. `timeout_s` is its deadline, counted from when the
    server begins to compute the call: until then, the call may wait at the server behind others.

    If `ask` is set, it is run in place of the request, and `result` is what `ask` returns: None unless the verdict is
    ANSWERED. A call that `is_light` costs the server no computing: it takes no place of the others and waits for none.
    """

    subject: S_co
    endpoint: str
    body: dict[str, Any]
    timeout_s: float
    ask: Callable[[Exchange], Any] | None = None
    is_light: bool = False
    result: Any = None
    started: float = field(default_factory=time.monotonic)
    running_since: float | None = None
    answered: float | None = None  # when the answer came; a question about it has as long again
    was_shared: bool = False  # the server may have computed others at the same time
    connection: Connection | None = None
    is_cut: bool = False
    timed_out: bool = False
    finished: float = 0.0
    duration_s: float = 0.0  # of the server's work, without the wait at the server
    reply: Reply | None = None
    is_charged: bool = False  # its line is charged with the failure

    @property
    def verdict(self) -> Verdict:
        return self.reply.verdict if self.reply is not None else Verdict.CUT

    @property
    def is_overdue(self) -> bool:
        since = self.answered or self.running_since
        return since is not None and time.monotonic() > since + self.timeout_s


class CallPool(Generic[S]):
    """Threads that each send one call at a time; as many threads as were ever needed at once. For one user: one loop
    submits, waits and cuts.

    `running` is how many of the calls in flight the server computes at once; a guess, unless `is_known`. The calls
    behind them wait at the server, and their deadlines do not run yet.
    """

    def __init__(self, kind: BackendKind, connect: Callable[[], Connection]) -> None:
        self.kind = kind
        self.running, self.is_known = 1, False
        self.in_flight: list[Call[S]] = []  # in the order in which they were sent
        self._connect = connect
        self._todo: queue.SimpleQueue[Call[S] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Call[S]] = queue.SimpleQueue()
        self._threads = 0

    def serves(self, running: int, *, is_known: bool) -> None:
        """The server computes `running` calls at once; `is_known`: that is no guess."""
        self.running, self.is_known = running, is_known

    def submit(self, call: Call[S]) -> None:
        call.started = time.monotonic()
        self.in_flight.append(call)
        self._start_clocks()
        if len(self.in_flight) > self._threads:
            # Daemons: a call that cannot be ended must not keep the process from exiting.
            name = f"call-{self._threads}"
            threading.Thread(target=self._serve, args=(self._connect(),), name=name, daemon=True).start()
            self._threads += 1
        self._todo.put(call)

    def wait(self, timeout_s: float) -> list[Call[S]]:
        """The calls that finished; waits at most `timeout_s` seconds for the first of them. Cuts overdue calls."""
        for call in self.in_flight:
            if call.is_overdue and not call.timed_out:
                call.timed_out = True
                self.cut(call)
        finished: list[Call[S]] = []
        try:
            finished.append(self._done.get(timeout=timeout_s))
            while True:
                finished.append(self._done.get_nowait())
        except queue.Empty:
            pass
        for call in finished:
            self.in_flight.remove(call)
            call.duration_s = max(0.0, call.finished - (call.running_since or call.started))
        self._start_clocks()
        return finished

    def _start_clocks(self) -> None:
        now = time.monotonic()
        computing = self.computing
        for call in [*computing[: self.running], *(call for call in self.in_flight if call.is_light)]:
            # A call that has finished and was not fetched yet was computed beside the others.
            if not call.finished:
                call.running_since = call.running_since or now
        together = computing[: self.running] if self.is_known else computing
        if len(together) > 1:
            for call in together:
                call.was_shared = True

    @property
    def computing(self) -> list[Call[S]]:
        """The calls in flight that take the server's time, in the order in which they were sent."""
        return [call for call in self.in_flight if not call.is_light]

    @property
    def waiting(self) -> list[Call[S]]:
        """The calls in flight that the server has not begun."""
        return self.computing[self.running :]

    def mark_shared(self) -> None:
        """A person's request is at the server beside the calls in flight."""
        for call in self.in_flight:
            call.was_shared = True

    def cut(self, call: Call[S]) -> None:
        call.is_cut = True
        if call.connection is not None:
            call.connection.cut(call)

    def cut_all(self, calls: Iterable[Call[S]]) -> None:
        for call in list(calls):
            self.cut(call)

    def close(self) -> None:
        """Cut the calls in flight and end the threads."""
        self.cut_all(self.in_flight)
        for _ in range(self._threads):
            self._todo.put(None)

    def _serve(self, connection: Connection) -> None:
        while (call := self._todo.get()) is not None:
            call.connection = connection
            try:
                call.reply = Reply(Verdict.CUT) if call.is_cut else self._send(connection, call)
            except Exception as error:  # noqa: BLE001  (a bug has to fail this line and not the loop that waits for it)
                # The type alone: the text may hold a prompt.
                logger.error("a call ended with %s", type(error).__name__)
                message = f"The request could not be sent or its reply not be read ({type(error).__name__})."
                call.reply = Reply(Verdict.FAILED, code="internal_error", message=message)
            call.finished = time.monotonic()
            self._done.put(call)
        connection.close()

    def _send(self, connection: Connection, call: Call[S]) -> Reply:
        try:
            if call.ask is not None:
                call.result = call.ask(connection.exchange(call))
                return Reply(Verdict.ANSWERED)
            status, content = connection.post(call.endpoint, call.body, call=call)
        except Cut:
            if call.timed_out:
                message = f"The underlying call to the model did not finish within {call.timeout_s:g} seconds."
                return Reply(Verdict.FAILED, code="request_timeout", message=message)
            return Reply(Verdict.CUT)
        except ReplyTooLarge:
            message = f"The reply is larger than {connection.max_reply_bytes} bytes (MAX_REPLY_BYTES)."
            return Reply(Verdict.FAILED, code="reply_too_large", message=message)
        except NEVER_SENT as error:
            return Reply(Verdict.UNREACHABLE, message=type(error).__name__)
        except (HTTPError, OSError) as error:
            # Reset, closed, a body cut short, broken chunks, undecodable compression.
            message = f"The model server broke the connection ({type(error).__name__})."
            return Reply(Verdict.CRASHED, code="backend_crash", message=message)
        reply = replace(self.kind.judge(call.endpoint, status, content), retry_after_s=connection.retry_after_s)
        match reply.verdict:
            case Verdict.ANSWERED:
                return self._checked(connection, call, reply)
            case Verdict.MODEL_MISSING | Verdict.ENDPOINT_MISSING:
                return self._borne_out(connection, call, reply)
        return reply

    def _borne_out(self, connection: Connection, call: Call[S], reply: Reply) -> Reply:
        """The reply with the verdict that the server bears out; FAILED if the server cannot be asked."""
        try:
            return self.kind.borne_out(connection.exchange(call), call.endpoint, str(call.body.get("model")), reply)
        except Cut:
            return Reply(Verdict.CUT)
        except (HTTPError, OSError, ReplyTooLarge):
            return replace(reply, verdict=Verdict.FAILED)

    def _checked(self, connection: Connection, call: Call[S], answer: Reply) -> Reply:
        """The answer, if the server read the whole prompt; a refusal, if it cut the prompt; UNCHECKED if nobody knows,
        whatever the reason: an answer to half a prompt must never pass for one to the whole."""
        call.answered = time.monotonic()
        try:
            cut = self.kind.cut_prompt(connection.exchange(call), call.endpoint, call.body, answer.usage)
        except Unchecked as unchecked:
            if unchecked.verdict is Verdict.BUSY:
                return Reply(Verdict.BUSY, retry_after_s=connection.retry_after_s)
            return _unchecked(str(unchecked))
        except Cut:
            return _unchecked("no answer in time") if call.timed_out else Reply(Verdict.CUT)
        except (HTTPError, OSError, ReplyTooLarge) as error:
            return _unchecked(type(error).__name__)
        if cut is None:
            return answer
        refusal = refused("context_length_exceeded", cut.message)
        return replace(refusal, is_too_long=True, prompt_tokens=cut.prompt_tokens)


def _unchecked(why: str) -> Reply:
    logger.warning("an answer is not used: the server did not say whether it read the whole prompt (%s)", why)
    message = f"The model server did not say whether it read the whole prompt ({why})."
    return Reply(Verdict.UNCHECKED, code="prompt_unchecked", message=message)
