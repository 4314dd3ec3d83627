"""What has to be true before a line is sent: its model is loaded, and known to be in order if the line failed before.

A Question, which is sent as a call like any other, asks for what is missing. Loads, and trials that follow a load, are
asked with nothing else in flight, by a drive that has the backend to itself. The list of loaded models is asked beside
running calls, and so is a trial that tells whose fault a failure of the loaded model is. The order is the same for a
model's first line, after a person's request, and after a pause:

    derive a model, if this one's context is too small
      ──> list of loaded models, if in doubt ──> unload the other model ──> load this one ──> trial, if lines failed
      ──> describe it, if its lines may need a larger context ──> count its slots, if nobody told them

If an answer is bad, the circuit breaker pauses what the answer shows to be out of order; lines wait for the next try.
"""

from django.db.models.functions import Now

from batches.backends.base import BackendKind
from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Verdict
from batches.dispatch import circuit_breaker
from batches.dispatch.context_fit import ContextFit
from batches.dispatch.fault_attribution import FaultAttribution, Key, is_breakdown, key_of
from batches.dispatch.fitted_contexts import FittedContexts
from batches.dispatch.questions import Purpose, Question
from batches.dispatch.used_beside import UsedBeside
from batches.models import ANY_PAUSED_MODEL, Backend, Line, PausedModel
from batches.scheduling import others, turns
from common import database
from common.database import retrying

WORTH_COUNTING = 20  # lines; fewer are answered before it matters how many are in flight
# Verdicts on a load or a trial after which lines are sent: a refusal need not concern them, and if it does, the next
# line gets a refusal of its own.
PASSES = (Verdict.ANSWERED, Verdict.REFUSED, Verdict.ENDPOINT_MISSING)
# Verdicts on the load of a derived model after which a smaller context is tried.
DOES_NOT_LOAD = (Verdict.UNLOADABLE, Verdict.FAILED, Verdict.CRASHED)


