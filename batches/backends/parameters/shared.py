"""What several tables share: members that never matter, and the forms of answers, parts and calls."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from batches.backends.parameters.table import JSON, Dropped, Entry, Kinds, Like, Note, Notes, Unread

# What a request says about itself, its sender or its bill, and how long a model stays loaded, which is our own affair
# while its lines come. `prediction` is a draft of the answer, by which OpenAI answers sooner.
_ABOUT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("prompt_cache_options", "keep_alive", "prediction"),
)
ABOUT: dict[str, Entry] = {name: Dropped() for name in _ABOUT}
# What client libraries keep in their own copies of answers and calls, which come back as messages.
ABOUT_CALLS: dict[str, Entry] = dict.fromkeys(("parsed_arguments", "provider_specific_fields"), Dropped())
ABOUT_MESSAGES: dict[str, Entry] = dict.fromkeys(
    ("annotations", "parsed", "provider_specific_fields", "thinking_blocks"), Dropped()
)
# Where a provider is to cut a prompt for its cache; model servers do that by themselves.
CACHE_CONTROL: dict[str, Entry] = {"cache_control": Dropped()}
# Members that are no members of a request at all.
_OF_THE_CLIENT = "It is an argument of the Python client, no member of a request."
NO_MEMBERS: dict[str, Entry] = {
    "extra_body": Dropped(
        {}, hint="Its members belong into the body itself; only the Python client takes them in 'extra_body'."
    ),
    "extra_headers": Dropped({}, hint=_OF_THE_CLIENT),
    "extra_query": Dropped({}, hint=_OF_THE_CLIENT),
    "params": Dropped({}, hint="The members of a request stand in 'body' itself."),
}
# What several tables say about members that no model server here reads.
MORE_ANSWERS = "Send as many lines, each with another 'seed'."
NO_SEARCH = "Nothing is searched for: no prompt leaves the house."
WHOLE_PROMPT = "A prompt that is too long is an error line here, never an answer to a part of it."
AS_TEXT = "Put the prefix that the model wants for queries or documents into the text itself."
NO_WAITING = "A batch waits for its answers anyway."
IN_THE_PROMPT = "Ask for it in the prompt."
# Where a model only goes on with a text, or makes vectors.
NO_THINKING: dict[str, Entry] = dict.fromkeys(
    ("think", "thinking", "enable_thinking", "reasoning_effort"), Unread("Use /v1/chat/completions.")
)


class Format(Kinds):
    """The form of an answer by its type; a json_schema needs a schema at the place that `schema` names."""

    def __init__(
        self, kinds: Mapping[str | None, Entry], *, schema: tuple[str, ...], first: Callable[[Any], Any]
    ) -> None:
        hint = "Use one of the types " + ", ".join(f"'{each}'" for each in kinds) + "."
        super().__init__("type", kinds, hint=hint)
        self.schema = schema
        self.first = first

    def check(self, value: Any, notes: Notes) -> Any:
        value = super().check(self.first(value), notes)
        if isinstance(value, dict) and value.get("type") == "json_schema":
            place: Any = value
            for name in self.schema:
                place = place.get(name) if isinstance(place, dict) else None
            if place is None:
                notes.append(Note("A 'json_schema' needs one there.", path=".".join(self.schema), shown="null"))
        return value


def nest_schema(value: JSON) -> None:
    """A chat's format, where others take the schema one level higher, or beside json_object."""
    flat = value.get("type") in ("json_schema", "json_object") and isinstance(value.get("schema"), dict)
    if flat and value.get("json_schema") is None:
        inner = {name: value.pop(name) for name in ("name", "strict", "schema") if name in value}
        value |= {"type": "json_schema", "json_schema": {"name": "format"} | inner}


def lift_schema(value: JSON) -> None:
    """The format of /v1/responses, where it has the shape of a chat's."""
    if value.get("type") == "json_schema" and isinstance(value.get("json_schema"), dict):
        value |= value.pop("json_schema")
    elif value.get("type") == "json_object" and isinstance(value.get("schema"), dict):
        value |= {"type": "json_schema", "name": "format"}


def json_object_as_schema(value: JSON) -> None:
    if value.get("type") == "json_object":
        value |= {"type": "json_schema", "name": "json_object", "schema": {"type": "object"}}


SCHEMA = Like(lambda value: isinstance(value, dict), hint="Use a JSON schema, which is an object.", says="a schema")


def are_texts(value: Any) -> bool:
    """A text, or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def first(*moves: Callable[[JSON], None]) -> Callable[[Any], Any]:
    """Apply these to a copy of an object; anything else stays as it is."""

    def apply(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        for each in moves:
            each(value)
        return value

    return apply


def flattened(parts: Any) -> Any:
    """Text parts alone as one text; anything else as it is."""
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        return parts
    return "\n".join(filter(None, texts))


def as_json(value: Any) -> Any:
    """Arguments of a call as OpenAI has them: JSON in a string. Ollama's own API has an object, others have nothing."""
    return json.dumps(value) if isinstance(value, dict) else "{}" if value == "" else value
