"""What is done to a batch while it runs and after its end: extend, priority, reasons, retry, delete."""

import json
from datetime import timedelta

import pytest
from django.contrib.admin.utils import quote
from django.utils import timezone

from batches import cleanup, forecasts, lifecycle, retry
from batches.models import Batch, Line, LineState, Part, Priority, Response, Status
from files_api.models import File, FileHold
from tests.conftest import line
from tests.fake_backend import Action


def post(api, batch, what, body=None, **headers):
    return api.post(f"/v1/batches/{batch['id']}/{what}", body or {}, format="json", **headers)


def error(answer):
    return answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["message"]


# Extend


def test_it_extends_a_window_and_never_shortens_it(api, create):
    batch = create([line("a")], completion_window="1h")
    told = post(api, batch, "extend", {"completion_window": "7d"})
    assert told.status_code == 200
    ends_at = told.json()["expires_at"]
    assert ends_at - timezone.now().timestamp() == pytest.approx(7 * 86400, abs=60)
    assert post(api, batch, "extend", {"completion_window": "1h"}).json()["expires_at"] == ends_at


@pytest.mark.parametrize("status", [Status.FINALIZING, Status.CANCELLING, *[Status.EXPIRED, Status.COMPLETED]])
def test_a_batch_that_sends_no_lines_is_not_extended(api, create, status):
    batch = create([line("a")])
    Batch.objects.update(status=status)
    before = Batch.objects.get().expires_at
    answer = post(api, batch, "extend", {"completion_window": "7d"})
    assert (answer.status_code, answer["x-should-retry"]) == (409, "false")
    assert Batch.objects.get().expires_at == before


@pytest.mark.parametrize("body", [{}, {"completion_window": "31d"}, {"completion_window": 7}])
def test_a_window_that_is_none_is_refused(api, create, body):
    assert post(api, create([line("a")]), "extend", body).status_code == 400


def test_of_the_end_of_a_window_and_its_extension_the_first_wins(api, create):
    batch = create([line("a")])
    Batch.objects.update(status=Status.IN_PROGRESS, total=1, expires_at=timezone.now() - timedelta(seconds=1))
    part = Part.objects.create(batch_id=batch["id"], model="m")
    Line.objects.create(batch_id=batch["id"], part=part, number=1, custom_id="a", offset=0, length=1)
    lifecycle.extend(batch["id"], timedelta(hours=1))
    lifecycle.close_finished(lambda batch_id: None)
    assert Batch.objects.get().status == Status.IN_PROGRESS
    Batch.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    lifecycle.close_finished(lambda batch_id: None)
    assert Batch.objects.get().status == Status.FINALIZING
    assert post(api, batch, "extend", {"completion_window": "7d"}).status_code == 409


# The window against the forecast


@pytest.fixture
def slow(db, live_backend):
    """A batch whose 1000 open lines take 2 s each, with 5 minutes left."""
    now = timezone.now()
    batch = Batch.objects.create(
        input_file_id="file-x",
        endpoint="/v1/chat/completions",
        completion_window="24h",
        expires_at=now + timedelta(minutes=5),
        status=Status.IN_PROGRESS,
        total=1010,
        folded_completed=10,
        warnings=[{"code": "other", "message": "Mind the gap."}],
    )
    part = Part.objects.create(batch=batch, model=live_backend.listed[0]["id"])
    Line.objects.bulk_create(
        Line(
            batch=batch, part=part, number=n, custom_id=str(n), offset=0, length=1, order_key=b"%08d" % n,
            state=LineState.SUCCEEDED if n <= 10 else LineState.PENDING,
            finished_at=now - timedelta(seconds=2 * (10 - n)) if n <= 10 else None,
            duration_ms=2000 if n <= 10 else None,
        )
        for n in range(1, 1011)
    )  # fmt: skip
    return batch


