"""What no server gets, whatever it reads: what would have it fetch something, or hand a prompt on to others. Pure."""

import re
from typing import Any

from batches.backends.parameters.names import shortened

# Members that can name images, files, videos and sounds, and the members within them that do it.
PROMPTS = ("messages", "input", "prompt")
ADDRESSES = frozenset(("image_url", "file_url", "video_url", "audio_url"))
# Tools that the caller runs; a server runs the others, and hands the prompt to whatever they name.
CALLED_BY_THE_CALLER = (None, "function", "custom", "namespace")
OF_HOSTED_TOOLS = ("server_url", "connector_id")
# The same in Anthropic's API, where the types of most tools end with a date. For a tool of the type web_search_20250305
# Ollama asks ollama.com (middleware/anthropic.go, WebSearchAnthropicWriter).
CALLED_BY_ANTHROPICS_CALLER = re.compile(r"(custom|(bash|text_editor|computer|memory)_\d+)?")
HOSTED = "Nothing but functions is called here, by the caller: no prompt leaves the house."


def forbidden(sent: dict[str, Any]) -> tuple[str, str] | None:
    """The full name of the first member for which this request is not sent, and why; None if there is none."""
    for name in PROMPTS:
        if name in sent and _names_addresses(sent[name]) and (param := _remote(sent[name], name)) is not None:
            return param, "Remote URLs are not fetched. Put the image or file into the line as a data: URL."
    if (param := _hosted(sent)) is not None:
        return param, f"{HOSTED} Leave it out."
    return None


def hosted_in_messages(sent: dict[str, Any]) -> tuple[str, str] | None:
    """The same for a request of Anthropic's API: its tools that a server runs. Ollama takes no address of an image."""
    tools = sent.get("tools")
    for index, tool in enumerate(tools if type(tools) is list else []):
        for name, kind in tool.items() if type(tool) is dict else ():
            # Go ignores the case of names.
            if name.casefold() != "type" or kind is None:
                continue
            if type(kind) is not str or CALLED_BY_ANTHROPICS_CALLER.fullmatch(kind) is None:
                return f"tools[{index}].type", f"{HOSTED} Leave it out."
    if sent.get("mcp_servers"):
        return "mcp_servers", f"{HOSTED} Leave it out."
    return None


def _hosted(sent: dict[str, Any]) -> str | None:
    """The full name of what makes a tool one that a server runs; None if there is none. Tools stand in the request, in
    its messages and items, and in a namespace."""
    if sent.get("web_search_options") is not None:
        return "web_search_options"
    todo = [(sent, "")]
    for name in PROMPTS:
        items = sent.get(name)
        if type(items) is list:
            todo += [
                (each, f"{name}[{at}].") for at, each in enumerate(items) if type(each) is dict and "tools" in each
            ]
    for holder, path in todo:  # grows meanwhile
        tools = holder.get("tools")
        for index, tool in enumerate(tools if type(tools) is list else [tools]):
            if type(tool) is not dict:
                continue
            place = shortened(f"{path}tools[{index}].")
            if tool.get("type") not in CALLED_BY_THE_CALLER:
                return f"{place}type"
            for name in OF_HOSTED_TOOLS:
                if tool.get(name) is not None:
                    return f"{place}{name}"
            if "tools" in tool:
                todo.append((tool, place))
    return None


def _names_addresses(value: Any) -> bool:
    """There is an address in `value`, however deep. Asked of every line, so it looks at keys alone."""
    todo = [value]
    for value in todo:  # grows meanwhile
        if type(value) is dict:
            if not ADDRESSES.isdisjoint(value):
                return True
            value = value.values()
        elif type(value) is not list:
            continue
        todo += [each for each in value if type(each) is dict or type(each) is list]
    return False


def _remote(value: Any, path: str) -> str | None:
    """The full name of an address in `value`, however deep, from which an image, file, video or sound would have to be
    fetched; None if there is none."""
    todo: list[tuple[Any, str]] = [(value, path)] if isinstance(value, list | dict) else []
    while todo:
        value, path = todo.pop()
        if type(value) is list:
            todo += [
                (each, shortened(f"{path}[{index}]")) for index, each in enumerate(value) if type(each) in (dict, list)
            ]
            continue
        for name, inner in value.items():
            place = shortened(f"{path}.{shortened(name)}")
            if name in ADDRESSES:
                url = inner.get("url") if isinstance(inner, dict) else inner
                if isinstance(url, str) and url and not url.startswith("data:"):
                    return f"{place}.url" if isinstance(inner, dict) else place
            if type(inner) in (dict, list):
                todo.append((inner, place))
    return None
