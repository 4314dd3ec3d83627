"""The result of one line, read while the batch runs and after its end."""

import json

import pytest

from batches import results
from batches.line_results import result_of
from batches.models import Line, LineState, ResultPage
from files_api.models import File
from tests.conftest import line
from tests.fake_backend import Action

NAMES = [f"id-{number}" for number in range(10)]
SAME = {"temperature": 0}


def result(name):
    text = result_of(Line.objects.get(custom_id=name))
    return None if text is None else json.loads(text)


@pytest.fixture
def begun(create, work, backend):
    """Ten lines, the fifth of which fails, the ninth of which repeats the eighth, and the last of which is left."""
    backend.always("id-4", Action(400, {"error": {"message": "No.", "type": "t", "code": "bad"}}))
    lines = [line(name) for name in NAMES]
    lines[7] = line("id-7", body=SAME)
    lines[8] = lines[7] | {"custom_id": "id-8"}
    batch = create(lines)
    work.validate(batch["id"])
    last = Line.objects.filter(custom_id="id-9")
    last.update(not_before="2999-01-01T00:00:00Z", state=LineState.CANCELLED)
    work.drive()
    last.update(state=LineState.PENDING, not_before=None)
    return batch


@pytest.mark.parametrize("has_pages", [True, False])
def test_it_is_what_the_result_files_hold_before_and_after_the_end(begun, work, monkeypatch, has_pages):
    monkeypatch.setattr(results, "PAGE", 3)
    before = {name: result(name) for name in NAMES}
    assert before["id-9"] is None
    batch = work.run(begun["id"])
    if not has_pages:
        ResultPage.objects.all().delete()
    held = {each["custom_id"]: each for kind in ("output", "error") for each in work.content(batch[f"{kind}_file_id"])}
    assert {name: result(name) for name in NAMES} == held
    assert before | {"id-9": held["id-9"]} == held


def test_without_the_file_there_is_no_result(api, begun, work):
    batch = work.run(begun["id"])
    api.delete(f"/v1/files/{batch['output_file_id']}")
    assert result("id-0") is None
    assert result("id-4")["response"]["status_code"] == 400


def test_one_page_of_the_file_is_read_at_most(begun, work, monkeypatch):
    monkeypatch.setattr(results, "PAGE", 3)
    batch = work.run(begun["id"])
    file = File.objects.get(pk=batch["output_file_id"])
    with open(file.content.path, "r+b") as stream:  # whoever reads from the start finds no line
        stream.write(b"\n" * ResultPage.objects.get(number=7).output_offset)
    assert result("id-0") is None
    assert result("id-6")["custom_id"] == "id-6"


def test_an_answer_that_cannot_be_read_is_no_result_until_the_files_say_so(begun, work):
    row = Line.objects.get(custom_id="id-0").response
    row.body = "damaged"
    row.save()
    assert result("id-0") is None
    work.run(begun["id"])
    assert result("id-0")["error"]["code"] == "answer_unreadable"