def codes(api, batch):
    return [each["code"] for each in api.get(f"/v1/batches/{batch.pk}/progress").json()["warnings"]]


def test_a_window_that_ends_before_the_forecast_is_told_until_it_is_extended(api, slow, caplog):
    assert codes(api, slow) == ["other", "window_too_short"]
    for _ in range(3):
        forecasts.review()
    assert [each["code"] for each in Batch.objects.get().warnings] == ["other", "window_too_short"]
    message = Batch.objects.get().warnings[1]["message"]
    assert f"script/batch extend {slow.pk} 1d" in message
    assert len([each for each in caplog.messages if "completion window ends at" in each]) == 1
    Batch.objects.update(paused_at=timezone.now())  # no forecast now: the last one stands
    assert codes(api, slow) == ["other", "window_too_short"]
    post(api, {"id": slow.pk}, "extend", {"completion_window": "1d"})
    assert codes(api, slow) == ["other"]
    Batch.objects.update(paused_at=None)
    forecasts.review()
    assert [each["code"] for each in Batch.objects.get().warnings] == ["other"]


def test_the_warning_ends_with_the_batch_and_when_it_becomes_faster(api, slow):
    forecasts.review()
    Line.objects.filter(state=LineState.SUCCEEDED).update(duration_ms=1)
    Batch.objects.update(total=20)
    assert codes(api, slow) == ["other"]
    Batch.objects.update(status=Status.COMPLETED)
    assert codes(api, slow) == ["other"]


# Priority


def test_the_priority_is_changed_while_lines_are_sent(api, create):
    batch = create([line("a")])
    assert post(api, batch, "priority", {"priority": 1}).status_code == 200
    assert Batch.objects.get().priority == Priority.HIGH
    for bad in (2, "1", True, None, 1.0):
        assert post(api, batch, "priority", {"priority": bad}).status_code == 400
    Batch.objects.update(status=Status.COMPLETED)
    assert post(api, batch, "priority", {"priority": 0}).status_code == 409


# Reasons


def refused(code, message):
    return Action(status=400, body={"error": {"message": message, "type": "invalid_request_error", "code": code}})


def reasons_of(api, batch):
    body = api.get(f"/v1/batches/{batch['id']}/reasons").json()
    assert body["object"] == "list"
    return body["data"]


@pytest.fixture
def mixed(create, work, backend):
    """A batch that is over: two lines refused with one code, two that are equal with another, one good."""
    backend.always("b", refused("no_such_thing", "B is not good."))
    backend.always("c", refused("no_such_thing", "C is not good."))
    backend.always("d", refused(None, "D is odd."))
    same = line("d", body={"temperature": 0})
    batch = create([line("a"), line("b"), line("c"), same, same | {"custom_id": "e"}], metadata={"project": "x"})
    return work.run(batch["id"])


def test_reasons_stay_readable_after_the_end(api, mixed):
    assert Batch.objects.get().tidied_at is not None
    assert reasons_of(api, mixed) == [
        {"code": "invalid_request_error", "message": "D is odd.", "count": 2, "first": ["d"]},
        {"code": "no_such_thing", "message": "B is not good.", "count": 2, "first": ["b", "c"]},
    ]
    assert not Response.objects.exists()


def test_lines_that_were_left_have_reasons_too(api, create, work):
    batch = create([line("a"), line("b")])
    work.validate(batch["id"])
    assert reasons_of(api, batch) == []
    Batch.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    lifecycle.close_finished(lambda batch_id: None)
    work.finalize(batch["id"])
    (told,) = reasons_of(api, batch)
    assert (told["code"], told["count"], told["first"]) == ("batch_expired", 2, ["a", "b"])


def test_reasons_are_found_by_their_index(create, work, django_assert_max_num_queries):
    from django.db import connection

    from batches.status import reasons

    if connection.vendor != "sqlite":
        pytest.skip("the plan of an empty table on Postgres says nothing")
    with connection.cursor() as cursor:
        for statement, values in ((reasons._COUNTS, ["x"]), (reasons._FIRST, ["x", 3, "y", 5])):
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", values)
            assert "line_unanswered" in str(cursor.fetchall())


