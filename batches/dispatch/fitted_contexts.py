"""Which context the lines of each part get: that of their model, or a larger one by a model derived for the part.

A server whose API sets no context per request (Ollama's /v1) may cut a prompt without saying so. Where a part needs
more than its model gives, its lines are sent to a derived model. Each part has one context, the smallest power of two
that is enough, so that nothing is loaded again in between; it grows if the server counts more tokens than we estimated.

    the model as it is, described ──> choose ──> derive ──> load ──> describe: all of it on the GPU?
                                         ^                               │ no
                                         └────── half as much at most <──┘

What is chosen is on the part's row, for turns, for other drives, and for a person. What is found out stays with the
drive: if the server was started again with other settings, the next drive finds out again.
"""

from collections import Counter
from dataclasses import dataclass, replace

from django.conf import settings

from batches.backends.base import BackendKind
from batches.backends.in_flight import Call
from batches.backends.replies import Reply, refused
from batches.backends.states import ModelState
from batches.dispatch.context_fit import power_of_two, rounded
from batches.dispatch.questions import Purpose, Question
from batches.lines import prompt
from batches.models import Backend, Line, Part
from common import schema
from common.database import retrying

# A derived model may serve these. The input of an embedding is cut to a batch of tokens, whatever the context.
GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
# Parts that need no more are sent as they are: no server has less.
LEAST_TOKENS = 512
# A prompt that was counted gets so many more tokens for its answer, if its line sets no limit.
LEAST_ANSWER = 512
# A model that is not listed as loaded after it was loaded so often is not listed at all: Ollama's cloud runs it.
MOST_UNLISTED = 2
# A derived model that is gone so often is deleted by someone: then its lines are sent to the user's model.
MOST_LOSSES = 3


@dataclass
class _Known:
    """What is known of one of the users' models."""

    own: ModelState | None = None  # as it is without us
    is_described: bool = False  # the server was asked for `own`
    made_for: int = 0  # tokens that the model was made for
    too_large: int = 0  # the smallest context that could not be loaded, or left a part of the model to the CPU
    why: str = ""  # it is too large
    is_unloadable: bool = False  # it could not be loaded at all
    times_unlisted: int = 0  # it was described while the server did not list it as loaded
    must_describe: bool = False  # whether a context is too large can only be told beside `own`
    cannot_derive: bool = False

    @property
    def given(self) -> int:
        """The context of the model as it is; 0 if the server does not tell."""
        return self.own.context_tokens if self.own is not None else 0

    @property
    def most(self) -> int | None:
        """The largest context to be tried; None: any."""
        if not self.too_large or (not self.is_unloadable and self.own is not None and is_partly_on_cpu(self.own)):
            return None
        return 1 << ((self.too_large - 1).bit_length() - 1)

    def choose(self, part: Part) -> int | None:
        """The tokens of the part's context; 0: the model as it is; None: the same, until the model is described."""
        if not self.is_described and (self.must_describe or not part.served_by):
            return None
        if self.is_described and (not self.given or part.context_tokens <= self.given):
            return 0
        if not self.made_for:
            return part.fitted_tokens  # chosen by an earlier drive, and not described yet by this one
        enough = min(power_of_two(part.context_tokens), self.made_for)
        tokens = enough if self.most is None else min(enough, self.most)
        return tokens if tokens > self.given else 0

    def reason(self, part: Part, tokens: int) -> str:
        """Why the part gets a context of so many tokens, or 0 for that of its model; empty if that is enough."""
        if not self.is_described and tokens == part.fitted_tokens:
            return part.fit_reason  # an earlier drive knew more
        is_less = self.most is not None and self.most < part.context_tokens
        if not tokens and not (is_less and self.given < part.context_tokens):
            return ""
        has = f", and {part.model} has {self.given:,}" if self.given else ""
        reason = f"The longest line may need about {rounded(part.context_tokens):,} tokens, prompt and answer{has}."
        if tokens >= part.context_tokens:
            return reason
        return f"{reason} {self.why if is_less else f'It was made for no more than {self.made_for:,}.'}"

    def is_too_large(self, tokens: int, why: str) -> None:
        """So many tokens are too many. It is asked what the model has as it is, if that is not known."""
        self.too_large, self.why, self.must_describe = min(self.too_large or tokens, tokens), why, True


