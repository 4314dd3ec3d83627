"""The file of requests that a batch is made of, read line by line."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.trouble import Trouble

BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r\n\x0b\x0c\x1a"


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and text of each line that is not empty, without BOM and white space around it. Raises Trouble."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if text := line.strip(BLANK).removeprefix(BOM).strip(BLANK):
                    yield number, text
    except OSError as error:
        raise Trouble(f"{path} cannot be read: {error.strerror}.") from None


def endpoint_of(path: Path) -> str:
    """The `url` of the first line: all lines of a batch have the same. Raises Trouble."""
    first = next(lines(path), None)
    if first is None:
        raise Trouble(f"{path} is empty. Expected one JSON object on each line.")
    try:
        request = json.loads(first[1])
    except (ValueError, RecursionError):
        raise Trouble(f"The first line of {path} is not JSON.") from None
    endpoint = request.get("url") if isinstance(request, dict) else None
    if not isinstance(endpoint, str):
        raise Trouble(f"The first line of {path} has no url, such as /v1/chat/completions.")
    return endpoint


def digest_of(path: Path) -> str:
    """The sha256 of the file's bytes. Raises Trouble."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Trouble(f"{path} cannot be read: {error.strerror}.") from None


def text_of(body: Any) -> str:
    """The text of a request or a reply of any of the endpoints, for a person to read."""
    match body:
        case {"messages": [*_, {"content": str(text)}]} | {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
        case {"choices": [{"text": str(text)}, *_]} | {"prompt": str(text)} | {"input": str(text)}:
            return text
        case {"output": [*_, {"content": [{"text": str(text)}, *_]}]}:
            return text
        case {"data": [{"embedding": list(vector)}, *_]}:
            return f"{len(vector)} numbers"
    return json.dumps(body, ensure_ascii=False)
