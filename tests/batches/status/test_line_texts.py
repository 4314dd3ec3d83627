"""The prompt and the answer of a line, while its batch runs and after its end."""

import json

import pytest
from django.db import connection
from django.utils import timezone

from batches import results
from batches.models import Batch, Line, LineState, Part, Response, Status
from batches.status import line_texts
from files_api.models import File, row_id, stored_name
from files_api.storage import temporary_file
from tests.conftest import line
from tests.fake_backend import Action


def refused(code, message):
    return Action(status=400, body={"error": {"message": message, "type": "invalid_request_error", "code": code}})


@pytest.fixture
def over(create, work, backend):
    """A batch that is over and tidied: lines that are answered, equal, refused; the last one is cancelled."""
    backend.always("bad", refused("no_such_thing", "This is not good."))
    same = line("same", body={"temperature": 0})
    lines = [line("ä"), same, same | {"custom_id": "again"}, line("bad")]
    return Batch.objects.get(pk=work.run(create(lines)["id"])["id"])


def of(custom_id):
    return Line.objects.get(custom_id=custom_id)


def content(found):
    assert found.why_not == ""
    return found.value["choices"][0]["message"]["content"]


def test_before_the_end_the_row_has_the_answer(create, work, backend):
    backend.always("b", refused("no_such_thing", "This is not good."))
    batch = create([line("a"), line("b")])
    work.validate(batch["id"])
    assert line_texts.answer_of(of("a")).why_not == "There is no answer yet."
    assert line_texts.prompt_of(of("a")).value["messages"] == [{"role": "user", "content": "a"}]
    work.drive()
    assert content(line_texts.answer_of(of("a"))) == work_content(of("a"))
    assert line_texts.answer_of(of("b")).value["error"]["code"] == "no_such_thing"


def work_content(line):
    return json.loads(line.response.body)["choices"][0]["message"]["content"]


def test_after_the_end_the_files_have_both(over):
    assert not Response.objects.exists()
    for name in ("ä", "same", "again"):
        assert content(line_texts.answer_of(of(name)))
    assert line_texts.answer_of(of("bad")).value["error"]["code"] == "no_such_thing"
    prompt = line_texts.prompt_of(of("again"))
    assert prompt.value["messages"] == [{"role": "user", "content": "same"}]


def test_files_that_are_deleted_are_told(over):
    for file in File.objects.all():
        file.hide()
    assert "input file is deleted" in line_texts.prompt_of(of("ä")).why_not
    assert "result file is deleted" in line_texts.answer_of(of("ä")).why_not


def test_a_line_that_was_left_tells_why(over):
    Line.objects.filter(custom_id="bad").update(state=LineState.EXPIRED, http_status=None)
    assert line_texts.answer_of(of("bad")).value["code"] == "batch_expired"


@pytest.mark.parametrize("size", [1, 300])
def test_each_line_of_a_large_file_is_found(db, monkeypatch, size):
    """Lines of all lengths, some missing, with custom_ids that are not in order."""
    monkeypatch.setattr(line_texts, "READ_AT_ONCE", 1000)
    names = {number: f"{(number * 7919) % 1000}-ü" for number in range(1, size + 1)}
    batch = Batch.objects.create(
        **{"id": "batch_x", "input_file_id": "x", "endpoint": "e", "completion_window": "7d"},
        **{"expires_at": timezone.now(), "status": Status.COMPLETED},
    )
    part = Part.objects.create(batch=batch, model="m")
    Line.objects.bulk_create(
        Line(
            **{"batch": batch, "part": part, "number": number, "custom_id": name, "offset": 0, "length": 1},
            **{"state": LineState.SUCCEEDED, "http_status": 200},
        )
        for number, name in names.items()
    )
    with temporary_file(stored_name(File(), "")) as output:
        for number, name in names.items():
            if number % 10:
                body = json.dumps({"n": number, "text": "x" * (5000 if number % 50 == 1 else number % 300)})
                output.write(results.result_line(batch.pk, number, name, 2, 200, body, "", "").encode())
        batch.output_file = File(
            id=row_id(output.stored_as), filename="o", purpose="batch_output", bytes=output.size, sha256=""
        )
        batch.output_file.content.save("", output, save=False)
        batch.output_file.save()
        batch.save()
    for each in Line.objects.select_related("batch").filter(number__in=[*range(1, size + 1, 13), 10, 51, size]):
        found = line_texts.answer_of(each)
        if each.number % 10:
            assert found.value["n"] == each.number
        else:
            assert found.value is None


def test_a_damaged_answer_is_told(create, work, backend):
    work.validate(create([line("a")])["id"])
    work.drive()
    Response.objects.update(body="{")
    assert line_texts.answer_of(of("a")).why_not == "The stored answer is damaged."


@pytest.mark.skipif(connection.vendor != "sqlite", reason="Postgres stores no text that is not UTF-8")
@pytest.mark.parametrize("column", ["response", "error"])
def test_a_text_that_is_no_text_is_told(create, work, backend, column):
    work.validate(create([line("a")])["id"])
    work.drive()
    found = of("a")
    with connection.cursor() as cursor:
        if column == "response":
            cursor.execute("UPDATE batches_response SET body = CAST(X'7bff7d' AS TEXT)")
        else:  # of the line that another one repeats
            cursor.execute("UPDATE batches_line SET error_message = CAST(X'ff' AS TEXT)")
            found.original_id = found.pk
    assert line_texts.answer_of(found).why_not == "The stored answer is damaged."


def test_an_answer_that_was_damaged_before_the_end_is_found_in_the_error_file(create, work, backend):
    batch = create([line("a"), line("b")])
    work.validate(batch["id"])
    work.drive()
    Response.objects.filter(line__custom_id="a").update(body="damaged")
    work.fail_lines(batch["id"])
    work.finalize(batch["id"])
    Response.objects.all().delete()
    assert line_texts.answer_of(of("a")).value["code"] == "answer_unreadable"
    assert content(line_texts.answer_of(of("b")))


def test_nothing_of_another_file_is_taken_for_the_answer(over):
    file = Batch.objects.get().output_file
    with file.content.open("rb") as stream:
        size = len(stream.read())
    with open(file.content.path, "wb") as stream:
        stream.write(b"x" * size)
    assert line_texts.answer_of(of("ä")).value is None
