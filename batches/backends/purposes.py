"""What a model is made for, as its name tells: a guess, for messages."""

import re
from enum import Enum


class Purpose(Enum):
    """A model of one purpose cannot stand in for a model of another. The value completes "a model …"."""

    TEXTS = "for texts"
    EMBEDDINGS = "for embeddings"
    OTHERS = "for neither texts nor embeddings"


_OTHERS = re.compile(
    r"rerank|whisper|(^|[/-])(tts|sd|flux)(-|$)|text-to-|dall-?e|stable-?diffusion|sdxl|moderation|gpt-image|sora-",
    re.IGNORECASE,
)
_EMBEDDINGS = re.compile(
    r"embed|minilm|mpnet|sentence-|paraphrase-|distiluse|msmarco|multi-qa|labse|instructor-|text2vec|colbert|splade"
    r"|ada-002|text-(similarity|search)-|(^|[/_.:-])(bge|gte|e5|m3e|uae|ember|stella|voyage|gtr|jina-clip)([/_-]|$)",
    re.IGNORECASE,
)


def purpose_of(name: str) -> Purpose:
    """What a model of this name is made for; TEXTS if the name does not tell."""
    if _OTHERS.search(name):
        return Purpose.OTHERS
    return Purpose.EMBEDDINGS if _EMBEDDINGS.search(name) else Purpose.TEXTS
