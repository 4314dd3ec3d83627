"""From a claimed line to its call: the body as the model server takes it, and a deadline; or a reply without a call."""

import logging
from collections.abc import Iterable
from dataclasses import replace

from django.conf import settings

from batches import reuse
from batches.backends.base import BackendKind
from batches.backends.in_flight import Call
from batches.backends.parameters.table import Weight
from batches.backends.replies import Reply, Verdict, compact, parsed, refused
from batches.dispatch.deadlines import Deadlines
from batches.dispatch.ignored_members import IgnoredMembers
from batches.dispatch.input_reader import UNREADABLE, InputFiles
from batches.models import Line

logger = logging.getLogger(__name__)


class LineCalls:
    """Makes the calls of one drive for lines. Call `close` at the end: input files stay open until then."""

    def __init__(self, kind: BackendKind) -> None:
        self._kind = kind
        self._least = Weight.REFUSED if settings.STRICT_PARAMETERS else Weight.FORBIDDEN
        self._inputs = InputFiles()
        self._deadlines = Deadlines()
        self._ignored = IgnoredMembers()
        self.is_waiting = False  # for the body of the line that is sent next

    def is_at_hand(self, line: Line, others: Iterable[Line]) -> bool:
        """Whether `make` needs not wait for the network for this line. If it does, the body is fetched beside, and
        those of the `others` that will be sent next."""
        self.is_waiting = not self._inputs.is_at_hand(line, others)
        return not self.is_waiting

    def make(self, line: Line) -> Call[Line]:
        """The call for this line, to be sent unless it has a reply already.

        Raises OSError if the line's input file cannot be read now; the next `make` opens the file anew.
        """
        endpoint = line.batch.endpoint
        try:
            body = self._inputs.body(line)
        except UNREADABLE as error:
            # Validation read this very line, so the file was removed or damaged since.
            logger.error("%s: the input file cannot be read: %s", line.batch_id, type(error).__name__)
            message = "The input file cannot be read any more."
            return _answered(line, Reply(Verdict.REFUSED, code="input_unreadable", message=message))
        except OSError:
            self._inputs.reopen(line)
            raise
        translation = self._kind.translate(endpoint, body)
        if translation.findings:
            if refusal := translation.refusal(least=self._least):
                return _answered(line, refused(refusal.code, refusal.message, refusal.param))
            self._ignored.tell(line, translation.findings)
        if known := reuse.recall(line):
            return _answered(line, Reply(Verdict.ANSWERED, 200, known))
        sent = translation.body | {"model": line.served_model}
        return Call(line, endpoint, sent, self._deadlines.for_line(line, sent))

    def note(self, call: Call[Line]) -> None:
        """Learn from what became of a call how long other calls may take, and name the model in its reply as the line
        names it."""
        self._deadlines.note(call)
        sent = call.body.get("model")
        if call.reply is not None and isinstance(sent, str) and sent != call.subject.model:
            call.reply = _as_asked(call.reply, sent, call.subject.model)

    def close(self) -> None:
        self._inputs.close()


def _as_asked(reply: Reply, sent: str, model: str) -> Reply:
    """The reply, with the name `model` in place of that of the derived model which was sent."""
    if reply.verdict is not Verdict.ANSWERED:
        return replace(reply, body=reply.body.replace(sent, model), message=reply.message.replace(sent, model))
    body = parsed(reply.body.encode())
    return replace(reply, body=compact(body | {"model": model})) if body and body.get("model") == sent else reply


def _answered(line: Line, reply: Reply) -> Call[Line]:
    """A call that has its reply without being sent."""
    return Call(line, line.batch.endpoint, {}, 0.0, reply=reply)
