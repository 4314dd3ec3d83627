"""What to do about a model that a server does not have, in words for a person."""

import difflib
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from batches.backends.base import BackendKind
from batches.backends.purposes import Purpose, purpose_of

EMBEDDINGS = "/v1/embeddings"
ALIKE = 0.6  # names that are at least so similar are taken for related; 1 is the same name
MOST_NAMED = 10

# What client libraries write before a name to choose their way to the server: LiteLLM, LangChain, pydantic-ai, DSPy.
_CLIENT_PREFIX = re.compile(
    r"((ollama([_-]chat)?|openai([_-](like|compatible|chat|responses))?|custom_openai|text-completion-openai|vllm"
    r"|hosted_vllm|lm_?studio|litellm(_proxy)?|localai|llamafile|llama_?cpp|huggingface)[/:])+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class MissingModel:
    """A model that lines name and a server of this kind, which lists these models, does not have.

    `endpoint` is that of the lines, empty if nobody knows it; `default` the model that answers lines without one;
    `aliases` what MODEL_ALIASES holds.
    """

    kind: BackendKind
    model: str
    listed: Collection[str]
    endpoint: str
    default: str
    aliases: Mapping[str, str]

    def hint(self) -> str:
        """What to type so that such lines are answered.

        The command that installs the model, if the server can have one of this name; if not, the alias that maps the
        name to a model that is there, or to one that can be installed.
        """
        if self.is_installable:
            return f"Install it: {self.kind.install_command(self.model)}"
        title, target = self.kind.title, self.stand_in
        if not target:
            return self._hint_to_install()
        if not self._may_be_mapped(target):
            return f"Write a name into the lines that {title} lists, such as {_joined(self.stand_ins[:3])}."
        alias = f"then restart: {self._alias(target)}"
        if self.kind.listed_name(self.listed, self._name):
            return f"{title} lists it as {target}. Use this name, or map the other one to it, {alias}"
        if self.kind.library_models:
            return f"{title} knows no such name. Map it to a model that is installed, {alias}"
        return f"Use a name that it lists, such as {_joined(self.stand_ins[:3])}, or map the name to one, {alias}"

    def hint_for_waiting(self) -> str:
        """The same for lines that wait for the model already: an alias that is set now does not reach them."""
        told = self.hint()
        if self.is_installable or not (self.listed or self.kind.library_models):
            return told
        return f"{self.kind.give_back_hint(self.model, self.stand_in)} Or send the lines again. {told}"

    @property
    def is_installable(self) -> bool:
        """The server's command installs a model that lines get by this very name."""
        pulled = self.kind.name_to_install(self.model)
        return pulled != "" and pulled == self._to_install and self.kind.is_same(pulled, self.model)

    @property
    def stand_in(self) -> str:
        """The listed model to map the name to: the same one by its own name, the nearest one or, if no name is much
        like it, the default model. Empty if none has the same purpose, or if the same one can be installed."""
        if same := self.kind.listed_name(self.listed, self._name):
            return same
        near = self.stand_ins
        if not near or self._to_install:
            return ""
        if _likeness(self._name, near[0]) >= ALIKE:
            return near[0]
        return self.kind.listed_name(near, self.default) or near[0]

    @property
    def stand_ins(self) -> list[str]:
        """The listed models of the purpose of the lines, by likeness to the name."""
        fit = [name for name in self.listed if purpose_of(name) is self._purpose]
        return sorted(fit, key=lambda name: (-_likeness(self._name, name), name))

    @property
    def _name(self) -> str:
        """The name as the server may know it."""
        prefix = _CLIENT_PREFIX.match(self.model)
        return self.model[prefix.end() :] if prefix else self.model

    @property
    def _to_install(self) -> str:
        return self.kind.name_to_install(self._name)

    @property
    def _purpose(self) -> Purpose:
        if self.endpoint:
            return Purpose.EMBEDDINGS if self.endpoint == EMBEDDINGS else Purpose.TEXTS
        return Purpose.EMBEDDINGS if purpose_of(self.model) is Purpose.EMBEDDINGS else Purpose.TEXTS

    def _hint_to_install(self) -> str:
        title, purpose = self.kind.title, self._purpose
        unknown = f"{title} knows no such name."
        if same := self._to_install:
            unknown, what, target = f"{title} knows it as {same}.", "it", same
        elif purpose_of(self.default) is purpose and self.kind.name_to_install(self.default):
            what, target = "another model", self.default
        else:
            what, target = f"a model {purpose.value}", self.kind.library_models.get(purpose, "")
        if not target:
            return f"{title} lists no model{f' {purpose.value}' if self.listed else ''}. Give it one."
        command = self.kind.install_command(target)
        if not self._may_be_mapped(target):
            return f"{unknown} Install {what} and write the name {target} into the lines: {command}"
        return f"{unknown} Install {what} and map the name to it, then restart: {command}, {self._alias(target)}"

    def _may_be_mapped(self, target: str) -> bool:
        """MODEL_ALIASES can hold the pair, and the name is one of a model for such lines."""
        name = self.model
        is_text = name.isprintable() and name == name.strip() not in ("", "*")
        is_pair = is_text and not re.search(r"[=,]", name) and "," not in target and target == target.strip()
        return is_pair and purpose_of(name) is self._purpose

    def _alias(self, target: str) -> str:
        if self.model in self.aliases.values():
            # What an alias stands for is not looked up among the aliases again.
            return f"put {shlex.quote(target)} in place of {shlex.quote(self.model)} in MODEL_ALIASES"
        pair = shlex.quote(f"{self.model}={target}")
        return f"add {pair} to MODEL_ALIASES" if self.aliases else f"MODEL_ALIASES={pair}"


def listing(listed: Sequence[str]) -> str:
    """The list of models as a server told it, in one sentence; the first MOST_NAMED of them."""
    if not listed:
        return "It lists no model."
    more = len(listed) - MOST_NAMED
    names = [*listed[:MOST_NAMED], f"{more} more"] if more > 0 else listed
    return f"It lists {_joined(names)}."


def _likeness(name: str, other: str) -> float:
    first, second = (each.lower().rpartition("/")[2].removesuffix(":latest") for each in (name, other))
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