# Retry


def asked_again(api, batch):
    answer = api.get(f"/v1/files/{batch['input_file_id']}/content")
    return [json.loads(each) for each in answer.getvalue().splitlines()]


def test_it_asks_the_failed_lines_again(api, mixed, work, backend):
    child = post(api, mixed, "retry")
    assert child.status_code == 200
    child = child.json()
    assert (child["retry_of"], child["status"], child["metadata"]) == (mixed["id"], "validating", {"project": "x"})
    assert asked_again(api, child)[0] == line("b")
    assert [each["custom_id"] for each in asked_again(api, child)] == ["b", "c", "d", "e"]
    assert work.batch(child["id"])["retry_of"] == mixed["id"]
    assert [each.get("retry_of") for each in api.get("/v1/batches").json()["data"]] == [mixed["id"], None]
    assert work.run(child["id"])["request_counts"]["total"] == 4


@pytest.mark.parametrize(
    ("wish", "lines"),
    [
        ({"codes": ["no_such_thing"]}, ["b", "c"]),
        ({"codes": ["invalid_request_error"], "errors": "failed"}, ["d", "e"]),
        ({"errors": "expired"}, None),
        ({"codes": []}, None),
        ({"codes": ["batch_expired"]}, None),
    ],
)
def test_it_asks_the_chosen_lines(api, mixed, wish, lines):
    answer = post(api, mixed, "retry", wish)
    if lines is None:
        status, code, message = error(answer)
        assert (status, code) == (400, "no_lines_to_retry")
        assert f"/v1/batches/{mixed['id']}/reasons" in message
        assert Batch.objects.count() == 1
    else:
        assert [each["custom_id"] for each in asked_again(api, answer.json())] == lines


def test_another_model_window_and_metadata(api, mixed):
    wish = {"model": "qwen3:14b", "completion_window": "3d", "metadata": {"priority": "high"}}
    child = post(api, mixed, "retry", wish).json()
    assert {each["body"]["model"] for each in asked_again(api, child)} == {"qwen3:14b"}
    assert (child["completion_window"], child["metadata"]) == ("3d", {"priority": "high"})
    assert Batch.objects.get(pk=child["id"]).priority == Priority.HIGH


@pytest.mark.parametrize("state", [LineState.EXPIRED, LineState.CANCELLED])
def test_lines_that_were_left_are_asked_again(api, mixed, state):
    Line.objects.filter(custom_id="a").update(state=state)
    code = {LineState.EXPIRED: "batch_expired", LineState.CANCELLED: "batch_cancelled"}[state]
    for wish in ({"errors": "expired"}, {"codes": [code]}):
        assert [each["custom_id"] for each in asked_again(api, post(api, mixed, "retry", wish).json())] == ["a"]


def test_a_retry_is_repeated_by_its_key(api, mixed):
    first = post(api, mixed, "retry", HTTP_IDEMPOTENCY_KEY="once")
    api.delete(f"/v1/files/{mixed['input_file_id']}")
    assert post(api, mixed, "retry", HTTP_IDEMPOTENCY_KEY="once").json() == first.json()
    assert post(api, mixed, "retry", {"errors": "failed"}, HTTP_IDEMPOTENCY_KEY="once").status_code == 409
    assert Batch.objects.count() == 2
    assert File.objects.filter(filename__endswith="_retry.jsonl").count() == 1


