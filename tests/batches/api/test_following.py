"""GET /v1/batches/{id}/output and /errors: the lines in the order in which they finish, during the batch and after."""

import json

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from batches import lifecycle, results
from batches.models import Batch, Line, LineState, Response, Status
from common import ids
from tests.conftest import custom_ids, line
from tests.fake_backend import Action


class Reader:
    """Reads on from the last line that it got, as a client does."""

    def __init__(self, api, batch, kind):
        self.api, self.address, self.after, self.got = api, f"/v1/batches/{batch['id']}/{kind}", 0, []

    def read(self):
        """The custom_ids of the new lines, and whether more may come."""
        answer = self.api.get(self.address, {"after": self.after})
        assert (answer.status_code, answer["Content-Type"]) == (200, "application/jsonl")
        lines = [json.loads(each) for each in answer.getvalue().decode().splitlines()]
        self.after = int(answer["X-Last-Line"])
        self.got += lines
        return custom_ids(lines), answer["X-Incomplete"] == "true"


@pytest.fixture
def begun(create, work, backend):
    """A batch with two lines in the order of finishing c, b; b failed; a and its repeat are still to be sent."""
    work.in_flight = 1
    backend.always("b", Action(status=400, body={"error": {"message": "No.", "type": "t", "code": "bad"}}))
    same = line("a", body={"temperature": 0})
    batch = create([same, line("b"), line("c"), same | {"custom_id": "a again"}])
    work.validate(batch["id"])
    Line.objects.filter(custom_id="c").update(order_key=b"")
    Line.objects.filter(custom_id="b").update(order_key=b"\x00")
    Line.objects.filter(custom_id="a").update(order_key=b"\x01")
    # Kept from the drive, which would close the batch then.
    Line.objects.filter(custom_id="a").update(state=LineState.CANCELLED)
    work.drive()
    Line.objects.filter(custom_id="a").update(state=LineState.PENDING)
    Batch.objects.update(status=Status.IN_PROGRESS)
    return batch


def test_lines_are_read_while_the_batch_runs_and_after_its_end(api, begun, work):
    output, errors = Reader(api, begun, "output"), Reader(api, begun, "errors")
    assert output.read() == (["c"], True)
    assert errors.read() == (["b"], True)
    assert output.read() == ([], True)
    work.drive()
    assert output.read() == (["a", "a again"], True)
    lifecycle.close_finished(lambda batch_id: None)
    work.finalize(begun["id"])
    assert output.read() == ([], False)
    assert errors.read() == ([], False)
    over = work.batch(begun["id"])
    by_id = {each["custom_id"]: each for each in work.content(over["output_file_id"])}
    assert {each["custom_id"]: each for each in output.got} == by_id
    assert errors.got == work.content(over["error_file_id"])


def test_what_was_not_read_before_the_end_comes_from_the_file(api, begun, work):
    output = Reader(api, begun, "output")
    assert output.read() == (["c"], True)
    work.run(begun["id"])
    assert not Response.objects.exists()
    assert output.read() == (["a", "a again"], False)
    assert output.read() == ([], False)
    assert Reader(api, begun, "output").read() == (["a", "c", "a again"], False)
    assert Reader(api, begun, "errors").read() == (["b"], False)


def test_a_batch_that_ends_during_the_answer_is_read_from_its_file(api, begun, work):
    work.drive()
    answer = api.get(f"/v1/batches/{begun['id']}/output")
    lifecycle.close_finished(lambda batch_id: None)
    work.finalize(begun["id"])
    assert custom_ids(list(map(json.loads, answer.getvalue().splitlines()))) == ["a", "c", "a again"]


@pytest.mark.parametrize("status", [Status.CANCELLING, Status.FINALIZING])
def test_lines_that_were_left_come_with_the_end(api, begun, work, status):
    errors = Reader(api, begun, "errors")
    assert errors.read() == (["b"], True)
    lifecycle.move(begun["id"], status)
    work.finalize(begun["id"])
    assert errors.read() == (["a", "a again"], False)
    assert errors.read() == ([], False)


def test_lines_from_before_places_come_last(api, begun, work):
    work.run(begun["id"])
    Line.objects.update(place=None)
    Batch.objects.update(last_place=0)
    output = Reader(api, begun, "output")
    assert output.read() == (["a", "c", "a again"], False)
    assert output.read() == ([], False)


