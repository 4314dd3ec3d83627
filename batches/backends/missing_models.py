"""What to do about a model that a server does not have, in words for a person."""

import difflib
import re
import shlex
from collections.abc import Collection, Sequence

from batches.backends.base import BackendKind

# Names of models that make embeddings: another model cannot stand in for one of them.
EMBEDDING = re.compile(r"embed|minilm|bge|gte-|(^|[/-])e5(-|$)|ada-002", re.IGNORECASE)
ALIKE = 0.6  # names that are at least so similar are taken for related; 1 is the same name
MOST_NAMED = 10


def hint(kind: BackendKind, model: str, listed: Collection[str], *, default: str, has_aliases: bool) -> str:
    """What to type so that lines for `model` are answered by a server of this kind that lists these models.

    The command that installs it, if the server can have a model of this name; if not, the alias that maps the name to a
    model that is there. `default` is the model that answers lines without one; `has_aliases`: some alias is set.
    """
    if install := kind.install_command(model):
        return f"Install it: {install}"
    near = nearest(model, listed)
    if not near and not (install := kind.install_command(default)):
        return f"{kind.title} lists no model. Give it one."
    alias = _alias(model, _stand_in(kind, model, near, default) if near else default, has_aliases=has_aliases)
    if not near:
        unknown = f"{kind.title} knows no such name. Install another model and map the name to it, then restart"
        return f"{unknown}: {install}, {alias}"
    if kind.has_library:
        return f"{kind.title} knows no such name. Map it to a model that is installed, then restart: {alias}"
    return f"Use a name that it lists, such as {_joined(near[:3])}, or map the name to one, then restart: {alias}"


def hint_for_waiting(kind: BackendKind, model: str, listed: Collection[str], *, default: str, has_aliases: bool) -> str:
    """The same for lines that wait for the model already: an alias that is set now does not reach them."""
    told = hint(kind, model, listed, default=default, has_aliases=has_aliases)
    if kind.install_command(model) or not listed:
        return told
    stand_in = _stand_in(kind, model, nearest(model, listed), default)
    return f"{kind.give_back_hint(model, stand_in)} Or send the lines again. {told}"


def _stand_in(kind: BackendKind, model: str, near: Sequence[str], default: str) -> str:
    """The model to map `model` to: the nearest one or, if no name is much like it, the default model."""
    if _likeness(model, near[0]) >= ALIKE:
        return near[0]
    alike = [name for name in near if _makes_embeddings(name) is _makes_embeddings(near[0])]
    return kind.listed_name(alike, default) or near[0]


def listing(listed: Sequence[str]) -> str:
    """The list of models as a server told it, in one sentence; the first MOST_NAMED of them."""
    if not listed:
        return "It lists no model."
    more = len(listed) - MOST_NAMED
    names = [*listed[:MOST_NAMED], f"{more} more"] if more > 0 else listed
    return f"It lists {_joined(names)}."


def nearest(model: str, listed: Collection[str]) -> list[str]:
    """The listed models, those first that make embeddings if `model` does and the others if not, then by likeness."""
    wanted = _makes_embeddings(model)
    return sorted(listed, key=lambda name: (_makes_embeddings(name) is not wanted, -_likeness(model, name), name))


def _makes_embeddings(name: str) -> bool:
    return EMBEDDING.search(name) is not None


def _likeness(name: str, other: str) -> float:
    first, second = (each.lower().rpartition("/")[2].removesuffix(":latest") for each in (name, other))
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def _alias(model: str, target: str, *, has_aliases: bool) -> str:
    # A name with one of these signs cannot be written into the setting; "*" stands for every name.
    pair = f"{'*' if re.search(r'[=,]', model) else model}={target}"
    return f"add {shlex.quote(pair)} to MODEL_ALIASES" if has_aliases else f"MODEL_ALIASES={shlex.quote(pair)}"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