def test_what_cannot_be_retried_is_refused(api, create, work, mixed):
    status, _, message = error(post(api, create([line("a")]), "retry"))
    assert (status, "Wait for its end" in message) == (409, True)
    bad = create([line("a", method="GET")])
    work.validate(bad["id"])
    assert error(post(api, bad, "retry"))[:2] == (400, "no_lines_to_retry")
    api.delete(f"/v1/files/{mixed['input_file_id']}")
    assert error(post(api, mixed, "retry"))[:2] == (409, "input_file_gone")
    for wish in ({"errors": "some"}, {"codes": "x"}, {"codes": [1]}, {"codes": ["\x00"]}, {"model": 1}):
        assert post(api, mixed, "retry", wish).status_code == 400


def test_a_retry_that_cannot_be_stored_leaves_no_bytes(mixed, settings):
    wish = retry.Wish(Batch.objects.get())
    before = sorted(settings.FILES_DIR.rglob("*file-*"))
    with retry.input_of(wish) as content, pytest.raises(TypeError):
        retry.create(wish, content, window=None, metadata={"a": object()})
    assert sorted(settings.FILES_DIR.rglob("*file-*")) == before
    assert Batch.objects.count() == 1


# Delete


def test_a_batch_that_is_over_is_deleted_with_its_lines_and_result_files(api, mixed):
    child = post(api, mixed, "retry").json()
    answer = api.delete(f"/v1/batches/{mixed['id']}")
    assert answer.json() == {"id": mixed["id"], "object": "batch", "deleted": True}
    assert not Line.objects.exists()
    assert api.get(f"/v1/batches/{mixed['id']}").status_code == 404
    assert api.get(f"/v1/files/{mixed['output_file_id']}").status_code == 404
    assert api.get(f"/v1/files/{mixed['input_file_id']}").status_code == 200
    assert api.get(f"/v1/batches/{child['id']}").json()["retry_of"] == mixed["id"]
    assert api.delete(f"/v1/batches/{mixed['id']}").status_code == 404


def test_a_batch_that_is_not_over_is_not_deleted(api, create):
    batch = create([line("a")])
    for status in (Status.VALIDATING, Status.IN_PROGRESS, Status.FINALIZING, Status.CANCELLING):
        Batch.objects.update(status=status)
        assert api.delete(f"/v1/batches/{batch['id']}").status_code == 409
    assert FileHold.objects.exists()


def test_a_batch_that_was_not_tidied_yet_gives_its_hold_back(api, create):
    batch = create([line("a")])
    Batch.objects.update(status=Status.COMPLETED)
    api.delete(f"/v1/batches/{batch['id']}")
    assert not FileHold.objects.exists()
    cleanup.tidy(batch["id"], breathe=lambda: None)  # a message that comes late


# Admin


def test_the_admin_tells_reasons_and_retries_and_extends(admin_client, mixed, create, sent):
    address = f"/admin/batches/batch/{quote(mixed['id'])}/change/"
    page = admin_client.get(address).content.decode()
    assert "2 × no_such_thing" in page
    assert "B is not good." in page
    assert "First: b, c" in page
    other = create([line("z")], completion_window="1h")
    for action in ("retry", "extend"):
        chosen = {"action": action, "_selected_action": [mixed["id"], other["id"]]}
        page = admin_client.post("/admin/batches/batch/", chosen, follow=True).content.decode()
        assert "with status" in page
    assert Batch.objects.filter(retry_of=mixed["id"]).count() == 1
    assert Batch.objects.get(pk=other["id"]).expires_at > timezone.now() + timedelta(days=6)


def test_the_rows_of_lines_name_their_model(admin_client, mixed):
    page = admin_client.get("/admin/batches/line/").content.decode()
    assert "gemma3:12b" in page
    assert "None line None" not in page


@pytest.mark.parametrize("name", ["", "file-a\nb", "file-a\x7f", " "])
def test_a_batch_with_an_odd_name_of_a_file_has_a_page(admin_client, create, name):
    batch = create([line("a")])
    Batch.objects.update(input_file_id=name)
    assert admin_client.get(f"/admin/batches/batch/{quote(batch['id'])}/change/").status_code == 200
