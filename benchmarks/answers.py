"""Count the tokens in a file of answers, by the bare loop or by a batch."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tokens:
    """Tokens of all lines: of the prompts, of prompts that the model did not have to read again, and of the answers."""

    prompt: int
    cached: int
    written: int

    @property
    def read(self) -> int:
        return self.prompt - self.cached


def tokens(path: Path) -> Tokens:
    prompt = cached = written = 0
    with path.open() as file:
        for line in file:
            usage = json.loads(line)["response"]["body"]["usage"]
            prompt += usage["prompt_tokens"]
            cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            written += usage["completion_tokens"]
    return Tokens(prompt, cached, written)