def test_lines_are_read_in_chunks(api, begun, work, monkeypatch):
    monkeypatch.setattr("batches.following.PAGE", 1)
    monkeypatch.setattr(results, "CHUNK_BYTES", 1)
    work.drive()
    assert Reader(api, begun, "output").read() == (["c", "a", "a again"], True)
    work.run(begun["id"])
    assert Reader(api, begun, "output").read() == (["a", "c", "a again"], False)


def test_what_cannot_be_read_is_refused(api, begun, work):
    address = f"/v1/batches/{begun['id']}/output"
    for after in ("x", "-1", str(2**63)):
        assert api.get(address, {"after": after}).status_code == 400
    over = work.run(begun["id"])
    api.delete(f"/v1/files/{over['output_file_id']}")
    assert api.get(address).status_code == 404
    assert api.get("/v1/batches/batch_nope/errors").status_code == 404


# /v1/files/{output}/content with an offset


class FileReader(Reader):
    """Reads as autobatcher does: without an offset at first."""

    def __init__(self, api, file_id):
        super().__init__(api, {"id": ""}, "")
        self.address = f"/v1/files/{file_id}/content"

    def read(self):
        answer = self.api.get(self.address, {"offset": self.after} if self.after else {})
        assert answer.status_code == 200
        self.got += (lines := [json.loads(each) for each in answer.getvalue().decode().splitlines()])
        self.after = int(answer["X-Last-Line"])
        return custom_ids(lines), answer["X-Incomplete"] == "true"


def test_a_client_reads_result_files_before_they_are_made(api, begun, work, settings):
    settings.EARLY_RESULT_FILES = True
    told = work.batch(begun["id"])
    output, errors = FileReader(api, told["output_file_id"]), FileReader(api, told["error_file_id"])
    assert output.read() == (["c"], True)
    assert errors.read() == (["b"], True)
    assert output.read() == ([], True)
    over = work.run(begun["id"])
    assert (over["output_file_id"], over["error_file_id"]) == (told["output_file_id"], told["error_file_id"])
    assert output.read() == (["a", "a again"], False)
    assert output.read() == ([], False)
    assert sorted(custom_ids(output.got)) == ["a", "a again", "c"]


def test_result_files_are_named_at_the_end_alone_as_openai_does(api, begun, work):
    assert work.batch(begun["id"])["output_file_id"] is None
    early = ids.derived_file_id(begun["id"], "output")
    assert api.get(f"/v1/files/{early}/content?offset=0").status_code == 404
    file_id = work.run(begun["id"])["output_file_id"]
    assert file_id == early
    whole = api.get(f"/v1/files/{file_id}/content")
    assert "X-Last-Line" not in whole
    followed = api.get(f"/v1/files/{file_id}/content?offset=0")
    assert (followed.getvalue(), followed["X-Incomplete"]) == (whole.getvalue(), "false")


@pytest.mark.parametrize("status", ["validating", "failed", "completed", "cancelled"])
def test_a_file_that_will_not_be_is_not_named(create, work, settings, status):
    settings.EARLY_RESULT_FILES = True
    batch = create([line("a")])
    Batch.objects.update(status=status)
    assert work.batch(batch["id"])["output_file_id"] is None


def test_a_file_that_is_there_is_downloaded_without_a_look_at_batches(api, begun, work, settings):
    settings.EARLY_RESULT_FILES = True
    for file_id in (begun["input_file_id"], work.run(begun["id"])["output_file_id"]):
        with CaptureQueriesContext(connection) as queries:
            assert api.get(f"/v1/files/{file_id}/content").getvalue()
        assert [each["sql"] for each in queries if "batches_" in each["sql"]] == []


@pytest.mark.parametrize("offset", ["-1", "x", "", str(2**63), "1.5"])
def test_an_offset_that_is_no_place_is_refused(api, begun, work, offset):
    file_id = work.run(begun["id"])["output_file_id"]
    answer = api.get(f"/v1/files/{file_id}/content", {"offset": offset})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "offset")


def test_an_offset_into_another_file_is_refused(api, begun):
    address = f"/v1/files/{begun['input_file_id']}/content"
    assert api.get(f"{address}?offset=0").getvalue() == api.get(address).getvalue()
    for offset in ("3", "-1", "x"):
        refused = api.get(address, {"offset": offset})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "offset")
