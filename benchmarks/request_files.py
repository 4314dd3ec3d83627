"""Input files of batches to measure with. No two lines are the same request."""

import json
import random
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ENDPOINT = "/v1/chat/completions"
# Words to draw from, about one token each.
RULES = """
the answer must be short and say what the text is about when it names a person place date or number keep it as it was
written do not add any word of your own if something is not clear choose the simpler reading judge every line by these
rules alone give one point for each fact that can be found in the text and take one away for each that cannot never
guess what people mean look at how they write and at what they leave out
"""


def plain(path: Path, lines: int, line_bytes: int, models: list[str]) -> Path:
    """Lines of `line_bytes` each; the models take turns line by line."""
    return _write(path, (_plain(number, line_bytes, models[number % len(models)]) for number in range(lines)))


def with_random_ids(path: Path, lines: int, line_bytes: int, models: list[str]) -> Path:
    """The same lines, with custom_ids that follow no order, and with temperature 0, so that each has one answer alone:
    nothing that an index holds of a line lies beside that of the line before."""
    chance = random.Random(0)

    def line(number: int) -> dict[str, Any]:
        plain = _plain(number, line_bytes - 45, models[number % len(models)])
        plain["body"]["temperature"] = 0
        return plain | {"custom_id": str(uuid.UUID(int=chance.getrandbits(128)))}

    return _write(path, map(line, range(lines)))


def with_system_prompts(
    path: Path, lines: int, prompts: Sequence[int], words: int, model: str, *, is_sorted: bool = False
) -> Path:
    """Chats with short answers, each with one of several long system prompts, which take turns line by line, or follow
    each other with all of their lines. Each number in `prompts` stands for another prompt."""
    systems = [f"Rules of judge {number}. {some_words(number, words)}" for number in prompts]
    numbers = sorted(range(lines), key=lambda number: number % len(systems)) if is_sorted else range(lines)
    return _write(path, (_chat(number, systems[number % len(systems)], model, 4) for number in numbers))


def chats(path: Path, lines: int, max_tokens: int, models: list[str]) -> Path:
    """Short questions with answers of up to `max_tokens`; the models take turns line by line."""
    system = "You know many stories."
    chats = (_chat(number, system, models[number % len(models)], max_tokens) for number in range(lines))
    return _write(path, chats)


def some_words(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(RULES.split(), k=count))


def _plain(number: int, line_bytes: int, model: str) -> dict[str, Any]:
    user = {"role": "user", "content": f"Number {number}. "}
    body = {"model": model, "messages": [{"role": "system", "content": "Answer with one word."}, user]}
    line = _line(number, body)
    missing = line_bytes - len(json.dumps(line)) - 1
    user["content"] += ("some text " * (missing // 10 + 1))[: max(0, missing)]
    return line


def _chat(number: int, system: str, model: str, max_tokens: int) -> dict[str, Any]:
    user = f"Text {number}: {some_words(1_000_000 + number, 4)}"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return _line(number, {"model": model, "messages": messages, "max_tokens": max_tokens})


def _line(number: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": f"line-{number}", "method": "POST", "url": ENDPOINT, "body": body}


def _write(path: Path, lines: Iterator[dict[str, Any]]) -> Path:
    with path.open("w") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
    return path
