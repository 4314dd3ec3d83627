"""JSON as the standard defines it, while Python's own reader takes more; and text that every database can keep."""

import json
import math
from typing import Any


def loads(content: bytes) -> Any:
    """Raises ValueError if the content is not JSON in UTF-8 (NaN, Infinity, a float too large for a double and an
    integer of more than 4300 digits included), and RecursionError if it is nested too deep."""
    return _decode(content.decode())


def is_storable(text: str) -> bool:
    """JSON can spell NUL and half a surrogate pair; Postgres stores neither, and UTF-8 cannot encode half a pair."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return "\x00" not in text


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number


# Made once: json.loads with arguments makes a decoder in each call, which takes as long as parsing a short line.
_decode = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite).decode
