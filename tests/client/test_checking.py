"""`check`: what is wrong with a file of requests."""

import json

import pytest

from batches.lines import jsonl as server_side
from client.checking import ENDPOINTS, Longest, Models, check
from client.trouble import Trouble
from tests.client.conftest import BASE
from tests.conftest import jsonl, line

HAS_GEMMA = Models({"gemma3:12b"}.__contains__, lambda name: 8192)


@pytest.fixture
def write(tmp_path):
    def write(lines):
        path = tmp_path / "in.jsonl"
        path.write_bytes(lines if isinstance(lines, bytes) else jsonl(lines))
        return path

    return write


def test_the_endpoints_are_those_of_the_server():
    assert set(ENDPOINTS) == set(server_side.ENDPOINTS)


def test_a_good_file_is_summed_up(write):
    lines = [line("a"), line("b", body={"messages": [{"role": "user", "content": "x" * 400}]}), line("c")]
    report = check(write(lines), HAS_GEMMA)
    assert (report.lines, report.endpoint, report.mistakes) == (3, "/v1/chat/completions", [])
    assert report.models == {"gemma3:12b": 3}
    assert (report.longest_of_all, report.longest_of_all.tokens) == (Longest(2, 404), 101)
    assert report.warnings == []


def test_images_are_no_prompt(write):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9000}}
    report = check(write([line("a", body={"messages": [{"role": "user", "content": [image]}]})]), None)
    assert report.longest_of_all.characters < 100


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (line("a"), "The custom_id 'a' is that of line 1 too."),
        (line(""), "must be a text that is not empty"),
        (line("b") | {"custom_id": 7}, "must be a text that is not empty"),
        (line("b", method="GET"), "must be POST"),
        (line("b", url="/v1/completions"), "a batch has one url"),
        (line("b") | {"url": "/v1/images"}, "The url must be one of"),
        (line("b") | {"url": ["x"]}, "The url must be one of"),
        (line("b") | {"body": "text"}, "must be a JSON object"),
        ([], "must be a JSON object"),
    ],
)
def test_a_mistake_is_found_with_its_line(write, second, said):
    [mistake] = check(write([line("a"), second]), None).mistakes
    assert mistake["line"] == 2
    assert said in mistake["message"]


@pytest.mark.parametrize("second", [b"{broken", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_told(write, second):
    [mistake] = check(write(jsonl([line("a")]) + second + b"\n"), None).mistakes
    assert mistake == {"line": 2, "message": "This line is not parseable as valid JSON."}


def test_blank_lines_and_a_bom_are_no_mistakes(write):
    content = b"\xef\xbb\xbf" + json.dumps(line("a")).encode() + b"\r\n\r\n  \n" + json.dumps(line("b")).encode()
    report = check(write(content), None)
    assert (report.lines, report.mistakes) == (2, [])


def test_a_model_that_the_server_does_not_have_is_a_mistake_and_no_model_is_none(write):
    lines = [line("a", body={"model": "other"}), line("b", body={"model": None})]
    [mistake] = check(write(lines), HAS_GEMMA).mistakes
    assert mistake["message"] == "The server does not have the model 'other' (1 line)."


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (8192, []),
        (1000, ["The prompt of line 2 has roughly 2,001 tokens, and 'gemma3:12b' takes 1,000, prompt and answer."]),
        (None, ["Whether the prompts fit 'gemma3:12b' is not known"]),
    ],
)
def test_the_longest_prompt_of_each_model_is_held_against_its_context(write, context, said):
    long = {"messages": [{"role": "user", "content": "x" * 8000}]}
    lines = [line("a"), line("b", body=long), line("c", body=long | {"model": "none"})]
    report = check(write(lines), Models({"gemma3:12b"}.__contains__, {"gemma3:12b": context}.__getitem__))
    assert len(report.warnings) == len(said)
    for warning, expected in zip(report.warnings, said, strict=True):
        assert warning.startswith(expected)
    assert [mistake["message"] for mistake in report.mistakes] == [
        "The server does not have the model 'none' (1 line)."
    ]


def test_an_empty_file_is_refused(write):
    with pytest.raises(Trouble, match="is empty"):
        check(write(b"\n \n"), None)


def test_a_file_of_something_else_is_called_that(box, write):
    box.get("models", {"data": []})
    said = box.type("check", write(b"hello\n"), status=1).output
    assert "in.jsonl: 1 line, none of which is a request.\nMistakes:\n  line 1: This line is not" in said
    assert "longest" not in said
    assert "2 lines, none" in box.type("check", write(b"[]\n1\n"), status=1).output


@pytest.mark.parametrize("name", ["../files", "..", ".", "a/../../files", "gemma3:12b/.", "\ud800"])
def test_a_model_whose_name_leads_elsewhere_is_one_that_the_server_does_not_have(box, write, name):
    box.get("models", {"data": [{"id": "gemma3:12b"}]})
    for path in ("files", "models/", "models/gemma3%3A12b", "models/gemma3%3A12b/"):
        box.get(path, {"object": "list", "data": []})
    box.played.get(f"{BASE}/v1/", json={})
    box.get("models/%3F", {"error": {"message": "No."}}, status=404)
    said = box.type("check", write([line("a", body={"model": name})]), status=1).output
    assert "The server does not have the model" in said


def test_the_command_tells_it_and_ends_with_1(box, write):
    box.get("models", {"data": [{"id": "gemma3:12b"}]})
    box.get("models/gemma3%3A12b", {"id": "gemma3:12b", "context_tokens": 4})
    box.get("models/other", {"error": {"message": "No."}}, status=404)
    assert "No mistake was found." in box.type("check", write([line("a")])).output
    long = line("a", body={"messages": [{"role": "user", "content": "word " * 9}]})
    assert "Warning: The prompt of line 1 has roughly 12 tokens, and" in box.type("check", write([long])).output
    said = box.type("check", write([line("a"), line("a"), line("a")]), status=1).output
    assert "line 2 and 1 more: The custom_id 'a' is that of line 1 too." in said
    said = box.type("check", write([line("a", body={"model": "other"})]), status=1).output
    assert "does not have the model 'other' (1 line)" in said
    assert json.loads(box.type("--json", "check", write([line("a")])).output)["models"] == {"gemma3:12b": 1}
