"""What has to be true before a line is sent: its model is loaded, and known to be in order if the line failed before.

Whatever is asked for that is asked with nothing else in flight, and by a drive that has the backend to itself. If the
answer is bad, what it shows to be out of order pauses, and its lines wait for the next try.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from django.conf import settings
from django.db.models.functions import Now

from batches import claims, fit, pauses
from batches.backends.base import BackendKind, Verdict
from batches.backends.calls import Call
from batches.doubt import Doubt
from batches.models import Backend, Line, Part, PausedModel
from common.database import retrying

# What speaks against the backend or the model, unless a trial goes well: then it is the line's own affair, as this.
SUSPECT = {Verdict.MISCONFIGURED: Verdict.REFUSED, Verdict.UNLOADABLE: Verdict.FAILED}
# Replies to a question of ours that let lines be sent: what the next one has to say to a refusal is its own affair.
PASSES = (Verdict.ANSWERED, Verdict.REFUSED, Verdict.MODEL_MISSING)
# Answers that speak for other lines too: they are stored before another line is sent.
BAD_NEWS = (Verdict.UNREACHABLE, Verdict.MISCONFIGURED, Verdict.MODEL_MISSING, Verdict.UNLOADABLE)
# A loaded model answers a trial within this time, or the server is stuck.
TRIAL_TIMEOUT_S = 120.0
UNLOAD_TIMEOUT_S = 30.0
DESCRIBE_TIMEOUT_S = 10.0


class Readiness:
    """What one drive knows of its backend, and asks of it. `ask` sends a question and waits for the reply, if
    `may_ask`; `before_pause` is called before anything pauses."""

    def __init__(
        self,
        backend: Backend,
        kind: BackendKind,
        *,
        ask: Callable[..., Call],
        may_ask: Callable[[], bool],
        before_pause: Callable[[], None],
    ) -> None:
        self.backend = backend
        self.kind = kind
        self.doubts: defaultdict[tuple[str, str], Doubt] = defaultdict(Doubt)  # by endpoint and model
        self.to_retry: list[PausedModel] = []
        self._measured: set[int] = set()  # the parts that were compared with what their model has
        self._ask = ask
        self._may_ask = may_ask
        self._before_pause = before_pause

    def doubt(self, line: Line) -> Doubt:
        return self.doubts[line.batch.endpoint, line.model]

    def is_ready_for(self, line: Line) -> bool:
        is_loaded = line.model == self.backend.loaded_model and line.part_id in self._measured
        return is_loaded and (self.doubt(line).is_proven or not line.needs_trial)

    def make_ready_for(self, line: Line) -> None:
        """Load its model, see whether its part fits, or give it a trial: what is missing first. If that fails, what the
        line needs is paused and the line handed back."""
        endpoint, model = line.batch.endpoint, line.model
        if model != self.backend.loaded_model:
            self._load(endpoint, model)
        elif line.part_id not in self._measured:
            self._measure(line.part)
        else:
            self.passes_trial(endpoint, model)

    def _load(self, endpoint: str, model: str) -> None:
        loaded = self.backend.loaded_model
        if loaded and (unloading := self.kind.unload(loaded)):
            # Room on the card before the next one needs it. Whatever it says, the load tells whether there is enough.
            self._ask(*unloading, UNLOAD_TIMEOUT_S)
            retrying(self.backend.now_has_loaded, "")
            if not self._may_ask():
                return  # a person came meanwhile, say
        if loading := self.kind.load(endpoint, model):
            question = self._ask(*loading, settings.MODEL_LOAD_TIMEOUT_S)
            if question.verdict not in PASSES:
                self.pause_after(endpoint, model, question)
                return
        retrying(self.backend.now_has_loaded, model)

    def _measure(self, part: Part) -> None:
        """Warn of a part that will not fit the loaded model, before its first line."""
        question = self._ask("", {}, DESCRIBE_TIMEOUT_S, lambda exchange: self.kind.describe(exchange, part.model))
        if question.result is not None:
            retrying(fit.report, part, question.result)
        if question.verdict is not Verdict.CUT:
            self._measured.add(part.pk)

    def passes_trial(self, endpoint: str, model: str) -> bool:
        """Whether a request is answered that any server in order answers. If not, what it shows to be out of order
        pauses."""
        timeout_s = TRIAL_TIMEOUT_S if model == self.backend.loaded_model else settings.MODEL_LOAD_TIMEOUT_S
        question = self._ask(endpoint, self.kind.trial(endpoint, model), timeout_s)
        if question.verdict in PASSES:
            self.doubts[endpoint, model].prove()
            retrying(self.backend.now_has_loaded, model)
            return True
        self.doubts.pop((endpoint, model), None)  # it is settled
        self.pause_after(endpoint, model, question)
        return False

    def retry(self, paused: PausedModel) -> None:
        """Give a paused model another trial, if any line wants it still."""
        if not retrying(paused.take):
            return  # another drive has just tried
        endpoint, model = paused.endpoint, paused.model
        if retrying(claims.is_wanted, endpoint, model):
            is_over = self.passes_trial(endpoint, model)
        else:
            # Lines of a batch that a person paused do not want it now, and the pause is theirs still.
            is_over = not retrying(claims.is_wanted, endpoint, model, now=False)
        if is_over:
            retrying(paused.delete)
            self.to_retry.clear()  # the looks during the trial saw it still due

    def is_bad_news(self, call: Call) -> bool:
        return call.verdict in BAD_NEWS or self.doubt(call.key).is_grave

    def judge(self, call: Call) -> bool:
        """Find out what a failure says of the model or the whole backend, and act on it. True: the call is still to be
        recorded, as what it turned out to be."""
        line: Line = call.key
        endpoint, model = line.batch.endpoint, line.model
        if call.verdict in SUSPECT:
            # Where nothing may be asked the line goes back uncharged, and shows again what is wrong.
            if self._may_ask() and self.passes_trial(endpoint, model) and call.reply is not None:
                call.reply, call.is_charged = replace(call.reply, verdict=SUSPECT[call.verdict]), True
            return True
        if call.verdict is Verdict.UNREACHABLE and not self.backend.is_paused:
            self.pause_after(endpoint, model, call)
        elif self.doubt(line).is_grave and self._may_ask():
            self.passes_trial(endpoint, model)
        return False

    def pause_after(self, endpoint: str, model: str, failed: Call) -> None:
        if failed.verdict is Verdict.CUT:
            # We are to stop: whoever comes next tries it at once.
            retrying(self.backend.paused_models.filter(endpoint=endpoint, model=model).update, resume_at=Now())
            return
        self._before_pause()
        self.to_retry.clear()  # the next look knows what is still due
        retrying(self.backend.now_has_loaded, "")
        retrying(pauses.pause_after, self.backend, endpoint, model, failed)
