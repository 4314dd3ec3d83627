"""List, retrieve and cancel batches."""

from django.utils import timezone

from batches.models import Batch, Status
from tests.conftest import line


def test_it_lists_newest_first_in_pages(api, create):
    batches = [create([line("a")])["id"] for _ in range(3)]

    page = api.get("/v1/batches", {"limit": 2}).json()
    assert [batch["id"] for batch in page["data"]] == [batches[2], batches[1]]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, batches[2], batches[1])
    rest = api.get("/v1/batches", {"limit": 2, "after": batches[1]}).json()
    assert [batch["id"] for batch in rest["data"]] == [batches[0]]
    assert rest["has_more"] is False


def test_it_lists_nothing_for_a_limit_of_zero(api, create):
    create([line("a")])
    page = api.get("/v1/batches", {"limit": 0}).json()
    assert (page["data"], page["first_id"]) == ([], None)


def test_it_refuses_limits_outside_the_bounds(api):
    over = api.get("/v1/batches", {"limit": 101}).json()["error"]
    assert over["message"] == (
        "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead."
    )
    under = api.get("/v1/batches", {"limit": -1}).json()["error"]
    assert (under["code"], under["param"]) == ("integer_below_min_value", "limit")


def test_an_unknown_batch_is_a_404(api):
    for answer in (api.get("/v1/batches/batch_nope"), api.post("/v1/batches/batch_nope/cancel")):
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == "No batch found with id 'batch_nope'."


def test_an_id_of_another_kind_is_a_400(api):
    answer = api.get("/v1/batches/file-1")
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "Invalid 'batch_id': 'file-1'. Expected an ID that begins with 'batch'.",
        "type": "invalid_request_error",
        "param": "batch_id",
        "code": "invalid_value",
    }


def test_it_cancels_and_says_so_again(api, create):
    batch = create([line("a")])
    # The Python client sends this with a JSON content type and an empty body.
    first = api.generic("POST", f"/v1/batches/{batch['id']}/cancel", b"", content_type="application/json")
    assert first.status_code == 200
    assert first.json()["status"] == "cancelling"
    assert first.json()["cancelling_at"] is not None
    again = api.post(f"/v1/batches/{batch['id']}/cancel")
    assert (again.status_code, again.json()) == (200, first.json())


def test_it_refuses_to_cancel_what_is_over(api, create):
    batch = create([line("a")])
    for status in (Status.FINALIZING, Status.COMPLETED, Status.FAILED, Status.EXPIRED):
        Batch.objects.update(status=status)
        answer = api.post(f"/v1/batches/{batch['id']}/cancel")
        assert answer.status_code == 409
        assert answer["x-should-retry"] == "false"
        assert answer.json()["error"]["message"] == f"Cannot cancel a batch with status '{status}'."
        assert Batch.objects.get().status == status


def test_it_shows_errors_only_once_the_batch_failed(api, create):
    batch = create([line("a")])
    Batch.objects.update(errors=[{"code": "x", "message": "y", "param": None, "line": 1}])
    assert api.get(f"/v1/batches/{batch['id']}").json()["errors"] is None
    Batch.objects.update(status=Status.FAILED, failed_at=timezone.now())
    assert api.get(f"/v1/batches/{batch['id']}").json()["errors"]["data"][0]["line"] == 1