class Readiness:
    """What one drive knows of its backend's models, and what it has to ask before lines for them are sent."""

    def __init__(self, backend: Backend, kind: BackendKind, *, was_unused: bool) -> None:
        self._backend = backend
        self._kind = kind
        self._faults = FaultAttribution()
        self._fit = ContextFit()
        self._contexts = FittedContexts(backend, kind)
        self._is_refitted = False
        self._retries: dict[Key, PausedModel] = {}  # paused models that this drive is to try again
        self._due: dict[Key, PausedModel] = {}  # paused models whose next trial is due, as of the last look
        self._paused: set[Key] = set()
        self._not_listed = ""  # a model that was loaded and that the server's list did not name
        self._never_listed: set[str] = set()  # models that the server's list does not name though they were just loaded
        self._uncountable: set[Key] = set()  # models whose slots could not be counted
        self._few_lines: set[int] = set()  # parts that are done before a larger limit would pay
        self._is_unsure = False  # the loaded model may be gone
        self._is_after_gap = False  # and if so, others took its place
        self._used_beside = UsedBeside()
        # The loaded model is loaded again before its next line: it may be gone, or have a shorter keep-alive than ours.
        self._is_stale = was_unused
        self._loaded_at = database.now()

    # What is needed

    def next_question(self, line: Line | None) -> Question | None:
        """The question to ask next: for failures that wait for a trial, for a paused model, then for `line`; None if
        `line` can be sent. The result stays the same until `note_answer` gets the reply."""
        for key in self._faults.wanted_trials:
            served = self._loaded_for(key[1])
            if self._has_loaded(served or key[1]) and not (self._is_unsure or self._is_stale):
                # At once, beside running calls: later the cause may be gone, and the lines be charged.
                return Question(Purpose.TRIAL, *key, is_beside=True, served=served)
            return self._next_step(key, served, needs_trial=True)
        self._take_due()
        for key in self._retries:
            return self._next_step(key, self._loaded_for(key[1]), needs_trial=True)
        return self._next_question_for(line) if line is not None else None

    def _next_question_for(self, line: Line) -> Question | None:
        if question := self._contexts.question(line.part):
            return question
        key, served = key_of(line), line.part.served_by
        step = self._next_step(key, served, needs_trial=self._faults.needs_trial(line))
        if step is not None:
            return step
        if question := self._contexts.question_about(line.part):
            return question
        return Question(Purpose.COUNT_SLOTS, *key, served=served) if self._has_to_count(line) else None

    def _loaded_for(self, model: str) -> str:
        """The loaded model, if it is derived from this one; else empty."""
        derived = self._kind.derived(self._backend.loaded_model)
        return self._backend.loaded_model if derived and self._kind.is_same(derived.origin, model) else ""

    def refit(self, line: Line) -> bool:
        """Choose the context for the part of `line` by what is known now. True: it changed, so lines that are claimed
        have to be claimed again."""
        return self._contexts.refit(line.part)

    def take_refitted(self) -> bool:
        """Whether parts have to be read again, since their lines need another context than was known; once."""
        is_refitted, self._is_refitted = self._is_refitted, False
        return is_refitted

    def _has_to_count(self, line: Line) -> bool:
        """It pays to count how many lines of this model the server computes at once."""
        if self._backend.serves_at_once or key_of(line) in self._uncountable or line.part_id in self._few_lines:
            return False
        if not self._kind.slot_requests(key_of(line)[1]):
            self._uncountable.add(key_of(line))
            return False
        if retrying(line.part.lines.all().open()[:WORTH_COUNTING].count) < WORTH_COUNTING:
            self._few_lines.add(line.part_id)
            return False
        return True

    def _next_step(self, key: Key, served: str, *, needs_trial: bool) -> Question | None:
        endpoint, model = key[0], served or key[1]
        loaded = self._backend.loaded_model
        if self._is_unsure and loaded and self._kind.loads_on_demand:
            return Question(Purpose.LIST_LOADED, endpoint, loaded)
        if not self._has_loaded(model) or self._is_stale:
            if loaded and not self._has_loaded(model) and self._kind.unload(loaded):
                return Question(Purpose.UNLOAD, endpoint, loaded)
            if self._kind.load(endpoint, model):
                return Question(Purpose.LOAD, *key, served=served)
            if not needs_trial:
                self._now_loaded(model)  # a server of this kind loads a model with its first line
        return Question(Purpose.TRIAL, *key, served=served) if needs_trial else None

    def question_beside(self, line: Line) -> Question | None:
        """The question to ask once `line` is sent, without waiting for the answer; None if there is none."""
        if self._fit.has_to_ask(line.part):
            return Question(Purpose.DESCRIBE, *key_of(line), served=line.part.served_by)
        return None

    def call(self, question: Question) -> Call[Question]:
        """The call that asks `question`."""
        return question.call(self._kind, is_loaded=self._has_loaded(question.served_model))

    def _has_loaded(self, model: str) -> bool:
        """The model is loaded, as far as is known, or one whose weights it shares. Lines of one batch may name it in
        several ways."""
        loaded = self._backend.loaded_model
        if self._kind.is_same(loaded, model):
            return True
        return loaded != "" and self._backend.base_of(loaded) == self._backend.base_of(model)

    @property
    def is_waiting(self) -> bool:
        """A question has to be asked, whatever line is next."""
        return bool(self._faults.wanted_trials or self._retries or self._due)

    def is_paused(self, line: Line) -> bool:
        """The model of `line` is paused, as far as this drive knows."""
        return bool(self._paused) and key_of(line) in self._paused

    # What it learns

    def look(self) -> None:
        """Read which models are paused, and which of them are due for another trial. Call once a second."""
        paused = retrying(list, self._backend.paused_models.all()) if retrying(ANY_PAUSED_MODEL.is_true) else []
        self._paused = {(each.endpoint, each.model) for each in paused}
        self._due.clear()
        if self._paused:
            for each in retrying(list, self._backend.paused_models.all().due()):
                self._note_due(each)
        loaded = self._backend.loaded_model
        if self._kind.loads_on_demand and loaded not in ("", *self._never_listed) and self._was_listed_since():
            if self._kind.listed_name(self._backend.loaded_names, loaded):
                self._not_listed = ""
            else:
                self._is_unsure = True

    def _note_due(self, paused: PausedModel) -> None:
        """Plan a trial for a paused model if some line still wants the model; else end the pause."""
        endpoint, model = paused.endpoint, paused.model
        if retrying(turns.is_wanted, endpoint, model):
            self._due[endpoint, model] = paused
        elif not retrying(turns.is_wanted, endpoint, model, now=False):
            # Lines of a batch that an operator paused do not want the model now, but its pause stays for them.
            retrying(paused.delete)

    def _take_due(self) -> None:
        """Take the right to try one of the models that are due, unless another drive was faster."""
        while self._due and not self._retries:
            key, paused = self._due.popitem()
            if retrying(paused.take):
                self._retries[key] = paused
                self._is_stale = True

    def _was_listed_since(self) -> bool:
        """A health probe has read the list of loaded models since this drive loaded one."""
        return self._backend.seen_at is not None and self._backend.seen_at > self._loaded_at

    def doubt_loaded(self, *, after_gap: bool = False) -> None:
        """The loaded model may be gone: ask before the next line, of a server that loads what it is asked for.
        `after_gap`: if the model is gone, others have the server now."""
        if not self._kind.loads_on_demand:
            return
        self._is_unsure = True
        self._is_after_gap = self._is_after_gap or after_gap

    def note_line(self, call: Call[Line]) -> bool:
        """Take in what became of a line, and decide whether the line is charged with a failure. True: the call can be
        stored now; False: the call waits for a trial."""
        if call.verdict is Verdict.ANSWERED:
            self._used_beside.note_answer()
        if call.verdict in (Verdict.CRASHED, Verdict.UNCHECKED):
            # Ollama lists a model whose process died as loaded until the next request. A line's request would load the
            # model without our keep-alive, and within the deadline of the line.
            self._is_stale = True
        elif is_breakdown(call):
            self.doubt_loaded()
        if call.verdict is Verdict.UNREACHABLE and not self._backend.is_paused:
            self._pause_after(key_of(call.subject), call)
        if call.verdict is Verdict.MODEL_MISSING and self._kind.derived(str(call.body.get("model"))):
            self._note_lost(str(call.body["model"]), call.subject.model)
        elif call.verdict is Verdict.MODEL_MISSING and not self.is_paused(call.subject):
            self._pause_after(key_of(call.subject), call)
        if call.reply is not None and call.reply.is_too_long and self._contexts.grow(call):
            call.reply = Reply(Verdict.CUT)  # sent again, to a model with a larger context
            self._is_refitted = True
        return self._faults.note(call)

    def _note_lost(self, served: str, model: str) -> None:
        """The server does not have a derived model that it had."""
        self._contexts.note_lost(served, model)
        self._is_refitted = True
        retrying(self._backend.now_has_loaded, "")

    def note_answer(self, call: Call[Question]) -> list[Call[Line]]:
        """Take in the answer to a question. Returns the failed lines that the answer settles, to be stored now."""
        question = call.subject
        match question.purpose:
            case Purpose.LIST_LOADED:
                self._note_list(call)
            case Purpose.DESCRIBE:
                self._fit.note(question.served_model, call.result)
                self._contexts.note_described(question, call.result)
                if not call.result or not call.result.context_tokens:
                    self.doubt_loaded()
            case Purpose.DERIVE:
                self._note_derived(call)
            case Purpose.UNLOAD:
                # The answer itself does not matter: the load tells whether the card has memory for the next model.
                retrying(self._backend.now_has_loaded, "")
            case Purpose.COUNT_SLOTS:
                self._note_slots(call)
            case Purpose.LOAD | Purpose.TRIAL:
                return self._note_load_or_trial(call)
        return []

    def _note_list(self, call: Call[Question]) -> None:
        if call.verdict is Verdict.CUT:
            return
        is_after_gap, self._is_unsure, self._is_after_gap = self._is_after_gap, False, False
        model = call.subject.model
        name = self._kind.listed_name(call.result, model) if call.verdict is Verdict.ANSWERED else ""
        if name and self._used_beside.look(name, call.result[name], after_gap=is_after_gap):
            retrying(others.found_beside, self._backend, name)
        if name or model in self._never_listed:
            return
        if self._not_listed == model and call.verdict is Verdict.ANSWERED and not self.wakes(call.subject):
            # It was loaded again since, and is not named again: this server names it otherwise, or not at all.
            self._never_listed.add(model)
            return
        self._not_listed = model
        retrying(self._backend.now_has_loaded, "")
        if is_after_gap and call.verdict is Verdict.ANSWERED and retrying(others.took_place_of, self._backend, model):
            retrying(others.stand_aside, self._backend)

    def wakes(self, question: Question) -> bool:
        """The server loads no model with a request for it, which hangs instead: such a list is always right."""
        return callable(self._kind.load(question.endpoint, question.model))

    def _note_slots(self, call: Call[Question]) -> None:
        if call.result:
            retrying(self._backend.has_counted_slots, call.result)
        elif call.verdict is not Verdict.CUT:
            self._uncountable.add((call.subject.endpoint, call.subject.model))

    def _note_derived(self, call: Call[Question]) -> None:
        question = call.subject
        if call.verdict is Verdict.ANSWERED:
            self._contexts.note_derived(question, call)
        elif call.verdict is not Verdict.CUT or call.timed_out:
            # The server went away or hung, which says nothing about the model.
            self._pause_after((question.endpoint, question.model), call)

    def _note_load_or_trial(self, call: Call[Question]) -> list[Call[Line]]:
        question = call.subject
        key = question.endpoint, question.model
        if question.served and call.verdict is Verdict.MODEL_MISSING:
            self._note_lost(question.served, question.model)
            return self._faults.not_passed(key)
        if question.served and question.purpose is Purpose.LOAD and _does_not_load(call):
            self._contexts.note_unloadable(question)
            retrying(self._backend.now_has_loaded, "")  # the next load is for the user's model, or a smaller context
            return []
        if call.verdict in PASSES:
            self._now_loaded(question.served_model)
            if question.purpose is Purpose.LOAD:
                return []
            self._end_pause(key)
            return self._faults.passed(key)
        if call.verdict is not Verdict.CUT:
            self._pause_after(key, call)
        return self._faults.not_passed(key)

    def release(self) -> list[Call[Line]]:
        """Nothing can be asked now. Returns the failures that waited for a trial, to be tried again uncharged. Paused
        models are left to the next drive that looks."""
        for paused in self._retries.values():
            retrying(PausedModel.objects.filter(pk=paused.pk).update, resume_at=Now())
        self._retries.clear()
        return self._faults.release()

    # What it changes

    def _pause_after(self, key: Key, failed: Call[Line] | Call[Question]) -> None:
        self._retries.pop(key, None)
        self._is_stale = True
        retrying(circuit_breaker.pause_after, self._backend, *key, failed)
        self._paused.add(key)

    def _end_pause(self, key: Key) -> None:
        self._paused.discard(key)
        self._retries.pop(key, None)
        self._due.pop(key, None)
        self._contexts.forgive(key[1])
        # Whoever took it: a drive that had to stand down gives its right back, and the trial has passed all the same.
        retrying(self._backend.paused_models.filter(endpoint=key[0], model=key[1]).delete)

    def _now_loaded(self, model: str) -> None:
        if not self._has_loaded(model) or self._is_stale:
            self._fit.forget()
            self._contexts.note_loaded(model)
            self._loaded_at = database.now()
        self._is_stale = self._is_unsure = self._is_after_gap = False
        retrying(self._backend.now_has_loaded, model)


def _does_not_load(call: Call[Question]) -> bool:
    """The server says that the model does not load; it did not go away meanwhile."""
    is_away = call.verdict is Verdict.CRASHED and (call.reply is None or call.reply.status is None)
    return call.verdict in DOES_NOT_LOAD and not is_away
