"""What holds of strict JSON for any input."""

import json
import math
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from common import strict_json
from tests.generated import VALUES, steady

# The grammar of RFC 8259, read apart from Python's own reader: text to tokens, and these folded to one value.
STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
TOKEN = re.compile(rf"[ \t\n\r]*(?:(?P<s>{STRING})|(?P<v>{NUMBER}|true|false|null)|(?P<p>[\[\]{{}},:]))")


def too_large(number):
    """Beyond what Python reads: JSON itself has no bounds."""
    if not number or not number[-1].isdigit():
        return False
    return len(number.lstrip("-")) > 4300 if number.lstrip("-").isdigit() else math.isinf(float(number))


def is_json(text):
    text = text.rstrip(" \t\n\r")
    folded, at = "", 0
    while at < len(text):
        token = TOKEN.match(text, at)
        if token is None:
            return False
        if too_large(token["v"]):
            return False
        folded += token["p"] or token.lastgroup
        at = token.end()
    before = ""
    while folded != before:
        before = folded
        folded = re.sub(r"\{(s:[sv](,s:[sv])*)?\}|\[([sv](,[sv])*)?\]", "v", folded)
    return folded in ("s", "v")


def test_the_grammar_knows_json():
    for text in ('{"a": [1, -0.5e+3, "\\u00e4\\n"], "b": {}}', " [] ", '"x"', "0", "null", "[[],{}]"):
        assert is_json(text), text
    for text in ("", "01", "1.", "+1", "[1,]", "{a: 1}", "NaN", "1e999", '"\t"', "\ufeff1", "1 2", '{"a"}', "'a'"):
        assert not is_json(text), text


ALMOST = st.lists(
    st.sampled_from([*'{}[]:,"\\- +.eEu0129tn', "true", "false", "null", "NaN", "-Infinity", "1e999", '"a"', '"a":'])
    | st.sampled_from(
        ["\t", "\n", "\x00", "\x0b", "\x1f", "\x85", "\xa0", "\ufeff", "\u2028", "٣", "'", "//", "9" * 400]
    )
).map("".join)


@st.composite
def damaged(draw):
    """JSON with a few characters changed, or none."""
    text = json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(ALMOST) + text[start + draw(st.integers(0, 2)) :]
    return text


@settings(steady, max_examples=5 * steady.max_examples)
@given(damaged() | ALMOST)
def test_strict_json_is_the_standards(text):
    try:
        value = strict_json.loads(text.encode())
    except ValueError:
        assert not is_json(text)
    else:
        assert is_json(text)
        assert value == json.loads(text)


@steady
@given(st.binary())
def test_strict_json_takes_bytes_or_raises_value_error(content):
    try:
        strict_json.loads(content)
    except ValueError:
        return
    assert is_json(content.decode())
