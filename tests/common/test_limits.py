"""What an owner may use: requests a minute, bytes, batches, lines and streams; and how a client is told."""

from contextlib import ExitStack

import httpx2 as httpx
import openai
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from batches.api.pass_through import take_a_place
from common.errors import ApiError
from common.models import ApiKey, Owner
from common.throttling import MINUTE_S
from files_api.models import File, UploadPart
from tests.conftest import CHAT, at_once, jsonl, line, several_connections
from tests.fake_backend import Action, error_body

LINE = b'{"a": 1}\n'


@pytest.fixture
def ann(transactional_db):
    return Owner.objects.create(name="Ann")


def key_of(owner):
    return {"HTTP_AUTHORIZATION": f"Bearer {ApiKey.objects.make('test', owner=owner)[1]}"}


@pytest.fixture
def own(api, ann):
    """The client has Ann's key."""
    api.credentials(**key_of(ann))
    return api


def limit(owner, **limits):
    Owner.objects.filter(pk=owner.pk).update(**{f"max_{name}": most for name, most in limits.items()})


def upload(api, content=LINE, **extra):
    return api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("a.jsonl", content)}, **extra)


def is_used_up(answer, status=429):
    assert (answer.status_code, answer["x-should-retry"]) == (status, "false")
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    return error["message"]


# Requests a minute


