"""What holds for any input: the JSONL reader, strict JSON, the lines of result files. The same inputs in each run."""

import io
import json
import math
import re
from itertools import islice

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batches.backends.base import BackendKind
from batches.lines import jsonl
from batches.models import LineState
from batches.results import MESSAGES, result_line
from common import strict_json
from tests.conftest import CHAT, line
from tests.generated import ANY_TEXT, TEXT, VALUES, steady, values

# Files: good lines, lines with something wrong, white space and any bytes, ended in every way.
GOOD = st.builds(line, TEXT.filter(bool))
CHANGED = st.builds(
    lambda good, name, value: good | {name: value},
    GOOD,
    st.sampled_from(["custom_id", "method", "url", "body", "else"]),
    VALUES,
)
LINES = (
    (GOOD | CHANGED | VALUES).map(lambda value: json.dumps(value, ensure_ascii=False).encode())
    | st.binary(max_size=30)
    | st.text("\t \r\x0b\x0c\ufeff", max_size=20).map(str.encode)
)
FILES = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r", b"\r\r\n", b""]))).map(
    lambda pairs: b"".join(text + end for text, end in pairs)
)
LIMITS = st.sampled_from([1, 5, 20, 200, 2**20])


def read(content, limit, **start):
    return jsonl.read_lines(io.BytesIO(content), max_line_bytes=limit, **start)


def parse(raw):
    try:
        return jsonl.parse(raw, endpoint=CHAT, default_model="m", max_line_bytes=2**20)
    except jsonl.LineRefused as refusal:
        return refusal


@steady
@given(FILES, LIMITS)
@example(b"x" * 5 + b"\r\r\ny", 5)
@example(b"\r" * 20 + b"x\n", 5)
@example(jsonl.BOM + b"x" * 5, 5)
def test_every_byte_of_a_file_is_in_one_line_or_is_white_space(content, limit):
    behind = 0
    for each in read(content, limit):
        between = content[behind : each.offset]
        assert not between.removeprefix(jsonl.BOM if behind == 0 else b"").strip()
        assert each.number == content.count(b"\n", 0, each.offset) + 1
        if each.content is None:
            behind = each.next_offset
            assert behind - each.offset > limit
        else:
            behind = each.offset + len(each.content)
            assert content[each.offset : behind] == each.content
            assert len(each.content) <= limit
            assert b"\n" not in each.content
    assert not content[behind:].removeprefix(jsonl.BOM if behind == 0 else b"").strip()


@steady
@given(FILES, LIMITS, st.integers(1, 4))
def test_read_in_slices_a_file_has_the_same_lines(content, limit, size):
    whole = list(read(content, limit))
    pieces, offset, number = [], 0, 0
    while piece := list(islice(read(content, limit, offset=offset, number=number), size)):
        pieces += piece
        offset, number = piece[-1].next_offset, piece[-1].number
    assert pieces == whole


@steady
@given(FILES)
def test_a_line_is_a_request_or_refused_with_its_number(content):
    for each in read(content, 2**20):
        parsed = parse(each)
        if isinstance(parsed, jsonl.LineRefused):
            assert list(parsed.error) == ["code", "message", "param", "line"]
            assert parsed.error["line"] == each.number
        else:
            raw = content[parsed.offset : parsed.offset + parsed.length]
            assert (parsed.number, raw) == (each.number, each.content)
            assert json.loads(raw)["custom_id"] == parsed.custom_id
            assert json.loads(raw)["body"] == jsonl.parse_body(raw)


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


def only_line(**row):
    """The one line that a row gives, read."""
    empty = {"http_status": None, "response": "", "error_code": "", "error_message": ""}
    text = result_line("batch_x", 1, **(empty | row))
    assert text.isascii()
    assert len(text.splitlines()) == 1
    assert text.endswith("\n")
    return json.loads(text)


@steady
@given(TEXT.filter(bool), st.dictionaries(ANY_TEXT, values(ANY_TEXT), max_size=4), ANY_TEXT)
@example("\u2028\x85\x1c\x1d\x1e\x0b\x0c\r\n\u2029", {"\u2028": "\x85"}, "\u2029")
def test_an_answer_is_one_line_that_says_the_same(custom_id, more, answer):
    choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
    body = more | {"choices": [choice]}
    reply = BackendKind().judge(CHAT, 200, json.dumps(body).encode())
    state = LineState.SUCCEEDED
    result = only_line(custom_id=custom_id, state=state, http_status=reply.status, response=reply.body)
    assert (result["custom_id"], result["error"]) == (custom_id, None)
    assert (result["response"]["status_code"], result["response"]["body"]) == (200, body)


@steady
@given(TEXT.filter(bool), st.sampled_from([400, 404, 422, 500]), st.binary() | TEXT.map(str.encode))
def test_a_refusal_is_one_line_whatever_it_says(custom_id, status, content):
    reply = BackendKind().judge(CHAT, status, content)
    state = LineState.FAILED
    result = only_line(custom_id=custom_id, state=state, http_status=reply.status, response=reply.body)
    assert (result["custom_id"], result["response"]["status_code"]) == (custom_id, status)
    assert isinstance(result["response"]["body"], dict)


@pytest.mark.parametrize("state", [LineState.FAILED, LineState.CANCELLED, LineState.EXPIRED])
@steady
@given(TEXT.filter(bool), TEXT.filter(bool), TEXT)
def test_a_line_without_an_answer_is_one_line(state, custom_id, code, message):
    result = only_line(custom_id=custom_id, state=state, error_code=code, error_message=message)
    assert (result["custom_id"], result["response"]) == (custom_id, None)
    assert result["error"] == MESSAGES.get(state, {"code": code, "message": message})
