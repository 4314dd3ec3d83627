"""Models that are derived from a user's model to give it a larger context, since Ollama's /v1 can set none.

A derived model has the weights, the template and the parameters of its origin, and another num_ctx. Ollama makes one in
some 20 ms and copies no weights. Its name says what it is, and by a mark whose it is: two of our servers may share one
Ollama, and each deletes only its own.

    gemma3:12b                       obs-ctx-16384/gemma3:12b-obs3f9a2c
    hf.co/unsloth/gemma-3-GGUF:Q4    hf.co/obs-ctx-16384-unsloth/gemma-3-GGUF:Q4-obs3f9a2c

Ollama keeps one runner for the weights, whatever names share them: a request for the origin takes the derived model off
the card, and the other way round (server/sched.go: schedulerModelKey, needsReload).
"""

import re

from batches.backends import ollama_names
from batches.backends.replies import JSON
from batches.backends.states import Derived, Exchange

_DERIVED = re.compile(
    r"(?P<host>[^/]+/)?obs-ctx-(?P<tokens>\d+)(-(?P<namespace>[^/]+))?/(?P<model>[^/:]+):(?P<tag>[^/:]+)"
    r"-obs(?P<mark>[0-9a-f]{6})"
)


def name(origin: str, tokens: int, mark: str) -> str:
    """The name of the model derived from `origin` for this context; empty if Ollama would refuse the name, or if
    `origin` is a derived model itself. `mark` is six hexadecimal digits."""
    if not ollama_names.identity(origin) or read(origin):
        return ""
    host, namespace, model, tag = ollama_names.split(origin)
    is_default = host.lower() == ollama_names.DEFAULT_HOST
    in_library = is_default and namespace.lower() == ollama_names.DEFAULT_NAMESPACE
    derived = f"obs-ctx-{tokens}{'' if in_library else f'-{namespace}'}/{model}:{tag}-obs{mark}"
    derived = derived if is_default else f"{host}/{derived}"
    return derived if ollama_names.identity(derived) else ""


def read(name: str) -> Derived | None:
    """What a name says if it is that of a derived model, whosoever made it; else None."""
    found = _DERIVED.fullmatch(name.strip())
    if found is None:
        return None
    namespace = f"{found['namespace']}/" if found["namespace"] else ""
    origin = f"{found['host'] or ''}{namespace}{found['model']}:{found['tag']}"
    return Derived(origin, int(found["tokens"]), found["mark"])


def make(exchange: Exchange, name: str) -> bool:
    """Have Ollama make the derived model, unless its origin is missing or runs in Ollama's cloud; whether it did.

    Safe to run again: the model is made anew, and stays loaded. Lets through what `exchange` raises.
    """
    derived = read(name)
    if derived is None:
        return False
    # From a model that is missing, Ollama would pull the model first: gigabytes that nobody asked for.
    status, shown = exchange("/api/show", {"model": derived.origin})
    if status != 200 or not isinstance(shown, dict) or shown.get("remote_host"):
        return False
    wanted: JSON = {"model": name, "from": derived.origin, "parameters": {"num_ctx": derived.tokens}, "stream": False}
    status, _ = exchange("/api/create", wanted)
    return status == 200
