"""Whether a batch's lines fit their model as it is loaded on the card, told before hours are lost.

What is found is stored in `Batch.warnings` as {"code", "model", "message"}; the message names the setting to change.
A warning refuses no line: a line's need is an estimate, and most lines may fit.
"""

import logging

from django.db import transaction

from batches import backends
from batches.backends.states import ModelState
from batches.models import Batch, Part
from common.database import retrying

logger = logging.getLogger(__name__)

CONTEXT_TOO_SMALL = "context_too_small"
MODEL_ON_CPU = "model_on_cpu"
WRONG_MODEL = "wrong_model"
CODES = (CONTEXT_TOO_SMALL, MODEL_ON_CPU, WRONG_MODEL)

CONSEQUENCE = "A line whose prompt does not fit fails, and an answer that does not fit may break off."

Found = dict[str, str]


def check(part: Part, state: ModelState) -> list[Found]:
    """What speaks against sending these lines to their model as it is loaded. Values that the server does not tell
    speak against nothing.

    Changes nothing; reads the part's batch.
    """
    found = {
        CONTEXT_TOO_SMALL: _context_too_small(part, state),
        MODEL_ON_CPU: _on_cpu(part, state),
        WRONG_MODEL: _wrong_model(part, state),
    }
    return [{"code": code, "model": part.model, "message": message} for code, message in found.items() if message]


class ContextFit:
    """What one drive has found out about its models. Each model is described once after it was loaded. Each part whose
    lines the drive sends is compared with the description once."""

    def __init__(self) -> None:
        self._states: dict[str, ModelState | None] = {}
        self._waiting: dict[str, list[Part]] = {}  # by model, until it is described
        self._seen: set[int] = set()

    def has_to_ask(self, part: Part) -> bool:
        """A line of this part is being sent. True: its model has to be described, and `note` told the description."""
        if part.pk in self._seen:
            return False
        self._seen.add(part.pk)
        if part.served_model in self._states:
            self._report(part, self._states[part.served_model])
            return False
        waiting = self._waiting.setdefault(part.served_model, [])
        waiting.append(part)
        return len(waiting) == 1

    def note(self, model: str, state: ModelState | None) -> None:
        """The server's description of a model that it has loaded; None if it gave none."""
        self._states[model] = state
        for part in self._waiting.pop(model, []):
            self._report(part, state)

    def forget(self) -> None:
        """Drop all descriptions: a model was loaded, maybe with another context than before."""
        self._states.clear()
        self._waiting.clear()
        self._seen.clear()

    @staticmethod
    def _report(part: Part, state: ModelState | None) -> None:
        if state is not None:
            retrying(report, part, state)


def report(part: Part, state: ModelState) -> None:
    """Store on the batch what `check` finds, in place of what it found before for this model, and log what is new.

    Safe to run twice, and beside others that warn about the same batch: writes and logs only what changed.
    """
    found = check(part, state)
    with transaction.atomic():
        stored = Batch.objects.select_for_update().values_list("warnings", flat=True).get(pk=part.batch_id)
        of_others = [each for each in stored if each.get("model") != part.model or each["code"] not in CODES]
        if [each for each in stored if each not in of_others] == found:
            return
        Batch.objects.filter(pk=part.batch_id).update(warnings=of_others + found)
    if new := [each["message"] for each in found if each not in stored]:
        logger.warning("%s: %s", part.batch_id, " ".join(new))


def power_of_two(tokens: int) -> int:
    """The smallest power of two that is not below `tokens`."""
    return 1 << (tokens - 1).bit_length()


def rounded(tokens: int) -> int:
    """An estimate, no more exact than it is."""
    return -(-tokens // 100) * 100


def _context_too_small(part: Part, state: ModelState) -> str:
    needed, most = part.context_tokens, state.most_context_tokens
    room = state.context_tokens or most
    if not room or needed <= room:
        return ""
    if part.fit_reason:
        return f"{part.fit_reason} Its lines get {room:,}. {CONSEQUENCE}"
    kind = backends.kind_named(state.kind)
    if most and room >= most:
        advice = "The model was made for no more: shorten the line, or take a model with a larger context."
    else:
        enough = power_of_two(needed)
        advice = kind.larger_context_hint(min(enough, most) if most else enough)
        if most and needed > most:
            advice += f" The model was made for {most:,} at most: shorten the line too."
    return (
        f"The longest line of {part.model} may need about {rounded(needed):,} tokens, prompt and answer, and its "
        f"context has {room:,}. {advice} {CONSEQUENCE}"
    )


def _on_cpu(part: Part, state: ModelState) -> str:
    if state.size_vram >= state.size:
        return ""
    kind = backends.kind_named(state.kind)
    if not state.size_vram:
        return f"{part.model} is not on a GPU at all, so answers take many times as long. {kind.title}'s log says why."
    percent = 100 * state.size_vram // state.size
    return f"Only {percent} % of {part.model} is on the GPU, so answers take longer. {kind.less_memory_hint()}"


def _wrong_model(part: Part, state: ModelState) -> str:
    if not state.capabilities:
        return ""
    endpoint = part.batch.endpoint
    if endpoint == "/v1/embeddings":
        if "embedding" not in state.capabilities:
            return f"{part.model} was not made for embeddings. Take a model that was, such as nomic-embed-text."
    elif "completion" not in state.capabilities:
        return f"{part.model} was not made to write text, so {endpoint} refuses it. Take a model that was."
    return ""