class FittedContexts:
    """What one drive knows of contexts, and what it has to ask before a line is sent with the right one."""

    def __init__(self, backend: Backend, kind: BackendKind) -> None:
        self._kind = kind
        self._may_derive = settings.FIT_CONTEXT and kind.derives
        self._models: dict[str, _Known] = {}
        self._made: set[str] = set()  # derived models that exist
        self._looked_at: set[str] = set()  # derived models that were described since they were loaded
        self._lost: Counter[str] = Counter()
        self._learned = 0  # counts what was learned, since which the choice for a part stays the same
        self._settled: dict[int, tuple[int, int, str]] = {}  # by part
        # Those that an earlier drive of ours has found good, and that the server still has loaded.
        self._found_loaded = set(backend.loaded_names)

    def _may_fit(self, part: Part) -> bool:
        return self._may_derive and part.batch.endpoint in GENERATING and not self._of(part).cannot_derive

    def _of(self, part: Part) -> _Known:
        return self._models.setdefault(part.model, _Known())

    # What is needed

    def refit(self, part: Part) -> bool:
        """Choose the part's context by what is known now, and store a new choice. True: it is new, so lines that were
        claimed before have to be claimed again."""
        settled = self._learned, part.context_tokens, part.served_by
        if self._settled.get(part.pk) == settled:
            return False
        self._settled[part.pk] = settled
        self._trust_what_is_loaded(part)
        tokens = self._choose(part) or 0
        served_by = self._kind.derived_name(part.model, tokens, retrying(schema.mark)) if tokens else ""
        reason = self._of(part).reason(part, tokens)
        if (served_by, reason) != (part.served_by, part.fit_reason):
            values = {"served_by": served_by, "fitted_tokens": tokens if served_by else 0, "fit_reason": reason}
            retrying(Part.objects.filter(pk=part.pk).update, **values)
            part.fit_reason = reason
        return served_by != part.served_by

    def _trust_what_is_loaded(self, part: Part) -> None:
        """What was too large for the drive before is too large for this one, unless the server was started again."""
        known = self._of(part)
        if part.served_by in self._found_loaded and part.fitted_tokens < part.context_tokens and not known.made_for:
            known.too_large = 2 * part.fitted_tokens

    def question(self, part: Part) -> Question | None:
        """What must be asked before the part's model is loaded; None if there is nothing."""
        if part.served_by and part.served_by not in self._made:
            return Question(Purpose.DERIVE, part.batch.endpoint, part.model, served=part.served_by)
        return None

    def question_about(self, part: Part) -> Question | None:
        """What must be asked once the part's model is loaded, before a line is sent; None if there is nothing."""
        if not self._may_fit(part):
            return None
        if part.served_by:
            is_known = part.served_by in self._looked_at
        else:
            is_known = self._of(part).is_described or part.context_tokens <= LEAST_TOKENS
        if is_known:
            return None
        return Question(Purpose.DESCRIBE, part.batch.endpoint, part.model, served=part.served_by)

    def _choose(self, part: Part) -> int | None:
        """The tokens of the part's context; 0: the model as it is; None: the same, until the model is described."""
        return self._of(part).choose(part) if self._may_fit(part) else 0

    # What it learns

    def note_derived(self, question: Question, call: Call[Question]) -> None:
        """Take in whether a derived model was made."""
        self._learned += 1
        if call.result:
            self._made.add(question.served)
        else:
            self._models.setdefault(question.model, _Known()).cannot_derive = True

    def note_described(self, question: Question, state: ModelState | None) -> None:
        """Take in how the server describes a model that it has loaded; None if it does not."""
        self._learned += 1
        known = self._models.setdefault(question.model, _Known())
        known.made_for = (state.most_context_tokens if state else 0) or known.made_for
        if not question.served:
            known.own = state
            known.times_unlisted += not known.given
            known.is_described = bool(known.given) or known.times_unlisted >= MOST_UNLISTED
            return
        self._looked_at.add(question.served)
        if state is not None and _spilled(state, known.own):
            percent = 100 * state.size_vram // state.size
            why = f"With {state.context_tokens:,} only {percent} % of it is on the GPU."
            known.is_too_large(state.context_tokens, f"{why} {self._kind.room_for_context_hint()}")

    def note_unloadable(self, question: Question) -> None:
        """A derived model could not be loaded, so a smaller context is tried before the user's model is blamed."""
        self._learned += 1
        known = self._models.setdefault(question.model, _Known())
        known.is_unloadable = True
        derived = self._kind.derived(question.served)
        tokens = derived.tokens if derived else 0
        why = f"{self._kind.title} cannot load it with {tokens:,}. {self._kind.room_for_context_hint()}"
        known.is_too_large(tokens, why)

    def note_loaded(self, name: str) -> None:
        """The server has loaded a model, maybe with another context than before: it is described again."""
        self._learned += 1
        self._looked_at.discard(name)
        for model, known in self._models.items():
            if self._kind.is_same(model, name):
                known.is_described = False

    def note_lost(self, served: str, model: str) -> None:
        """A derived model is not there any more: it is made again."""
        self._learned += 1
        if served in self._made:  # once for all lines that were in flight
            self._made.discard(served)
            self._lost[served] += 1
        if self._lost[served] > MOST_LOSSES:
            self._models.setdefault(model, _Known()).cannot_derive = True

    def forgive(self, model: str) -> None:
        """The model was paused and is in order again: derive from it again."""
        if model in self._models:
            self._learned += 1
            known = self._models[model]
            known.cannot_derive = known.is_unloadable = False
            known.too_large, known.why = 0, ""

    def grow(self, call: Call[Line]) -> bool:
        """The server refused or cut the prompt of this call, since the context is too small. True: the line is worth
        sending again, to a larger one; the part's row says how much it needs. False: the reply says why not."""
        part, reply = call.subject.part, call.reply
        if reply is None or not self._may_fit(part) or not self._kind.derived_name(part.model, 1, "0" * 6):
            return False
        retrying(part.refresh_from_db, fields=["context_tokens", "fitted_tokens", "served_by"])
        if call.body.get("model") != part.served_model:
            return True  # it was sent before the part got another context
        used = part.fitted_tokens or self._of(part).given
        counted = reply.prompt_tokens and reply.prompt_tokens + (prompt.token_limit(call.body) or LEAST_ANSWER)
        part.context_tokens = max(part.context_tokens, counted, used + 1, LEAST_TOKENS + 1)
        larger = self._choose(part)
        if larger is not None and (larger or self._of(part).given) <= used:
            call.reply = self._explained(part.model, reply, used)
            return False
        retrying(Part.objects.filter(pk=part.pk).update, context_tokens=part.context_tokens)
        return True

    def _explained(self, model: str, reply: Reply, used: int) -> Reply:
        known = self._models[model]
        if known.made_for and used >= known.made_for:
            why = f"{model} was made for no more."
        elif known.why:
            why = known.why
        else:
            return reply
        excess = f"has {reply.prompt_tokens} tokens and the context {used}" if reply.prompt_tokens else "is too long"
        advice = "Shorten the prompt, or take a model with a larger context."
        refusal = refused("context_length_exceeded", f"The prompt {excess}. {why} {advice}")
        return replace(refusal, is_too_long=True, prompt_tokens=reply.prompt_tokens)


def _spilled(state: ModelState, own: ModelState | None) -> bool:
    """The larger context has driven a part of the model from the GPU, where all of it was."""
    if own is not None and own.size_vram:
        return state.size_vram < state.size and not is_partly_on_cpu(own)
    return is_partly_on_cpu(state)


def is_partly_on_cpu(state: ModelState) -> bool:
    """Some of the model is on a GPU and some is not. Without a GPU there is no room to run out of."""
    return 0 < state.size_vram < state.size
