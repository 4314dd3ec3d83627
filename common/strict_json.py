"""JSON as the standard defines it, while Python's own reader takes more; and text that every database can keep."""

import json
import math
from typing import Any

# Python itself reads and writes some hundred levels, fewer the more of its stack is in use: what one process reads,
# another might not. No request and no answer of these APIs comes near this limit.
MOST_LEVELS = 200


class TooDeep(ValueError):
    """The JSON is nested deeper than MOST_LEVELS."""

    def __init__(self) -> None:
        super().__init__(f"nested deeper than {MOST_LEVELS} levels")


def loads(content: bytes) -> Any:
    """Raises ValueError if the content is not JSON in UTF-8 (NaN, Infinity, a float too large for a double and an
    integer of more than 4300 digits included), and TooDeep if it is nested too deep."""
    try:
        value = _decode(content.decode())
    except RecursionError:
        raise TooDeep from None
    # Few values are nested at all: counting brackets, those in texts too, takes a tenth of the time of looking.
    if content.count(b"[") + content.count(b"{") > MOST_LEVELS and _is_too_deep(value):
        raise TooDeep
    return value


def is_storable(text: str) -> bool:
    """JSON can spell NUL and half a surrogate pair; Postgres stores neither, and UTF-8 cannot encode half a pair."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return "\x00" not in text


def _is_too_deep(value: Any) -> bool:
    level: list[Any] = [[value]]
    for _ in range(MOST_LEVELS + 1):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number


# Made once: json.loads with arguments makes a decoder in each call, which takes as long as parsing a short line.
_decode = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite).decode
