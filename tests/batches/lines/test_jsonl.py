import gzip
import io
import json

import pytest

from batches.lines import jsonl
from common.jsonl import BOM, RawLine, read_lines
from tests.conftest import CHAT, line


def read(content, limit=1000, **start):
    return list(read_lines(io.BytesIO(content), max_line_bytes=limit, **start))


def test_it_gives_each_line_with_its_place():
    lines = read(b'{"a":1}\n{"b":2}\n')
    assert [(each.number, each.offset, each.content, each.next_offset) for each in lines] == [
        (1, 0, b'{"a":1}', 8),
        (2, 8, b'{"b":2}', 16),
    ]


@pytest.mark.parametrize(
    "content",
    [
        BOM + b"x\ny",
        b"x\r\ny\r\n",
        b"x\ny\n\n\n",
        b"x\n  \r\ny\n \t",
        BOM + b"\r\n \nx\n" + BOM + b"y",
        BOM + BOM + b" x\n" + BOM + b"\n\ty",
        b"x\r\ny\r\n\x1a",
        b"x\ny\x1a",
    ],
    ids=["BOM", "CRLF", "blank end", "blank lines", "cat", "BOMs", "copy a+b", "copy a+b without line end"],
)
def test_it_takes_what_editors_leave_behind(content):
    lines = [each for each in read(content) if each.content]
    assert [each.content for each in lines] == [b"x", b"y"]
    for each in lines:
        assert content[each.offset : each.offset + 1] == each.content


def test_it_goes_on_from_an_offset():
    assert [(each.number, each.content) for each in read(b"x\ny\nz\n", offset=2, number=1)] == [(2, b"y"), (3, b"z")]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_it_reads_past_a_line_that_is_too_long(end):
    content = b"a\n" + b"x" * 5000 + b"\nb" + end
    assert [(each.number, each.content) for each in read(content, limit=10)] == [(1, b"a"), (2, None), (3, b"b")]


def test_carriage_returns_at_the_limit_do_not_end_a_line():
    content = b"a\n" + b"x" * 8 + b"\r" * 5 + b"x\nb"
    assert [(each.number, each.content) for each in read(content, limit=10)] == [(1, b"a"), (2, None), (3, b"b")]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_limit_is_the_longest_line_that_is_taken(end):
    assert [each.content for each in read(b"x" * 10 + end, limit=10)] == [b"x" * 10]
    assert [each.content for each in read(b"x" * 11 + end, limit=10)] == [None]
    assert [each.content for each in read(BOM + b"x" * 10 + end, limit=10)] == [b"x" * 10]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_bom_counts_in_no_line(end):
    content = b"a\n" + BOM + b"x" * 10 + end
    assert [each.content for each in read(content, limit=10)] == [b"a", b"x" * 10]
    assert [each.content for each in read(BOM + content + b"x", limit=9)][1] is None


def parse(content, *, default_model="", endpoint=CHAT):
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    given = RawLine(7, 100, raw, 100 + len(raw))
    return jsonl.parse(given, endpoint=endpoint, default_model=default_model, max_line_bytes=1000)


def test_it_parses_a_good_line():
    raw = json.dumps(line("a")).encode()
    assert parse(raw) == jsonl.Request(7, 100, len(raw), "a", "gemma3:12b", line("a")["body"])
    assert jsonl.parse_body(raw) == line("a")["body"]


@pytest.mark.parametrize("model", [None, ""])
def test_a_line_without_a_model_gets_the_default_one(model):
    assert parse(line("a", body={"model": model}), default_model="qwen3:8b").model == "qwen3:8b"


@pytest.mark.parametrize("model", [0, False, {}, []])
def test_what_is_no_name_of_a_model_is_refused_where_there_is_a_default_too(model):
    with pytest.raises(jsonl.LineRefused) as refusal:
        parse(line("a", body={"model": model}), default_model="qwen3:8b")
    assert refusal.value.error["param"] == "body.model"


def test_stream_false_is_as_good_as_none():
    assert parse(line("a", body={"stream": False}))


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (b"{broken", "invalid_json_line", None),
        (b'{"a": NaN}', "invalid_json_line", None),
        (b'{"a": 1e999}', "invalid_json_line", None),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b'"text"', "invalid_json_line", None),
        (line("a") | {"custom_id": None}, "missing_required_parameter", "custom_id"),
        (line("a", method=None), "missing_required_parameter", "method"),
        (line("a") | {"url": None}, "missing_required_parameter", "url"),
        (line("a") | {"body": None}, "missing_required_parameter", "body"),
        (line("a") | {"custom_id": 5}, "invalid_custom_id", "custom_id"),
        (line("a") | {"custom_id": ""}, "invalid_custom_id", "custom_id"),
        (line("a") | {"custom_id": "x" * 513}, "invalid_custom_id", "custom_id"),
        (line("a") | {"custom_id": "a\x00b"}, "invalid_custom_id", "custom_id"),
        (line("a") | {"custom_id": "\ud800"}, "invalid_custom_id", "custom_id"),
        (line("a", method="GET"), "invalid_method", "method"),
        (line("a") | {"url": "/v1/embeddings"}, "invalid_url", "url"),
        (line("a") | {"body": [1]}, "invalid_request", "body"),
        (line("a", body={"stream": True}), "streaming_unsupported", "body.stream"),
        (line("a", body={"model": None}), "invalid_request", "body.model"),
        (line("a", body={"model": 5}), "invalid_request", "body.model"),
    ],
)
def test_it_refuses(content, code, param):
    with pytest.raises(jsonl.LineRefused) as refusal:
        parse(content)
    error = refusal.value.error
    assert (error["code"], error["param"], error["line"]) == (code, param, 7)
    assert error["message"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}".encode("utf-16-le"), "looks like UTF-16"),
        (gzip.compress(b"{}", mtime=0), "looks like gzip"),
        ('{"a": "Ä"}'.encode("cp1252"), "looks like cp1252"),
        (b'{"a": "\xff"}' + "äöüß".encode(), "is not valid UTF-8"),
        (b"{'a': 1}", "is not parseable as valid JSON"),
        ('{"a": "Ä"'.encode(), "is not parseable as valid JSON"),
    ],
)
def test_a_line_that_is_something_else_is_named_as_that(content, said):
    with pytest.raises(jsonl.LineRefused, match=said):
        parse(content)


def test_it_refuses_an_over_long_line_with_the_setting_to_change():
    with pytest.raises(jsonl.LineRefused) as refusal:
        jsonl.parse(RawLine(1, 0, None, 9), endpoint=CHAT, default_model="", max_line_bytes=10)
    assert refusal.value.error["message"] == "This line is longer than 10 bytes (MAX_LINE_BYTES)."
