"""Translations: members of other APIs, put where an OpenAI-compatible server reads them.

Each is a `Move`: it changes a copy of the object that holds the member, and nothing below that in place.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from batches.backends.parameters.table import JSON, Entry, Move, Moved, Note, shown

# What the first bytes of an image are in base64: PNG, JPEG, WebP and GIF.
IMAGE_TYPES = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "UklGR": "webp", "R0lGOD": "gif"}


def place(path: str) -> str:
    """A dotted name for the page of all members."""
    outer, _, name = path.rpartition(".")
    return f"`{name}` in `{outer}`" if outer else f"`{name}`"


def put(sent: JSON, path: str, value: Any) -> str:
    """Set a member by its dotted name. What is in the way, if the member has another value already."""
    *outer, name = path.split(".")
    place = sent
    for each in outer:
        inner = place.get(each)
        place[each] = dict(inner) if isinstance(inner, dict) else {}
        place = place[each]
    if place.get(name) not in (None, value):
        return f"'{path}' has another value; give only one of the two."
    place[name] = value
    return ""


def put_instead(sent: JSON, name: str, to: str, value: Any) -> Iterator[Note]:
    """Set the member `to`, a dotted name, in place of the member `name`; or note what is in the way, and leave both."""
    if problem := put(sent, to, value):
        yield Note(problem, path=name)
    else:
        del sent[name]


def rename(to: str) -> Moved:
    """Another name for the member `to`, a dotted name."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        yield from put_instead(sent, name, to, sent[name])

    return Moved(move, place(to))


def limit(to: str) -> Moved:
    """Another name for a limit of the answer's tokens. If both are set, the lower one holds, as it would for both; a
    negative one sets no limit."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        asked, other = sent[name], sent.get(to)
        if isinstance(asked, float) and asked.is_integer():
            asked = int(asked)
        if type(asked) is not int:
            yield Note("Use a whole number.", path=name, shown=shown(asked))
        elif other is not None and type(other) is not int:
            yield Note(f"'{to}' has another value; give only one of the two.", path=name)
        else:
            del sent[name]
            given = [asked] if other is None else [asked, other]
            sent[to] = min((each for each in given if each >= 0), default=given[-1])

    return Moved(move, place(to))


def limits(to: str, *names: str) -> dict[str, Entry]:
    """Several other names for one limit."""
    return dict.fromkeys(names, limit(to))


def think(to: str) -> Moved:
    """Ollama's `think`. `true` asks for what "medium" asks for (api/types.go ThinkValue.String)."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        value = sent[name]
        effort = {True: "medium", False: "none"}[value] if isinstance(value, bool) else value
        if not isinstance(effort, str):
            yield Note('Use true, false, "low", "medium" or "high".', path=name, shown=shown(value))
        else:
            yield from put_instead(sent, name, to, effort)

    return Moved(move, place(to))


def thinking(to: str) -> Moved:
    """`thinking: {"type": "disabled"}`, as other APIs turn it off."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        value = sent[name]
        effort = (
            {"disabled": "none", "enabled": "medium"}.get(str(value.get("type"))) if isinstance(value, dict) else None
        )
        if isinstance(value, bool):
            effort = "medium" if value else "none"
        if effort is None or (isinstance(value, dict) and len(value) > 1):
            yield Note(f"Use '{to}'.", path=name, shown=shown(value))
        else:
            yield from put_instead(sent, name, to, effort)

    return Moved(move, place(to))


def thinking_members(to: str) -> dict[str, Entry]:
    """The members by which clients turn thinking on and off, for a server that reads an effort: `to`."""
    return {"think": think(to), "thinking": thinking(to), "enable_thinking": think(to)}


def template_switch(to: str) -> Moved:
    """`chat_template_kwargs` that only turn thinking on or off, for a server that renders templates by itself."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        value = sent[name]
        if value == {}:
            del sent[name]
        elif isinstance(value, dict) and len(value) == 1 and isinstance(flag := next(iter(value.values())), bool):
            if next(iter(value)) not in ("enable_thinking", "thinking"):
                yield Note("", path=f"{name}.{next(iter(value))}")
            else:
                yield from put_instead(sent, name, to, "medium" if flag else "none")
        else:
            yield Note(f"Of these, only enable_thinking has an equivalent: '{to}'.", path=name)

    return Moved(move, f"{place(to)}, if it only turns thinking on or off")


def reasoning(to: str) -> Moved:
    """`reasoning: {"effort": …}` in a chat. With it Ollama ignores `reasoning_effort`, also if it has no effort."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        value = sent[name]
        if not isinstance(value, dict):
            return  # the server refuses it
        effort, rest = None, {}
        for member, inner in value.items():
            if member == "effort":
                effort = inner
            elif member == "enabled" and isinstance(inner, bool):
                effort = effort or (None if inner else "none")
            elif inner is not None and (member, inner) != ("exclude", False) and member != "summary":
                rest[member] = inner
        if effort and (problem := put(sent, to, effort)):
            yield Note(problem, path=name)
            return
        del sent[name]
        if rest:
            sent[name] = rest | ({"effort": effort} if effort else {})
            for member in rest:
                yield Note("", path=f"{name}.{member}")

    return Moved(move, place(to))


def options(equivalents: Mapping[str, str], hints: Mapping[str, str]) -> Moved:
    """Ollama's `options`: members that mean the same go by the names in `equivalents`, or are left out where these are
    empty; the rest is not read."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        value = sent[name]
        if not isinstance(value, dict):
            yield Note("It is an object in Ollama's own API.", path=name, shown=shown(value))
            return
        rest = {}
        for member, inner in value.items():
            if inner is None:
                continue
            if (to := equivalents.get(member)) is None:
                problem = hints.get(member, "")
            elif not to or not (problem := put(sent, to, inner)):
                continue
            rest[member] = inner
            yield Note(problem, path=f"{name}.{member}")
        del sent[name]
        if rest:
            sent[name] = rest

    to = "the members of the same meaning" if any(equivalents.values()) else "left out"
    listed = ", ".join(f"`{each}`" for each in equivalents)
    return Moved(move, f"{listed}: {to}; others are refused")


