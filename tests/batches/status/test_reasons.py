"""Why lines have no answer: told while a batch runs and after its end."""

import pytest

from batches.models import Batch, Line, LineState
from batches.status import reasons
from tests.conftest import line
from tests.fake_backend import Action, error_body

BAD = Action(400, error_body("invalid message content type", "invalid_request_error"))
TOO_LONG = Action(400, {"error": {"message": "prompt is too long", "code": "tokens"}})


def of(api, batch_id):
    return api.get(f"/v1/batches/{batch_id}/reasons").json()["data"]


@pytest.fixture
def ended(create, work, backend):
    for name in ("a", "b"):
        backend.always(name, BAD)
    backend.always("c", TOO_LONG)
    return work.run(create([line(name) for name in "abcde"])["id"])


def test_reasons_outlive_the_answers(api, ended):
    assert Batch.objects.get().tidied_at is not None
    assert not Line.objects.exclude(response="").exists()
    assert of(api, ended["id"]) == [
        {
            "code": "invalid_request_error",
            "message": "invalid message content type",
            "count": 2,
            "first": ["a", "b"],
        },
        {"code": "tokens", "message": "prompt is too long", "count": 1, "first": ["c"]},
    ]


def test_lines_that_were_not_executed_have_a_reason_too(api, create, work, backend):
    batch = create([line(name) for name in "abcdefgh"])["id"]
    work.validate(batch)
    api.post(f"/v1/batches/{batch}/cancel")
    work.finalize(batch)
    [reason] = of(api, batch)
    assert (reason["code"], reason["count"]) == ("batch_cancelled", 8)
    assert set(reason["first"]) <= set("abcdefgh")
    assert len(reason["first"]) == reasons.MOST_FIRST


def test_a_batch_without_trouble_has_none(api, create, work, backend):
    assert of(api, work.run(create([line("a")])["id"])["id"]) == []
    assert api.get("/v1/batches/batch_unknown/reasons").status_code == 404


def test_an_error_of_an_earlier_version_has_its_status(api, ended):
    """Its words went with the answers."""
    Line.objects.filter(custom_id="c").update(error_code="", error_message="")
    assert [(each["code"], each["message"]) for each in of(api, ended["id"])][1:] == [("http_400", "")]


@pytest.mark.parametrize("said", ["\ud800 half a pair", "nothing \0 here", "x" * 5000, ""])
def test_odd_words_are_kept_as_far_as_a_database_can(api, create, work, backend, said):
    backend.always("a", Action(400, {"error": {"message": said, "code": said}}))
    batch = work.run(create([line("a"), line("b")])["id"])
    [reason] = of(api, batch["id"])
    assert (reason["count"], reason["first"]) == (1, ["a"])
    assert len(reason["message"]) <= 1000


def test_the_admin_shows_them_and_names_models_in_its_list_of_lines(admin_client, ended):
    page = admin_client.get(f"/admin/batches/batch/{ended['id']}/change/").content.decode()
    assert "2 of invalid_request_error: invalid message content type (a, b" in page
    listed = admin_client.get("/admin/batches/line/").content.decode()
    assert listed.count("gemma3:12b") == 5
    assert "None line None" not in listed
    assert set(Line.objects.values_list("state", flat=True)) == {LineState.FAILED, LineState.SUCCEEDED}
