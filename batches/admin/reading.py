"""A prompt and its answer as a person reads them: text by text, with who says it; the JSON as it is stands below."""

import json
from dataclasses import dataclass, field
from typing import Any

from batches.models import Line
from batches.status import line_texts
from batches.status.line_texts import Found

MOST_CHARACTERS = 100_000  # of one text on a page
MOST_NUMBERS = 8  # of an embedding


@dataclass(frozen=True)
class Said:
    """`is_code`: JSON, which is read in a font of one width."""

    who: str
    text: str
    is_code: bool = False


@dataclass(frozen=True)
class Exchange:
    line: Line
    prompt: list[Said] = field(default_factory=list)
    answer: list[Said] = field(default_factory=list)
    prompt_json: str = ""
    answer_json: str = ""
    no_prompt: str = ""
    no_answer: str = ""

    @classmethod
    def of(cls, line: Line) -> "Exchange":
        prompt, answer = line_texts.prompt_of(line), line_texts.answer_of(line)
        return cls(
            line,
            prompt=_asked(prompt.value),
            answer=_answered(answer.value),
            prompt_json=_json(prompt),
            answer_json=_json(answer),
            no_prompt=prompt.why_not,
            no_answer=answer.why_not,
        )


def _json(found: Found) -> str:
    return "" if found.value is None else _short(json.dumps(found.value, indent=2, ensure_ascii=False))


def _asked(body: Any) -> list[Said]:
    if not isinstance(body, dict):
        return []
    said = [_said("system", body["instructions"])] if body.get("instructions") else []
    if isinstance(messages := body.get("messages"), list):
        return said + _messages(messages)
    prompt = body.get("input", body.get("prompt"))
    if isinstance(prompt, list) and any(isinstance(each, dict) for each in prompt):
        return said + _messages(prompt)
    if isinstance(prompt, list) and all(isinstance(each, str) for each in prompt):
        return said + [_said("prompt", each) for each in prompt]
    return said + ([] if prompt is None else [_said("prompt", prompt)])


def _answered(body: Any) -> list[Said]:
    if not isinstance(body, dict):
        return []
    if isinstance(error := body.get("error", body), dict) and isinstance(error.get("message"), str):
        return [_said(str(error.get("code") or "error"), error["message"])]
    if isinstance(choices := body.get("choices"), list):
        return [said for choice in choices for said in _choice(choice)]
    if isinstance(output := body.get("output"), list):
        return _messages(output)
    if isinstance(data := body.get("data"), list):
        return [_embedding(each) for each in data]
    return []


def _choice(choice: Any) -> list[Said]:
    if not isinstance(choice, dict):
        return []
    if isinstance(message := choice.get("message"), dict):
        return _messages([message])
    return [_said("assistant", choice.get("text", ""))]


def _messages(messages: list[Any]) -> list[Said]:
    """Each message, with what it thought and the tools that it calls."""
    said: list[Said] = []
    for message in messages:
        if not isinstance(message, dict):
            said.append(_said("prompt", message))
            continue
        who = str(message.get("role") or message.get("type") or "message")
        if thought := message.get("reasoning_content") or message.get("reasoning") or message.get("summary"):
            said.append(_said("reasoning", _content(thought)))
        if content := message.get("content", message.get("output")):
            said.append(_said(who, _content(content)))
        if calls := message.get("tool_calls") or message.get("arguments"):
            said.append(_said(f"{who} calls {message.get('name') or 'a tool'}", calls))
    return said


def _content(content: Any) -> Any:
    """The texts of a content in parts; anything that is no text is named by its type."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "part") if isinstance(part, dict) else "part"
        texts.append(text if isinstance(text, str) else f"[{kind}]")
    return "\n".join(texts)


def _said(who: str, value: Any) -> Said:
    """A text that is a JSON object or array is set as one."""
    if not isinstance(value, str):
        return Said(who, _short(json.dumps(value, indent=2, ensure_ascii=False)), is_code=True)
    if value.lstrip()[:1] in ("{", "[") and len(value) <= MOST_CHARACTERS:
        try:
            return Said(who, _short(json.dumps(json.loads(value), indent=2, ensure_ascii=False)), is_code=True)
        except (ValueError, RecursionError):
            pass
    return Said(who, _short(value))


def _embedding(item: Any) -> Said:
    numbers = item.get("embedding") if isinstance(item, dict) else None
    if not isinstance(numbers, list):
        return _said("embedding", item)
    first = ", ".join(f"{each:g}" if isinstance(each, int | float) else str(each) for each in numbers[:MOST_NUMBERS])
    return Said("embedding", f"{len(numbers)} numbers: {first}, …", is_code=True)


def _short(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    more = len(text) - MOST_CHARACTERS
    return f"{text[:MOST_CHARACTERS]}\n… and {more:,} more characters. Download the file to read them."
