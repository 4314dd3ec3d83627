"""What is wrong with a file of requests, found without a batch. The server's own validation has the last word."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client import input_file, rendering
from client.trouble import Trouble

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
# Of English prose; a rough measure of how long the longest prompt is, and no more.
CHARACTERS_A_TOKEN = 4


@dataclass
class Report:
    """What a file holds. `mistakes` have the form of a failed batch's `errors`."""

    lines: int = 0
    endpoint: str = ""
    models: Counter[str] = field(default_factory=Counter)  # "" for lines that name none
    longest: dict[str, "Longest"] = field(default_factory=dict)  # of each model
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def longest_of_all(self) -> "Longest":
        return max(self.longest.values(), default=Longest(), key=lambda each: each.characters)


@dataclass(frozen=True)
class Longest:
    """The longest prompt, and the line that has it."""

    line: int = 0
    characters: int = 0

    @property
    def tokens(self) -> int:
        """Roughly."""
        return self.characters // CHARACTERS_A_TOKEN


@dataclass(frozen=True)
class Models:
    """What a server says of the models that lines may name."""

    has: Callable[[str], bool]
    context: Callable[[str], int | None]  # tokens that a line may take, prompt and answer; None: it does not say


def check(path: Path, models: Models | None) -> Report:
    """Read the whole file. `models` asks the server about those that lines name; None: it cannot be asked."""
    report = Report()
    seen: dict[str, int] = {}
    for number, text in input_file.lines(path):
        report.lines += 1
        problem = _look(text, number, report, seen)
        if problem is not None:
            report.mistakes.append({"line": number, "message": problem})
    if not report.lines:
        raise Trouble(f"{path} is empty. Expected one JSON object on each line.")
    if models is not None:
        for model in sorted(filter(None, report.models)):
            _ask(models, model, report)
    return report


def _ask(models: Models, model: str, report: Report) -> None:
    """Take what the server says of a model into the report."""
    if not models.has(model):
        told = f"The server does not have the model '{model}' ({rendering.lines(report.models[model])})."
        report.mistakes.append({"line": None, "message": told})
        return
    context, longest = models.context(model), report.longest.get(model, Longest())
    if context is None:
        report.warnings.append(f"Whether the prompts fit '{model}' is not known: its model server tells no context.")
    elif longest.tokens > context:
        report.warnings.append(
            f"The prompt of line {longest.line} has roughly {longest.tokens:,} tokens, and '{model}' takes "
            f"{context:,}, prompt and answer. Lines that do not fit fail with context_length_exceeded."
        )


def _look(text: bytes, number: int, report: Report, seen: dict[str, int]) -> str | None:
    """Take a line into the report; the first thing that is wrong with it."""
    try:
        line = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return "This line is not parseable as valid JSON."
    if not isinstance(line, dict):
        return "The request must be a JSON object."
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return "The custom_id of a request must be a text that is not empty."
    if custom_id in seen:
        return f"The custom_id '{custom_id}' is that of line {seen[custom_id]} too."
    seen[custom_id] = number
    if line.get("method") != "POST":
        return "The method of a request must be POST."
    if line.get("url") not in ENDPOINTS:
        return f"The url must be one of {', '.join(ENDPOINTS)}."
    report.endpoint = report.endpoint or line["url"]
    if line["url"] != report.endpoint:
        return f"The url is not {report.endpoint}, which the lines before have: a batch has one url."
    body = line.get("body")
    if not isinstance(body, dict):
        return "The body of a request must be a JSON object."
    model = body["model"] if isinstance(body.get("model"), str) else ""
    report.models[model] += 1
    characters = _characters({name: body.get(name) for name in ("messages", "prompt", "input", "instructions")})
    if characters > report.longest.get(model, Longest()).characters:
        report.longest[model] = Longest(number, characters)
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _characters(value: Any) -> int:
    """The letters of all texts in it, but for those of data: URLs, which are no prompt."""
    if isinstance(value, str):
        return 0 if value.startswith("data:") else len(value)
    if isinstance(value, dict):
        return sum(_characters(each) for each in value.values())
    return sum(_characters(each) for each in value) if isinstance(value, list) else 0
