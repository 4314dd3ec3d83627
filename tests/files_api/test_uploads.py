"""/v1/uploads: a file that comes in parts."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone
from rest_framework.test import APIClient

from files_api import retention, storage, uploads
from files_api.models import File, Upload, UploadPart
from tests.conftest import at_once, custom_ids, jsonl, line, several_connections
from tests.whole_server import client_of, finish, lines_of

CONTENT = jsonl([line(name) for name in "abcdef"])
THIRDS = [CONTENT[:100], CONTENT[100:333], CONTENT[333:]]


@pytest.fixture
def begin(api):
    def begin(content=CONTENT, **fields):
        request = {"filename": "in.jsonl", "purpose": "batch", "bytes": len(content), "mime_type": "text/jsonl"}
        return api.post("/v1/uploads", request | fields, format="json")

    return begin


def send(api, upload_id, content):
    return api.post(f"/v1/uploads/{upload_id}/parts", {"data": SimpleUploadedFile("upload", content)})


def complete(api, upload_id, part_ids, **fields):
    return api.post(f"/v1/uploads/{upload_id}/complete", {"part_ids": part_ids} | fields, format="json")


def refused(answer, status=400, **expected):
    assert answer.status_code == status, answer.content
    error = answer.json()["error"]
    assert {key: error[key] for key in expected} == expected
    return error["message"]


def stored(settings):
    return {path.name for path in settings.FILES_DIR.rglob("*") if path.is_file()}


@pytest.fixture
def pending(api, begin):
    """An upload with three parts, which arrived out of order: its id, and theirs in the order of the content."""
    upload_id = begin().json()["id"]
    late = [send(api, upload_id, content).json()["id"] for content in THIRDS[::-1]]
    return upload_id, late[::-1]


def test_it_begins_with_an_hour_to_go(begin):
    body = begin().json()
    upload = Upload.objects.get()
    assert body == {
        "id": upload.pk,
        "object": "upload",
        "bytes": len(CONTENT),
        "created_at": int(upload.created_at.timestamp()),
        "expires_at": int(upload.expires_at.timestamp()),
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "pending",
        "file": None,
    }
    assert upload.pk.startswith("upload_")
    assert upload.expires_at - upload.created_at == timedelta(hours=1)


def test_a_part_is_named(api, begin):
    upload_id = begin().json()["id"]
    body = send(api, upload_id, THIRDS[0]).json()
    part = UploadPart.objects.get()
    assert body == {
        "id": part.pk,
        "object": "upload.part",
        "created_at": int(part.created_at.timestamp()),
        "upload_id": upload_id,
    }
    assert part.pk.startswith("part_")


def test_it_joins_the_parts_in_the_order_that_completing_names(api, pending, settings):
    upload_id, part_ids = pending

    body = complete(api, upload_id, part_ids, md5=hashlib.md5(CONTENT).hexdigest()).json()

    file = File.objects.get()
    assert (body["id"], body["status"]) == (upload_id, "completed")
    assert body["file"] == api.get(f"/v1/files/{file.pk}").json()
    assert body["file"]["filename"] == "in.jsonl"
    assert body["file"]["expires_at"] == body["file"]["created_at"] + 2_592_000
    assert (file.bytes, file.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert api.get(f"/v1/files/{file.pk}/content").getvalue() == CONTENT
    # The parts are gone, and nothing is left where files arrive.
    assert stored(settings) == {file.pk}
    assert not UploadPart.objects.exists()


def test_the_file_lives_as_long_as_was_asked(api, begin):
    upload_id = begin(expires_after={"anchor": "created_at", "seconds": 3600}).json()["id"]
    part = send(api, upload_id, CONTENT).json()["id"]
    file = complete(api, upload_id, [part]).json()["file"]
    assert file["expires_at"] == file["created_at"] + 3600


def test_parts_that_are_not_named_are_left_out(api, pending, settings):
    upload_id, part_ids = pending
    send(api, upload_id, THIRDS[1])  # a retry of a client that did not get its answer
    body = complete(api, upload_id, part_ids).json()
    assert body["status"] == "completed"
    assert stored(settings) == {body["file"]["id"]}


def test_completing_again_gives_the_same_file(api, pending):
    upload_id, part_ids = pending
    first = complete(api, upload_id, part_ids).json()
    assert complete(api, upload_id, part_ids).json() == first
    assert "is completed" in refused(complete(api, upload_id, part_ids[::-1]))
    assert File.objects.count() == 1


def test_a_batch_runs_from_it(api, work, backend, pending):
    upload_id, part_ids = pending
    file_id = complete(api, upload_id, part_ids).json()["file"]["id"]
    request = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = work.run(api.post("/v1/batches", request, format="json").json()["id"])
    assert custom_ids(work.content(batch["output_file_id"])) == list("abcdef")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"filename": None}, {"param": "filename"}),
        ({"purpose": "else"}, {"param": "purpose", "code": "invalid_value"}),
        ({"bytes": -1}, {"param": "bytes", "code": "integer_below_min_value"}),
        ({"bytes": 2**70}, {"param": "bytes", "code": "integer_above_max_value"}),
        ({"bytes": "12"}, {"param": "bytes", "code": "invalid_type"}),
        ({"bytes": True}, {"param": "bytes", "code": "invalid_type"}),
        ({"mime_type": 5}, {"param": "mime_type", "code": "invalid_type"}),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, {"param": "expires_after.seconds"}),
    ],
)
def test_it_refuses_bad_fields(begin, fields, expected):
    refused(begin(**fields), **expected)
    assert not Upload.objects.exists()


@pytest.mark.parametrize("missing", ["filename", "purpose", "bytes", "mime_type"])
def test_it_refuses_missing_fields(api, missing):
    request = {"filename": "in.jsonl", "purpose": "batch", "bytes": 5, "mime_type": "text/jsonl"}
    del request[missing]
    refused(api.post("/v1/uploads", request, format="json"), param=missing, code="missing_required_parameter")


def test_it_refuses_more_than_a_file_may_have(begin, settings):
    settings.MAX_FILE_BYTES = 10
    assert "at most 10 bytes" in refused(begin(), 413, param="bytes", code="file_too_large")


@pytest.mark.parametrize("name", ["in.json", "in.txt", "in"])
def test_the_content_is_judged_at_completion_and_not_the_name(api, begin, name):
    upload_id = begin(b"\r\n" + CONTENT, filename=name).json()["id"]
    parts = [send(api, upload_id, content).json()["id"] for content in (b"\r\n", *THIRDS)]
    assert complete(api, upload_id, parts).json()["file"]["filename"] == name


def test_a_joined_file_is_named_as_what_it_is(api, begin):
    content = CONTENT.decode().encode("utf-16-le")
    upload_id = begin(content).json()["id"]
    parts = [send(api, upload_id, piece).json()["id"] for piece in (content[:7], content[7:])]
    assert "looks like UTF-16" in refused(complete(api, upload_id, parts))


def test_it_refuses_a_joined_file_that_is_not_jsonl(api, begin, settings):
    upload_id = begin(b"not json").json()["id"]
    part = send(api, upload_id, b"not json").json()["id"]
    assert "Invalid file format" in refused(complete(api, upload_id, [part]))
    assert not File.objects.exists()
    assert stored(settings) == {part}  # still there to be completed otherwise, or cancelled


def test_it_refuses_parts_that_are_not_what_was_announced(api, pending, begin):
    upload_id, part_ids = pending
    other = send(api, begin().json()["id"], CONTENT).json()["id"]
    message = refused(complete(api, upload_id, part_ids[:2]), param="part_ids", code="invalid_value")
    assert f"{len(CONTENT)} bytes, but these parts have 333 bytes" in message
    refused(complete(api, upload_id, [*part_ids, part_ids[0]]), param="part_ids", code="invalid_value")
    refused(complete(api, upload_id, [part_ids[0], other]), param="part_ids[1]", code="invalid_value")
    refused(complete(api, upload_id, part_ids, md5="0" * 32), param="md5", code="invalid_value")
    refused(complete(api, upload_id, part_ids[::-1], md5=hashlib.md5(CONTENT).hexdigest()), param="md5")
    refused(complete(api, upload_id, "part"), param="part_ids", code="invalid_type")
    refused(complete(api, upload_id, [5]), param="part_ids[0]", code="invalid_type")
    refused(complete(api, upload_id, ["a\x00b"]), param="part_ids[0]", code="invalid_value")
    refused(api.post(f"/v1/uploads/{upload_id}/complete", {}, format="json"), code="missing_required_parameter")
    assert complete(api, upload_id, part_ids).json()["status"] == "completed"


def test_a_part_has_at_most_64_mib(api, begin, monkeypatch, settings):
    upload_id = begin().json()["id"]
    assert uploads.MOST_PART_BYTES == 64 * 2**20
    monkeypatch.setattr(uploads, "MOST_PART_BYTES", 100_000)
    refused(send(api, upload_id, b"x" * 100_001), 413, param="data", code="file_too_large")
    refused(send(api, upload_id, b"x" * 1_000_000), 413, param="data", code="file_too_large")
    assert not UploadPart.objects.exists()
    assert stored(settings) == set()
    assert send(api, upload_id, b"x" * 100_000).status_code == 200


def test_a_part_has_to_be_a_file(api, begin):
    path = f"/v1/uploads/{begin().json()['id']}/parts"
    refused(api.post(path, {}), param="data", code="missing_required_parameter")
    refused(api.post(path, {"data": "text"}), param="data", code="invalid_type")
    refused(api.post(path, {"data": "text"}, format="json"), 415)


def test_cancelling_drops_the_parts(api, pending, settings):
    upload_id, part_ids = pending
    body = api.post(f"/v1/uploads/{upload_id}/cancel").json()
    assert (body["status"], body["file"]) == ("cancelled", None)
    assert stored(settings) == set()
    assert api.post(f"/v1/uploads/{upload_id}/cancel").json() == body
    assert "is cancelled" in refused(complete(api, upload_id, part_ids))
    assert "is cancelled" in refused(send(api, upload_id, b"x"))
    assert stored(settings) == set()


def test_a_completed_upload_cannot_be_cancelled(api, pending):
    upload_id, part_ids = pending
    complete(api, upload_id, part_ids)
    assert "is completed" in refused(api.post(f"/v1/uploads/{upload_id}/cancel"))
    assert File.objects.get().is_visible


def test_after_an_hour_it_is_over(api, pending, settings):
    upload_id, part_ids = pending
    Upload.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert "is expired" in refused(complete(api, upload_id, part_ids))
    assert "is expired" in refused(send(api, upload_id, b"x"))
    assert "is expired" in refused(api.post(f"/v1/uploads/{upload_id}/cancel"))
    retention.sweep()
    assert len(stored(settings)) == 3  # somebody who asked in time may be joining them
    Upload.objects.update(expires_at=timezone.now() - timedelta(hours=1))
    retention.sweep()
    assert stored(settings) == set()
    assert not UploadPart.objects.exists()


def test_a_pending_upload_is_not_swept(api, pending):
    retention.sweep()
    assert UploadPart.objects.count() == 3


@pytest.mark.parametrize(
    ("path", "body"), [("parts", None), ("complete", {"part_ids": []}), ("cancel", None)], ids=lambda value: str(value)
)
def test_an_unknown_upload_is_a_404(api, path, body):
    answer = api.post(f"/v1/uploads/upload_none/{path}", body, format="json" if body else None)
    assert refused(answer, 404, param="id", code=None) == "No such Upload object: upload_none"


def test_one_that_is_cancelled_while_it_is_joined_gives_no_file(api, pending, settings, monkeypatch):
    upload_id, part_ids = pending
    sync = storage.LocalFile.sync

    def cancel_first(content):
        uploads.cancel(Upload.objects.get())
        sync(content)

    monkeypatch.setattr(storage.LocalFile, "sync", cancel_first)
    assert "is cancelled" in refused(complete(api, upload_id, part_ids))
    assert not File.objects.exists()
    assert stored(settings) == set()


def test_a_second_completing_that_finds_the_parts_gone_gets_the_file(api, pending):
    upload_id, part_ids = pending
    seen_pending = Upload.objects.get()
    first = complete(api, upload_id, part_ids).json()
    assert uploads.complete(seen_pending, part_ids, None).file_id == first["file"]["id"]


@several_connections
def test_of_two_that_complete_at_once_both_get_one_file(transactional_db, api, pending):
    upload_id, part_ids = pending
    answers = at_once(4, lambda: complete(APIClient(), upload_id, part_ids).json()["file"]["id"])
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert File.objects.count() == 1


def test_an_idempotency_key_makes_one_upload(api):
    request = {"filename": "in.jsonl", "purpose": "batch", "bytes": 5, "mime_type": "text/jsonl"}
    key = {"HTTP_IDEMPOTENCY_KEY": "k"}
    first = api.post("/v1/uploads", request, format="json", **key)
    assert api.post("/v1/uploads", request, format="json", **key).json() == first.json()
    refused(api.post("/v1/uploads", request | {"bytes": 6}, format="json", **key), 409, code="idempotency_key_reused")
    assert Upload.objects.count() == 1


def test_the_official_client_uploads_in_parts(stack, fake, tmp_path):
    server = stack(OLLAMA_BASE_URL=fake.url)
    client = client_of(server)

    # Several parts at once, in no order.
    upload = client.uploads.create(bytes=len(CONTENT), filename="in.jsonl", mime_type="text/jsonl", purpose="batch")
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(lambda content: client.uploads.parts.create(upload.id, data=content), THIRDS))
    done = client.uploads.complete(
        upload.id, part_ids=[part.id for part in parts], md5=hashlib.md5(CONTENT).hexdigest()
    )
    assert (done.status, done.file.bytes) == ("completed", len(CONTENT))
    request = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = finish(client, client.batches.create(input_file_id=done.file.id, **request).id)
    assert custom_ids(lines_of(client, batch.output_file_id)) == list("abcdef")

    # The client's own helper.
    path = tmp_path / "large.jsonl"
    path.write_bytes(CONTENT)
    done = client.uploads.upload_file_chunked(file=path, mime_type="txt", purpose="batch", part_size=100)
    assert client.files.content(done.file.id).content == CONTENT
    assert (
        client.uploads.cancel(
            client.uploads.create(bytes=1, filename="a.jsonl", mime_type="txt", purpose="batch").id
        ).status
        == "cancelled"
    )
    assert not list((server.data_dir / "files" / "parts").iterdir())
