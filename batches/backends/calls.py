"""Calls in flight, beside the drive's loop, which never waits for a call.

Requests for lines go by one thread with many sockets. What asks the server several things in turn has a thread of its
own: a question of the drive, and the check of an answer or of a refusal.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from urllib3.exceptions import HTTPError

from batches.backends.base import BackendKind
from batches.backends.connection import BROKEN, NEVER_SENT, Connection, Cut, ReplyTooLarge, Server
from batches.backends.in_flight import Call, InFlight
from batches.backends.replies import Reply, Verdict, refused
from batches.backends.states import Exchange, NotDone, Unchecked, Unreachable
from batches.backends.transfers import Answer, Broken, Doubtful, NeverSent, Outcome, Transfers

logger = logging.getLogger(__name__)

# Before the question whether a prompt was read whole is asked again: a runner that died comes up meanwhile.
CHECK_PAUSES_S = (0.5, 2.0)
LOOK_AT_DEADLINES_EVERY_S = 0.05

S = TypeVar("S")

# Makes the reply to a call from what became of its request; None: not yet.
_Judge = Callable[[Call[S], Outcome], Reply | None]


class CallPool(Generic[S]):
    """The calls in flight to one server. For one user: one loop submits, waits and cuts."""

    def __init__(self, kind: BackendKind, server: Server) -> None:
        self.kind = kind
        self.in_flight: InFlight[S] = InFlight()
        self._looked_at_deadlines = float("-inf")
        self._server = server
        self._transfers = Transfers(server)
        self._done: queue.SimpleQueue[Call[S]] = queue.SimpleQueue()

    def serves(self, running: int, *, is_known: bool) -> None:
        """The server computes `running` calls at once; `is_known`: that is no guess."""
        self.in_flight.running, self.in_flight.is_known = running, is_known

    def submit(self, call: Call[S]) -> None:
        call.started = time.monotonic()
        self.in_flight.add(call)
        self.in_flight.start_clocks()
        if call.ask is None:
            self._finish(call, lambda: self._post(call))
        else:
            self._in_a_thread(call, self._ask)

    def wait(self, timeout_s: float) -> list[Call[S]]:
        """The calls that finished; waits at most `timeout_s` seconds for the first of them. Cuts overdue calls."""
        self._cut_overdue()
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
        self.in_flight.start_clocks()
        return finished

    def _cut_overdue(self) -> None:
        now = time.monotonic()
        if now < self._looked_at_deadlines + LOOK_AT_DEADLINES_EVERY_S:
            return
        self._looked_at_deadlines = now
        for call in self.in_flight:
            if call.is_overdue and not call.timed_out:
                call.timed_out = True
                self.cut(call)

    def cut(self, call: Call[S]) -> None:
        call.is_cut = True
        self._transfers.cut(call)
        if call.connection is not None:
            call.connection.cut(call)

    def cut_all(self, calls: Iterable[Call[S]]) -> None:
        for call in list(calls):
            self.cut(call)

    def close(self) -> None:
        """Cut the calls in flight and end the threads."""
        self.cut_all(self.in_flight)
        self._transfers.close()

    def _finish(self, call: Call[S], judge: Callable[[], Reply | None]) -> None:
        """The call is over with the reply that `judge` gives; not yet, if that is None."""
        try:
            reply = judge()
        except Exception as error:  # noqa: BLE001  (a bug has to fail this line and not the loop that waits for it)
            # The type alone: the text may hold a prompt.
            logger.error("a call ended with %s", type(error).__name__)
            message = f"The request could not be sent or its reply not be read ({type(error).__name__})."
            reply = Reply(Verdict.FAILED, code="internal_error", message=message)
        if reply is not None:
            call.reply = reply
            call.finished = time.monotonic()
            self._done.put(call)

    def _post(self, call: Call[S]) -> None:
        """Send the call so that persons go first, where the server can be told so."""
        ranked = self.kind.behind_persons(call.body)
        self._send(call, ranked, self._reply if ranked is call.body else self._reply_to_ranked)

    def _send(self, call: Call[S], body: dict[str, Any], judge: _Judge[S], *, may_keep: bool = True) -> None:
        """Send `body`; `judge` is called in the thread of the transfers. Unless it `may_keep` one, over a connection of
        its own, whatever the kind of server."""

        def reply_to(outcome: Outcome | Doubtful) -> Reply | None:
            if isinstance(outcome, Doubtful):
                if not self._is_sent_again_anyway(call, outcome.outcome):
                    return self._send_again(call, body, judge, may_keep=False)
                outcome = outcome.outcome
            return judge(call, outcome)

        # ASCII can carry what JSON allows and UTF-8 does not, such as half a surrogate pair.
        content = json.dumps(body).encode("ascii")
        url = self._server.url_of(call.endpoint, body)
        echoes_id = may_keep and call.endpoint in self.kind.echoes_request_id_at
        self._transfers.post(
            call, url, content, lambda outcome: self._finish(call, lambda: reply_to(outcome)), echoes_id=echoes_id
        )

    def _send_again(
        self, call: Call[S], body: dict[str, Any], judge: _Judge[S], *, may_keep: bool = True
    ) -> Reply | None:
        if call.is_cut:
            return self._failure(call, Cut())
        self._send(call, body, judge, may_keep=may_keep)
        if call.is_cut:  # between the two, there was nothing to cut
            self._transfers.cut(call)
        return None

    def _is_sent_again_anyway(self, call: Call[S], answered: Answer | ReplyTooLarge) -> bool:
        """By the drive, which knows when the server bears it again."""
        if isinstance(answered, ReplyTooLarge):
            return False
        verdict = self.kind.judge(call.endpoint, answered.status, answered.content).verdict
        return verdict in (Verdict.BUSY, Verdict.CRASHED)

    def _reply_to_ranked(self, call: Call[S], outcome: Outcome) -> Reply | None:
        if isinstance(outcome, Answer) and self.kind.may_refuse_rank(outcome.status, outcome.content):
            return self._send_again(call, call.body, self._reply_to_unranked)
        return self._reply(call, outcome)

    def _reply_to_unranked(self, call: Call[S], outcome: Outcome) -> Reply | None:
        if isinstance(outcome, Answer):
            self.kind.note_rank_refused(is_cause=outcome.status != 400)
        return self._reply(call, outcome)

    def _reply(self, call: Call[S], outcome: Outcome) -> Reply | None:
        if not isinstance(outcome, Answer):
            return self._failure(call, outcome)
        reply = self.kind.judge(call.endpoint, outcome.status, outcome.content)
        if outcome.retry_after_s:
            reply = replace(reply, retry_after_s=outcome.retry_after_s)
        match reply.verdict:
            case Verdict.ANSWERED:
                call.answered = time.monotonic()
                try:
                    return self._checked(_nobody, call, reply)
                except _MustAsk:
                    self._in_a_thread(
                        call, lambda connection, call: self._checked(connection.exchange(call), call, reply)
                    )
            case Verdict.MODEL_MISSING | Verdict.ENDPOINT_MISSING:
                self._in_a_thread(call, lambda connection, call: self._borne_out(connection, call, reply))
            case _:
                return reply
        return None

    def _in_a_thread(self, call: Call[S], ask: Callable[[Connection, Call[S]], Reply]) -> None:
        def run() -> None:
            call.connection = connection = self._server.connect()
            try:
                # Cut before it had a connection, or else the connection knows it.
                self._finish(call, lambda: self._failure(call, Cut()) if call.is_cut else ask(connection, call))
            finally:
                connection.close()

        # A daemon: a call that cannot be ended must not keep the process from exiting.
        threading.Thread(target=run, name="question", daemon=True).start()

    def _ask(self, connection: Connection, call: Call[S]) -> Reply:
        assert call.ask is not None
        try:
            call.result = call.ask(connection.exchange(call))
        except NotDone as error:
            return error.reply
        except Unreachable as error:
            return Reply(Verdict.UNREACHABLE, message=str(error))
        except (Cut, ReplyTooLarge) as error:
            return self._failure(call, error)
        except NEVER_SENT as error:
            return self._failure(call, NeverSent(type(error).__name__))
        except (HTTPError, OSError) as error:
            return self._failure(call, Broken(type(error).__name__))
        return Reply(Verdict.ANSWERED)

    def _failure(self, call: Call[S], error: Cut | ReplyTooLarge | NeverSent | Broken) -> Reply:
        """The reply to a call without an answer."""
        match error:
            case Cut() if call.timed_out:
                message = f"The underlying call to the model did not finish within {call.timeout_s:g} seconds."
                return Reply(Verdict.FAILED, code="request_timeout", message=message)
            case Cut():
                return Reply(Verdict.CUT)
            case ReplyTooLarge():
                message = f"The reply is larger than {self._server.max_reply_bytes} bytes (MAX_REPLY_BYTES)."
                return Reply(Verdict.FAILED, code="reply_too_large", message=message)
            case NeverSent():
                return Reply(Verdict.UNREACHABLE, message=str(error))
        # Reset, closed, a body cut short, broken chunks, undecodable compression.
        return Reply(Verdict.CRASHED, code="backend_crash", message=f"The model server broke the connection ({error}).")

    def _borne_out(self, connection: Connection, call: Call[S], reply: Reply) -> Reply:
        """The reply with the verdict that the server bears out; FAILED if the server cannot be asked."""
        try:
            return self.kind.borne_out(connection.exchange(call), call.endpoint, str(call.body.get("model")), reply)
        except Cut:
            return Reply(Verdict.CUT)
        except BROKEN:
            return replace(reply, verdict=Verdict.FAILED)

    def _checked(self, exchange: Exchange, call: Call[S], answer: Reply) -> Reply:
        """The answer, if the server read the whole prompt; a refusal, if it cut the prompt; UNCHECKED if nobody knows,
        whatever the reason: an answer to half a prompt must never pass for one to the whole. The answer took longer
        than the question will, so the question is asked again before the answer is given up."""
        reply = self._check(exchange, call, answer)
        for pause_s in CHECK_PAUSES_S:
            if reply.verdict not in (Verdict.UNCHECKED, Verdict.BUSY) or call.timed_out:
                break
            time.sleep(pause_s)
            reply = self._check(exchange, call, answer)
        return reply

    def _check(self, exchange: Exchange, call: Call[S], answer: Reply) -> Reply:
        try:
            cut = self.kind.cut_prompt(exchange, call.endpoint, call.body, answer.usage)
        except Unchecked as unchecked:
            if unchecked.verdict is Verdict.BUSY:
                return Reply(Verdict.BUSY, retry_after_s=call.connection.retry_after_s if call.connection else 0.0)
            return _unchecked(str(unchecked))
        except Cut:
            return _unchecked("no answer in time") if call.timed_out else Reply(Verdict.CUT)
        except BROKEN as error:
            return _unchecked(type(error).__name__)
        if cut is None:
            return answer
        refusal = refused("context_length_exceeded", cut.message)
        return replace(refusal, is_too_long=True, prompt_tokens=cut.prompt_tokens)


class _MustAsk(Exception):
    """What was to be told without asking the server cannot be told so."""


def _nobody(_path: str, _body: dict[str, Any] | None) -> tuple[int, Any]:
    raise _MustAsk


def _unchecked(why: str) -> Reply:
    message = f"The model server did not say whether it read the whole prompt ({why})."
    return Reply(Verdict.UNCHECKED, code="prompt_unchecked", message=message)
