"""Servers that get every member as it is: llama.cpp's own, which reads far more than OpenAI's members, and those of an
unknown kind. What llama-server is known to drop without a word is refused.
"""

from collections.abc import Mapping

from batches.backends.parameters.moves import tool_choice
from batches.backends.parameters.shared import Format, first, nest_schema
from batches.backends.parameters.table import READ, Dropped, Each, Entry, Kinds, Object, Table, Unread

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")

_ANYTHING = Object({}, unknown=READ)
_HOSTED = "Nothing but functions is called here, by the caller: no prompt leaves the house."
_FUNCTIONS_ALONE = Each(Kinds("type", {"function": _ANYTHING, None: _ANYTHING}, hint=_HOSTED))
_MESSAGE = Object(
    {
        "images": Unread("Send each as a part of 'content', of the type 'image_url'."),
        "function_call": Unread("Use 'tool_calls'."),
    },
    unknown=READ,
)
_SEVERAL = "Send as many lines, each with another 'seed'."
# Members of Ollama's own API.
_OLLAMAS: dict[str, Entry] = {
    "format": Unread("Use 'response_format' in /v1/chat/completions."),
    "options": Unread("Its members belong into the body itself."),
    "think": Unread('Use "chat_template_kwargs": {"enable_thinking": false} in /v1/chat/completions.'),
}
_LLAMA_SERVER: dict[str, dict[str, Entry]] = {
    "/v1/chat/completions": {
        "messages": Each(_MESSAGE),
        "tools": _FUNCTIONS_ALONE,
        # Of a json_schema without a schema it makes any JSON.
        "response_format": Format(
            {"text": _ANYTHING, "json_object": _ANYTHING, "json_schema": _ANYTHING},
            schema=("json_schema", "schema"),
            first=first(nest_schema),
        ),
        "best_of": Dropped(1, hint=_SEVERAL),
        **_OLLAMAS,
    },
    "/v1/completions": {
        "best_of": Dropped(1, hint=_SEVERAL),
        "echo": Dropped(False, hint="Put the prompt before the answer yourself."),
        "suffix": Dropped("", hint="llama-server inserts by /infill alone."),
        "response_format": Unread("Use 'json_schema', or /v1/chat/completions."),
        **_OLLAMAS,
    },
    "/v1/embeddings": {"dimensions": Unread("The vectors have the length that the model makes.")},
    "/v1/responses": {
        **_OLLAMAS,
        "text": Object(
            {"format": Kinds("type", {"text": READ}, hint="Use /v1/chat/completions with 'response_format'.")},
            unknown=READ,
        ),
        "tools": _FUNCTIONS_ALONE,
    },
}
# The template of SmolLM2 has no tools, so llama.cpp shows it none and makes it call none.
_NO_TOOLS = "The embedded model knows no tools; use another model."
_EMBEDDED: dict[str, Entry] = {"tools": Dropped([], hint=_NO_TOOLS), "tool_choice": tool_choice(_NO_TOOLS)}


def _tables(title: str, source: str, members: Mapping[str, Mapping[str, Entry]]) -> dict[str, Table]:
    return {
        endpoint: Table(title, endpoint, Object(members.get(endpoint, {}), unknown=READ), source=source)
        for endpoint in ENDPOINTS
    }


UNKNOWN = _tables("The model server", "nobody knows what it reads", {})
LLAMA_SERVER = _tables("llama-server", "tried on llama.cpp b11549", _LLAMA_SERVER)
EMBEDDED = _tables(
    "The embedded model",
    "tried on llama.cpp b11549 with SmolLM2",
    {name: {**members, **(_EMBEDDED if "tools" in members else {})} for name, members in _LLAMA_SERVER.items()},
)
