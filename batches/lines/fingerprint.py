"""Which requests are the same and have only one answer: told from the body, before anything is sent. Pure."""

from hashlib import blake2b
from typing import Any

from batches.lines import prompt

DIGEST_BYTES = 16
EMBEDDINGS = "/v1/embeddings"


def digest(endpoint: str, model: str, body: dict[str, Any]) -> bytes | None:
    """DIGEST_BYTES bytes that are the same for the same request to the same model. None for a request that may have
    several answers: it is no embedding, and is sampled without temperature 0 and without a seed.

    `model` is the model that answers, whatever `body` calls it. Structure and order of the rest of `body` count.
    """
    if endpoint != EMBEDDINGS and not _is_deterministic(body):
        return None
    content = prompt.dump({name: value for name, value in body.items() if name != "model"})
    return blake2b(f"{endpoint}\n{model}\n".encode() + content, digest_size=DIGEST_BYTES).digest()


def _is_deterministic(body: dict[str, Any]) -> bool:
    # True and False are integers to Python, not to a model server.
    temperature, seed = body.get("temperature"), body.get("seed")
    return (type(temperature) in (int, float) and temperature == 0) or type(seed) is int