def response_format(value: Any) -> Any:
    """OpenAI's shape for what Ollama's `format` asks for; None if it is neither "json" nor a schema."""
    if value == "json":
        return {"type": "json_object"}
    if isinstance(value, dict) and value:
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": value}}
    return None


def as_text_format(value: Any) -> Any:
    """`response_format` as /v1/responses has it in `text.format`; the value itself if it has another shape."""
    if isinstance(value, dict) and isinstance(inner := value.get("json_schema"), dict):
        return {"type": "json_schema"} | inner
    return value


def native_format(to: str) -> Moved:
    """Ollama's `format`: "json" or a schema."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        value = sent[name]
        asked = response_format(value)
        if to == "text.format":
            asked = as_text_format(asked)
        if value == "":
            del sent[name]
        elif asked is None:
            yield Note('Use "json" or a JSON schema.', path=name, shown=shown(value))
        else:
            yield from put_instead(sent, name, to, asked)

    return Moved(move, place(to))


def chat_format() -> Moved:
    """A chat's `response_format` in a request to /v1/responses."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        yield from put_instead(sent, name, "text.format", as_text_format(sent[name]))

    return Moved(move, place("text.format"))


def _functions(sent: JSON, name: str) -> Iterator[Note]:
    value = sent[name]
    if not isinstance(value, list):
        yield Note("It is a list of functions.", path=name, shown=shown(value))
    elif value:
        yield from put_instead(sent, name, "tools", [{"type": "function", "function": each} for each in value])
    else:
        del sent[name]


def _function_call(sent: JSON, name: str) -> Iterator[Note]:
    value = sent[name]
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        value = {"type": "function", "function": {"name": value["name"]}}
    yield from put_instead(sent, name, "tool_choice", value)


FUNCTIONS = Moved(_functions, "`tools`")
FUNCTION_CALL = Moved(_function_call, "`tool_choice`")


def tool_choice(hint: str) -> Moved:
    """For a server that always lets the model choose: "none" leaves the tools out, and a call cannot be asked for."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        value = sent[name]
        if value == "none":
            sent.pop("tools", None)
        elif value != "auto":
            yield Note(hint, path=name, shown=shown(value))
            return
        del sent[name]

    return Moved(move, '`"none"`: the tools are left out; `"auto"`: nothing; others are refused')


def _none_without_tools(sent: JSON, name: str) -> None:
    if sent[name] == "none":
        sent.pop("tools", None)
        del sent[name]


# With "none" no tool is called, but these servers show the model the tools all the same, and take its call as text.
NONE_WITHOUT_TOOLS = Moved(_none_without_tools, '`"none"`: the tools are left out; else read')


def needs(other: str, hint: str, *, harmless: tuple[Any, ...] = ()) -> Move:
    """A member that has an effect only beside `other`; left out where `other` is turned off in so many words."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        if sent.get(other):
            return
        if sent[name] in harmless or sent.get(other) is False:
            del sent[name]
        else:
            yield Note(hint, path=name)

    return move


TOP_LOGPROBS = Moved(needs("logprobs", "It needs 'logprobs': true.", harmless=(0,)), "read beside `logprobs`")


def parallel_tool_calls(hint: str) -> Moved:
    """For a server that lets the model call as many tools as it likes."""

    def move(sent: JSON, name: str) -> Iterator[Note]:
        if sent[name] is True or not sent.get("tools"):
            del sent[name]
        else:
            yield Note(hint, path=name, shown=shown(sent[name]))

    return Moved(move, "`true`, or without tools: left out; else refused")


# Members of messages


def images(default_type: str, types: Mapping[str, str] = IMAGE_TYPES) -> Moved:
    """Ollama's `images`, in base64: parts before the text, where Ollama's own rendering puts them (server/prompt.go).

    `default_type` begins the data: URL of an image whose first bytes are none of `types`.
    """

    def address(image: str) -> str:
        if image.startswith(("data:", "http:", "https:")):
            return image
        kind = next((f"data:image/{kind}" for start, kind in types.items() if image.startswith(start)), default_type)
        return f"{kind};base64,{image}"

    def move(sent: JSON, name: str) -> Iterator[Note]:
        value, content = sent[name], sent.get("content")
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            yield Note("It is a list of images in base64.", path=name)
            return
        del sent[name]
        if not value:
            return
        parts: list[Any] = [{"type": "image_url", "image_url": {"url": address(each)}} for each in value]
        if isinstance(content, list):
            parts += content
        elif content:
            parts.append({"type": "text", "text": content})
        sent["content"] = parts

    return Moved(move, "parts of `content`")


def _message_call(sent: JSON, name: str) -> Iterator[Note]:
    call = sent[name]
    calls = (
        [{"id": f"call_{call.get('name')}", "type": "function", "function": call}] if isinstance(call, dict) else None
    )
    if calls is None or put(sent, "tool_calls", calls):
        yield Note("Use 'tool_calls'.", path=name)
    else:
        del sent[name]


MESSAGE_CALL = Moved(_message_call, "`tool_calls`")
