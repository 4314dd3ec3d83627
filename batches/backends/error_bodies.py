"""What the body of an error reply says, however it is wrapped."""

import json
import re
from dataclasses import dataclass, replace
from typing import Any

MOST_LAYERS = 10  # of JSON in JSON, and of members in members
# Where JSON begins within a text, as in `llama-server apply-template error: {"error":{…}}`.
WRAPPED = re.compile(r'\{\s*"(?:error|message|detail)"')
# What the message of a missing model begins with. The rest may hold the line's own words.
NAMES_A_MODEL = re.compile(r"\W*(the |requested |this )*model\b", re.IGNORECASE)


@dataclass(frozen=True)
class ErrorBody:
    """The members of OpenAI's error object as the server filled them; empty where it did not."""

    message: str = ""
    type: str = ""
    param: str = ""
    code: str = ""
    is_api_error: bool = False  # in an envelope of the API: no page of a proxy or of a router
    is_wrapped: bool = False  # JSON within a string

    @property
    def is_about_model(self) -> bool:
        """The model is not there. Ollama says so in words alone, which a line cannot choose at the beginning."""
        if self.param or self.code:
            return self.param == "model" or self.code == "model_not_found"
        return NAMES_A_MODEL.match(self.message) is not None


def read(body: Any, text: str = "") -> ErrorBody:
    """What the parsed body of an error reply says; `text` is the body itself, for a body that is no JSON object."""
    return _read(body if isinstance(body, dict) else text, MOST_LAYERS)


def _read(value: Any, layers: int) -> ErrorBody:
    if not layers:
        return ErrorBody()
    match value:
        case str() as text:
            return _read_text(text, layers)
        case {"error": str() | dict() as error}:
            return replace(_read(error, layers - 1), is_api_error=True)
        case {"message": str() as message}:
            inner = _read(message, layers - 1)
            own = {name: value[name] for name in ("type", "param", "code") if isinstance(value.get(name), str)}
            return replace(inner, **{name: text for name, text in own.items() if not getattr(inner, name)})
        case {"detail": str() as detail}:
            return _read(detail, layers - 1)
    return ErrorBody()


def _read_text(text: str, layers: int) -> ErrorBody:
    begins = WRAPPED.search(text)
    try:
        inner = json.JSONDecoder().raw_decode(text, begins.start())[0] if begins else None
    except (ValueError, RecursionError):
        inner = None
    read = _read(inner, layers - 1) if begins and inner else ErrorBody()
    if begins is None or not read.message:
        return ErrorBody(text.strip())
    return replace(read, message=text[: begins.start()].lstrip() + read.message, is_wrapped=True)