def left(answer):
    return [answer[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset")]


def test_as_many_requests_as_the_limit_are_taken_in_a_minute(own, ann):
    limit(ann, requests_per_minute=3)
    answers = [own.get("/v1/files") for _ in range(4)]
    assert [each.status_code for each in answers] == [200, 200, 200, 429]
    assert [left(each)[:2] for each in answers] == [["3", "2"], ["3", "1"], ["3", "0"], ["3", "0"]]
    assert left(answers[0])[2].startswith(("19.", "20"))
    error = answers[3].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "Limit 3" in error["message"]
    assert 1 <= int(answers[3]["Retry-After"]) <= 20


def test_a_request_fits_in_again_once_its_part_of_the_minute_is_over(own, ann):
    limit(ann, requests_per_minute=3)
    for _ in range(6):  # those that are refused use nothing up
        own.get("/v1/files")
    for _ in range(2):
        Owner.objects.filter(pk=ann.pk).update(requests_until=Owner.objects.get(pk=ann.pk).requests_until - 21)
        assert [own.get("/v1/files").status_code for _ in range(2)] == [200, 429]


def test_a_clock_that_went_back_keeps_nobody_out(own, ann):
    limit(ann, requests_per_minute=3)
    own.get("/v1/files")
    Owner.objects.filter(pk=ann.pk).update(requests_until=Owner.objects.get(pk=ann.pk).requests_until + 1e6)
    assert own.get("/v1/files").status_code == 200


def test_other_owners_and_other_addresses_have_what_they_had(own, ann, api):
    limit(ann, requests_per_minute=1)
    own.get("/v1/models")
    assert own.get("/v1/batches").status_code == 429
    assert own.get("/api/tags").status_code == 429  # one count for all
    assert set(own.get("/api/tags").json()) == {"error"}  # as Ollama says it
    other = APIClient().get("/v1/files", **key_of(Owner.objects.create(name="Bob")))
    assert (other.status_code, "x-ratelimit-limit-requests" in other) == (200, False)
    assert api.get("/health").status_code in (200, 503)


def test_a_key_that_is_none_uses_nothing_up(own, ann):
    limit(ann, requests_per_minute=1)
    assert APIClient().get("/v1/files", HTTP_AUTHORIZATION="Bearer sk-wrong").status_code == 401
    assert own.get("/v1/files").status_code == 200


def test_without_a_limit_nothing_is_written(own):
    own.get("/v1/files")  # notes that the key is used
    with CaptureQueriesContext(connection) as queries:
        answer = own.get("/v1/files")
    assert not [each["sql"] for each in queries if not each["sql"].startswith("SELECT")]
    assert "x-ratelimit-limit-requests" not in answer


@pytest.mark.parametrize(("of_all", "own_limit", "taken"), [(2, None, 2), (2, 4, 4), (2, 0, 5), (0, None, 5)])
def test_an_owners_own_limit_wins_and_0_is_none(own, ann, settings, of_all, own_limit, taken):
    settings.OWNER_MAX_REQUESTS_PER_MINUTE = of_all
    limit(ann, requests_per_minute=own_limit)
    assert [own.get("/v1/files").status_code for _ in range(5)].count(200) == taken


def test_without_keys_the_limit_is_the_first_owners(transactional_db, api, settings):
    settings.OWNER_MAX_REQUESTS_PER_MINUTE = 2
    assert [api.get("/v1/files").status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize("most", [2, 7, 13])
def test_any_limit_is_met_to_the_request(own, ann, most):
    limit(ann, requests_per_minute=most)
    own.get("/v1/files")
    # All but one of the others, at once.
    Owner.objects.filter(pk=ann.pk).update(
        requests_until=Owner.objects.get(pk=ann.pk).requests_until + MINUTE_S / most * (most - 2)
    )
    assert [own.get("/v1/files").status_code for _ in range(2)] == [200, 429]


@several_connections
def test_of_many_at_once_as_many_are_taken_as_may(transactional_db):
    ann = Owner.objects.create(name="Ann", max_requests_per_minute=3)
    key = key_of(ann)
    assert at_once(8, lambda: APIClient().get("/v1/files", **key).status_code).count(200) == 3


# Bytes


def test_no_more_bytes_are_stored_than_may_be(own, ann, settings):
    limit(ann, stored_bytes=2 * len(LINE))
    files = [upload(own).json()["id"] for _ in range(2)]
    message = is_used_up(upload(own), 403)
    assert f"stores {2 * len(LINE)} bytes, and may store {2 * len(LINE)}" in message
    assert len([path for path in settings.FILES_DIR.rglob("*") if path.is_file()]) == 2
    own.delete(f"/v1/files/{files[0]}")
    assert upload(own).status_code == 200


def test_a_body_that_cannot_fit_is_refused_before_it_is_read(own, ann, monkeypatch):
    def read(*args):
        raise AssertionError("the body was read")

    monkeypatch.setattr("files_api.form.FormParser.parse", read)
    limit(ann, stored_bytes=1000)
    is_used_up(upload(own, b"1" * 100_000), 403)


def test_parts_of_uploads_count_and_joining_them_takes_no_more(own, ann):
    limit(ann, stored_bytes=2 * len(LINE))
    announced = {"filename": "a.jsonl", "purpose": "batch", "mime_type": "text/jsonl"}
    is_used_up(own.post("/v1/uploads", announced | {"bytes": 2 * len(LINE) + 1}, format="json"), 403)
    begun = own.post("/v1/uploads", announced | {"bytes": 2 * len(LINE)}, format="json").json()["id"]
    path = f"/v1/uploads/{begun}"
    parts = [own.post(f"{path}/parts", {"data": SimpleUploadedFile("a", LINE)}) for _ in range(3)]
    assert [each.status_code for each in parts] == [200, 200, 403]
    is_used_up(upload(own), 403)
    ids = [each.json()["id"] for each in parts[:2]]
    assert own.post(f"{path}/complete", {"part_ids": ids}, format="json").json()["status"] == "completed"
    assert (File.objects.count(), UploadPart.objects.count()) == (1, 0)
    is_used_up(upload(own), 403)


def test_an_upload_that_is_sent_again_gets_its_answer_though_no_more_fits(own, ann):
    content = LINE * 20_000
    limit(ann, stored_bytes=len(content))
    answers = [upload(own, content, HTTP_IDEMPOTENCY_KEY="k") for _ in range(2)]
    assert [each.status_code for each in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    is_used_up(upload(own, content, HTTP_IDEMPOTENCY_KEY="other"), 403)
    own.delete(f"/v1/files/{answers[0].json()['id']}")

    begin = {"filename": "a", "purpose": "batch", "mime_type": "text/jsonl", "bytes": len(content)}
    answers = [own.post("/v1/uploads", begin, format="json", HTTP_IDEMPOTENCY_KEY="k")]
    limit(ann, stored_bytes=1)
    answers.append(own.post("/v1/uploads", begin, format="json", HTTP_IDEMPOTENCY_KEY="k"))
    assert [each.status_code for each in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


def test_parts_are_joined_though_results_have_used_the_limit_up(own, ann):
    announced = {"filename": "a.jsonl", "purpose": "batch", "mime_type": "text/jsonl", "bytes": len(LINE)}
    path = f"/v1/uploads/{own.post('/v1/uploads', announced, format='json').json()['id']}"
    part = own.post(f"{path}/parts", {"data": SimpleUploadedFile("a", LINE)}).json()["id"]
    limit(ann, stored_bytes=1)  # as if a batch had ended meanwhile
    joined = own.post(f"{path}/complete", {"part_ids": [part]}, format="json")
    assert (joined.status_code, joined.json()["status"]) == (200, "completed")


def test_an_upload_without_a_limit_begins_no_transaction_before_its_bytes_are_there(own, ann, monkeypatch):
    """On SQLite each takes the one write lock."""

    def read(*args):
        monkeypatch.undo()
        raise ApiError("enough")

    own.get("/v1/files")
    monkeypatch.setattr("files_api.form.FormParser.parse", read)
    with CaptureQueriesContext(connection) as queries:
        assert upload(own).status_code == 400
    assert not [each["sql"] for each in queries if not each["sql"].startswith("SELECT")]


def test_results_are_stored_whatever_the_limit_is_and_count(own, ann, work, backend):
    file_id = upload(own, b"".join(map(_line, "ab"))).json()["id"]
    batch = _create(own, file_id).json()
    limit(ann, stored_bytes=1)
    done = work.run(batch["id"])
    assert (done["status"], len(work.content(done["output_file_id"]))) == ("completed", 2)
    own.delete(f"/v1/files/{file_id}")
    assert f"stores {File.objects.get(pk=done['output_file_id']).bytes} bytes" in is_used_up(upload(own), 403)


@several_connections
def test_two_uploads_at_once_are_counted_one_after_the_other(transactional_db):
    key = key_of(Owner.objects.create(name="Ann", max_stored_bytes=2 * len(LINE)))
    assert at_once(6, lambda: upload(APIClient(), **key).status_code).count(200) == 2


# Batches and lines


def _line(custom_id):
    return jsonl([line(custom_id)])


def _create(api, file_id, **headers):
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    return api.post("/v1/batches", body, format="json", **headers)


def test_no_more_batches_are_active_than_may_be(own, ann, work, backend):
    file_id = upload(own, _line("a")).json()["id"]
    limit(ann, active_batches=1)
    first = _create(own, file_id, HTTP_IDEMPOTENCY_KEY="k").json()["id"]
    assert "has 1 batches that are not finished, and may have 1" in is_used_up(_create(own, file_id))
    assert _create(own, file_id, HTTP_IDEMPOTENCY_KEY="k").json()["id"] == first  # that one, not another
    work.run(first)
    assert _create(own, file_id).status_code == 200


def test_a_retry_is_a_batch_and_a_file_too(own, ann, work, backend):
    backend.always("b", Action(400, error_body("no")))
    file_id = upload(own, _line("b")).json()["id"]
    retry = f"/v1/batches/{work.run(_create(own, file_id).json()['id'])['id']}/retry"
    running = _create(own, file_id).json()["id"]
    limit(ann, active_batches=1)
    is_used_up(own.post(retry))
    own.post(f"/v1/batches/{running}/cancel")
    work.finalize(running)
    limit(ann, stored_bytes=1)
    is_used_up(own.post(retry), 403)
    limit(ann, stored_bytes=None)
    assert own.post(retry).status_code == 200


def test_no_more_lines_are_open_than_may_be(own, ann, work, backend):
    two = upload(own, b"".join(map(_line, "ab"))).json()["id"]
    three = upload(own, b"".join(map(_line, "abc"))).json()["id"]
    limit(ann, open_lines=4)
    first, second = _create(own, two).json()["id"], _create(own, three).json()["id"]
    for batch in (first, second):
        work.validate(batch)
    failed = work.batch(second)
    assert (work.batch(first)["status"], failed["status"]) == ("in_progress", "failed")
    (error,) = failed["errors"]["data"]
    assert (error["code"], error["line"]) == ("too_many_open_lines", None)
    assert "would have 5 lines or more" in error["message"]
    work.finalize(second)
    limit(ann, open_lines=2)
    assert "has 2 lines that are not finished" in is_used_up(_create(own, two))
    work.run(first)
    assert work.run(_create(own, two).json()["id"])["status"] == "completed"


@several_connections
def test_two_creates_at_once_are_counted_one_after_the_other(transactional_db):
    key = key_of(Owner.objects.create(name="Ann", max_active_batches=2))
    assert at_once(6, lambda: _create(APIClient(), "file-none", **key).status_code).count(200) == 2


# Streams


def test_no_more_streams_are_open_than_may_be(ann):
    limit(ann, streams=2)
    ann.refresh_from_db()
    other = Owner.objects.create(name="Bob")
    with ExitStack() as first, ExitStack() as others:
        take_a_place(ann, first)
        take_a_place(ann, others)
        with pytest.raises(ApiError, match="2 requests of 'Ann' are being passed through already") as refused:
            take_a_place(ann, others)
        assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "5"})
        take_a_place(other, others)
        first.close()
        take_a_place(ann, first)
    with ExitStack() as later:
        for _ in range(2):
            take_a_place(ann, later)


# As the official client takes it


@pytest.fixture
def official(ann, monkeypatch):
    """OpenAI's own client with Ann's key, without a socket between it and the server."""
    monkeypatch.setattr("platform.platform", lambda: "Linux")  # it starts a process
    _, secret = ApiKey.objects.make("official", owner=ann)
    http = openai.DefaultHttpxClient(transport=httpx.WSGITransport(app=get_wsgi_application()))
    with openai.OpenAI(base_url="http://testserver/v1", api_key=secret, http_client=http, max_retries=0) as client:
        yield client


def test_the_official_client_reads_what_is_left_and_waits_as_long_as_it_is_told(official, ann, monkeypatch):
    limit(ann, requests_per_minute=2)
    headers = official.files.with_raw_response.list().headers
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    official.files.list()
    with pytest.raises(openai.RateLimitError, match="Limit 2") as refused:
        official.files.list()
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        limit(ann, requests_per_minute=0)

    monkeypatch.setattr("time.sleep", sleep)
    official.with_options(max_retries=1).files.list()
    (wait_s,) = waits
    assert 20 < wait_s <= 30  # by itself it would wait for a second


def test_the_official_client_tries_nothing_again_that_waiting_does_not_help(official, ann, monkeypatch):
    limit(ann, active_batches=1, stored_bytes=1)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
    client = official.with_options(max_retries=3)
    with pytest.raises(openai.PermissionDeniedError, match="may store 1"):
        client.files.create(file=("a.jsonl", LINE), purpose="batch")
    batch = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"}
    client.batches.create(**batch)
    with pytest.raises(openai.RateLimitError, match="may have 1") as refused:
        client.batches.create(**batch)
    assert refused.value.code == "insufficient_quota"
