"""Models that are derived from a user's model to give it a larger context, since Ollama's /v1 can set none.

gemma3:12b                       obs-ctx-16384/gemma3:12b-obs3f9a2c
hf.co/unsloth/gemma-3-GGUF:Q4    hf.co/obs-ctx-16384-unsloth/gemma-3-GGUF:Q4-obs3f9a2c
"""

import re
from typing import NamedTuple

_DERIVED = re.compile(
    r"(?P<host>[^/]+/)?obs-ctx-\d+(-(?P<namespace>[^/]+))?/(?P<model>[^/:]+):(?P<tag>[^/:]+)-obs[0-9a-f]{6}"
)


class Derived(NamedTuple):
    origin: str  # the user's model


def read(name: str) -> Derived | None:
    """What a name says if it is that of a derived model, whosoever made it; else None."""
    found = _DERIVED.fullmatch(name.strip())
    if found is None:
        return None
    namespace = f"{found['namespace']}/" if found["namespace"] else ""
    return Derived(f"{found['host'] or ''}{namespace}{found['model']}:{found['tag']}")
