"""Which requests are the same and have one answer alone: from the body, before anything is sent. Pure."""

from hashlib import blake2b
from typing import Any

from batches.lines import prompt

DIGEST_BYTES = 16
EMBEDDINGS = "/v1/embeddings"


def digest(endpoint: str, model: str, body: dict[str, Any]) -> bytes | None:
    """DIGEST_BYTES that are the same for the same request to the same model, where it has one answer alone: sampled
    with temperature 0 or a seed, or an embedding. None for all others.

    `model` is the one that answers, whatever `body` calls it. Structure and order of the rest of it count.
    """
    if endpoint != EMBEDDINGS and not _is_deterministic(body):
        return None
    try:
        content = prompt.dump({name: value for name, value in body.items() if name != "model"})
    except RecursionError:  # nested nearly too deep to be read at all
        return None
    return blake2b(f"{endpoint}\n{model}\n".encode() + content, digest_size=DIGEST_BYTES).digest()


def _is_deterministic(body: dict[str, Any]) -> bool:
    # True and False are integers to Python, not to a model server.
    temperature, seed = body.get("temperature"), body.get("seed")
    return (type(temperature) in (int, float) and temperature == 0) or type(seed) is int
