"""Result files: whole or not at all, and never over what is there."""

import json
import os

import pytest

from client.delivery import Destination, mistakes, put, reasons, summed_up
from client.trouble import Away, Trouble


def names(directory):
    return sorted(path.name for path in directory.iterdir() if path.is_file())


@pytest.mark.parametrize(
    ("requests", "results", "errors"),
    [
        ("in.jsonl", "in.results.jsonl", "in.results.errors.jsonl"),
        ("in", "in.results.jsonl", "in.results.errors.jsonl"),
        ("in.txt", "in.txt.results.jsonl", "in.txt.results.errors.jsonl"),
        ("a.b.jsonl", "a.b.results.jsonl", "a.b.results.errors.jsonl"),
    ],
)
def test_the_results_go_beside_the_input(tmp_path, requests, results, errors):
    found = Destination.of(tmp_path / requests, None, force=False)
    assert found.results == tmp_path / results
    assert found.errors == tmp_path / errors


def test_a_place_where_nothing_can_be_written_is_refused_before_anything_is_sent(tmp_path):
    requests = tmp_path / "in.jsonl"
    requests.write_text("{}")
    (tmp_path / "folder").mkdir()
    for output, said in (
        (tmp_path / "none" / "out", "There is no directory"),
        (tmp_path / "folder", "it is a directory"),
        (requests, "it is the input"),
        (tmp_path / "folder" / ".." / "in.jsonl", "it is the input"),
    ):
        with pytest.raises(Trouble, match=said):
            Destination.of(requests, output, force=True)


@pytest.mark.parametrize("name", ["in.results.jsonl", "in.results.errors.jsonl"])
def test_results_that_are_there_are_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    requests = tmp_path / "in.jsonl"
    requests.write_text("{}")
    with pytest.raises(Trouble, match="is there already"):
        Destination.of(requests, None, force=False).refuse_existing()
    Destination.of(requests, None, force=True).refuse_existing()


def test_a_file_is_written_once_and_the_same_bytes_change_nothing(tmp_path):
    target = tmp_path / "out.jsonl"
    put([b"a", b"b"], target, promised_bytes=2)
    before = target.stat()
    put([b"ab"], target, promised_bytes=2)
    assert target.stat().st_ino == before.st_ino
    with pytest.raises(Trouble, match="is there already"):
        put([b"other"], target)
    assert target.read_bytes() == b"ab"
    put([b"other"], target, force=True)
    assert target.read_bytes() == b"other"
    assert names(tmp_path) == ["out.jsonl"]


def broken():
    yield b"half"
    raise Away("The connection broke.")


@pytest.mark.parametrize(("chunks", "promised"), [(broken, None), (lambda: [b"half"], 8), (lambda: [b"too long"], 4)])
def test_a_file_that_does_not_come_whole_is_not_written(tmp_path, chunks, promised):
    target = tmp_path / "out.jsonl"
    target.write_text("before")
    with pytest.raises(Trouble):
        put(chunks(), target, force=True, promised_bytes=promised)
    assert target.read_text() == "before"
    assert names(tmp_path) == ["out.jsonl"]


def test_a_name_that_another_program_takes_meanwhile_is_left_to_it(tmp_path):
    target = tmp_path / "out.jsonl"

    def chunks():
        yield b"ours"
        target.write_text("theirs")

    with pytest.raises(Trouble, match="is there already"):
        put(chunks(), target)
    assert target.read_text() == "theirs"


def test_a_file_system_without_links_gets_the_file_too(tmp_path, monkeypatch):
    def link(*names):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    target = tmp_path / "out.jsonl"
    put([b"ours"], target)
    assert target.read_bytes() == b"ours"
    with pytest.raises(Trouble, match="is there already"):
        put([b"other"], target)


def test_a_disk_that_refuses_is_named(tmp_path):
    with pytest.raises(Trouble, match="cannot be written: No such file or directory"):
        put([b"a"], tmp_path / "gone" / "out.jsonl")


OUR_OWN = {"response": None, "error": {"code": "batch_expired", "message": "Late."}}
REPLY = {
    "response": {"status_code": 400, "body": {"error": {"message": "No.", "type": "t", "code": None}}},
    "error": None,
}
NO_ENVELOPE = {"response": {"status_code": 418, "body": {"detail": "tea"}}, "error": None}


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (OUR_OWN, "batch_expired", "Late."),
        (REPLY, "t", "No."),
        (NO_ENVELOPE, "418", ""),
        ({"response": {"status_code": 500, "body": {"error": "text"}}, "error": None}, "500", "text"),
        ({"response": {"status_code": 500, "body": "text"}, "error": None}, "500", ""),
    ],
)
def test_a_reason_is_found_in_any_form_of_an_error_line(line, code, message):
    [found] = reasons([json.dumps({"custom_id": "a"} | line).encode()])
    assert (found["code"], found["message"], found["count"], found["first"]) == (code, message, 1, ["a"])


def test_messages_that_differ_in_numbers_are_one_reason_and_the_commonest_comes_first():
    def error(number, code, message):
        line = {"custom_id": f"r{number}", "response": None, "error": {"code": code, "message": message}}
        return json.dumps(line).encode()

    lines = [error(0, "batch_expired", "Late.")]
    lines += [error(number, "context_length_exceeded", f"{number} tokens are too many.") for number in range(1, 49)]
    found = reasons(lines)
    assert [(each["count"], each["code"]) for each in found] == [(48, "context_length_exceeded"), (1, "batch_expired")]
    told = list(summed_up(found, command="script/batch", batch_id="batch_1"))
    assert told[0] == "  48 × context_length_exceeded: 1 tokens are too many. (first: r1, r2, r3)"
    assert "script/batch retry batch_1 --model MODEL" in told[1]
    assert "--errors expired" in told[3]


def test_many_reasons_are_not_listed_to_the_end():
    found = [{"code": f"c{number}", "message": "m", "count": 2, "first": []} for number in range(12)]
    assert list(summed_up(found, command="b", batch_id="x"))[-1] == "  4 more lines for 2 other reasons."


def test_mistakes_are_told_once_each_with_their_lines():
    errors = [{"message": "Bad.", "line": 2}, {"message": "Bad.", "line": 7}, {"message": "Empty file.", "line": None}]
    assert mistakes(errors) == "  line 2 and 1 more: Bad.\n  Empty file."
