"""What holds of the JSONL reader for any bytes."""

import io
import json
import re
from itertools import islice

from hypothesis import example, given
from hypothesis import strategies as st

from batches.lines import jsonl
from common.jsonl import BOM, read_lines
from tests.conftest import CHAT, line
from tests.generated import TEXT, VALUES, steady

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
    | st.text("\t \r\x0b\x0c\x1a\ufeff{", max_size=20).map(str.encode)
)
FILES = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r", b"\r\r\n", b""]))).map(
    lambda pairs: b"".join(text + end for text, end in pairs)
)
NO_TEXT = re.compile(rb"[\s\x1a]|\xef\xbb\xbf")
LIMITS = st.sampled_from([1, 5, 20, 200, 2**20])


def read(content, limit, **start):
    return read_lines(io.BytesIO(content), max_line_bytes=limit, **start)


def parse(raw):
    try:
        return jsonl.parse(raw, endpoint=CHAT, default_model="m", max_line_bytes=2**20)
    except jsonl.LineRefused as refusal:
        return refusal


@steady
@given(FILES, LIMITS)
@example(b"x" * 5 + b"\r\r\ny", 5)
@example(b"\r" * 20 + b"x\n", 5)
@example(BOM + b"x" * 5, 5)
@example(b"x\n" + BOM + b"y\x1a", 5)
@example(b" " * 6 + b"x" * 19 + b"\n", 20)
def test_every_byte_of_a_file_is_in_one_line_or_is_white_space(content, limit):
    behind = 0
    for each in read(content, limit):
        between = content[behind : each.offset]
        assert not NO_TEXT.sub(b"", between)
        assert each.number == content.count(b"\n", 0, each.offset) + 1
        if each.content is None:
            behind = each.next_offset
            assert behind - each.offset > limit
        else:
            behind = each.offset + len(each.content)
            assert content[each.offset : behind] == each.content
            assert len(each.content) <= limit
            assert b"\n" not in each.content
    assert not NO_TEXT.sub(b"", content[behind:])


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
