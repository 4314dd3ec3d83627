"""What is wrong with a file of requests, found without a batch. The server's own validation has the last word."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client import input_file
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
    longest_line: int = 0
    longest_characters: int = 0
    mistakes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def longest_tokens(self) -> int:
        """Roughly."""
        return self.longest_characters // CHARACTERS_A_TOKEN


def check(path: Path, has_model: Callable[[str], bool] | None) -> Report:
    """Read the whole file. `has_model` asks the server whether lines may name a model; None: it cannot be asked."""
    report = Report()
    seen: dict[str, int] = {}
    for number, text in input_file.lines(path):
        report.lines += 1
        problem = _look(text, number, report, seen)
        if problem is not None:
            report.mistakes.append({"line": number, "message": problem})
    if not report.lines:
        raise Trouble(f"{path} is empty. Expected one JSON object on each line.")
    for model in sorted(filter(None, report.models)):
        if has_model is not None and not has_model(model):
            told = f"The server does not have the model '{model}' ({report.models[model]:,} lines)."
            report.mistakes.append({"line": None, "message": told})
    return report


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
    model = body.get("model")
    report.models[model if isinstance(model, str) else ""] += 1
    characters = _characters({name: body.get(name) for name in ("messages", "prompt", "input", "instructions")})
    if characters > report.longest_characters:
        report.longest_line, report.longest_characters = number, characters
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
