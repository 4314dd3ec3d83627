"""List, retrieve, delete and download files, and what becomes of their bytes."""

import os
import time
from datetime import timedelta

import pytest
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

from files_api import retention
from files_api.accept import unless_stored
from files_api.models import File, FileHold
from tests.conftest import line

LINES = [line("a")]


def ids(answer):
    return [file["id"] for file in answer.json()["data"]]


def test_it_lists_newest_first(api, upload):
    files = [upload(LINES)["id"] for _ in range(3)]

    answer = api.get("/v1/files")

    assert answer.status_code == 200
    assert ids(answer) == files[::-1]
    envelope = answer.json()
    assert {key: envelope[key] for key in ("object", "first_id", "last_id", "has_more")} == {
        "object": "list",
        "first_id": files[2],
        "last_id": files[0],
        "has_more": False,
    }


def test_it_pages_with_a_cursor_that_is_stable_within_one_instant(api, upload):
    files = {upload(LINES)["id"] for _ in range(5)}
    File.objects.update(created_at=timezone.now())

    for order in ("asc", "desc"):
        seen, after = [], ""
        while True:
            answer = api.get("/v1/files", {"limit": 2, "order": order} | ({"after": after} if after else {})).json()
            seen += [file["id"] for file in answer["data"]]
            after = answer["data"][-1]["id"]
            if not answer["has_more"]:
                break
        assert len(seen) == 5
        assert set(seen) == files


def test_it_goes_on_behind_a_file_that_was_deleted_meanwhile(api, upload):
    first, second = upload(LINES)["id"], upload(LINES)["id"]
    api.delete(f"/v1/files/{second}")
    assert ids(api.get("/v1/files", {"after": second})) == [first]


def test_it_lists_one_purpose(api, upload):
    upload(LINES)
    other = upload(LINES, purpose="user_data")["id"]
    assert ids(api.get("/v1/files", {"purpose": "user_data"})) == [other]


def test_it_gives_an_empty_page(api):
    assert api.get("/v1/files").json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_it_lists_nothing_for_a_limit_of_zero(api, upload):
    upload(LINES)
    assert ids(api.get("/v1/files", {"limit": 0})) == []


def test_it_refuses_bad_cursors_limits_and_orders(api):
    for query, param, code in (
        ({"after": "file-nope"}, "after", "invalid_value"),
        ({"after": "file-\x00"}, "after", "invalid_value"),
        ({"limit": "-1"}, "limit", "integer_below_min_value"),
        ({"limit": "10001"}, "limit", "integer_above_max_value"),
        ({"limit": "many"}, "limit", "invalid_type"),
        ({"order": "up"}, "order", "invalid_value"),
    ):
        answer = api.get("/v1/files", query)
        assert answer.status_code == 400
        assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


def test_it_retrieves_one(api, upload):
    file = upload(LINES)
    assert api.get(f"/v1/files/{file['id']}").json() == file


def test_an_unknown_file_is_a_404_everywhere(api):
    for answer in (
        api.get("/v1/files/file-nope"),
        api.delete("/v1/files/file-nope"),
        api.get("/v1/files/file-nope/content"),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": "No such File object: file-nope",
            "type": "invalid_request_error",
            "param": "id",
            "code": None,
        }


def test_it_downloads_the_very_bytes(api, upload):
    content = b'{"custom_id": "\xc3\xa4"}\r\n\r\n'
    file = upload(content)
    answer = api.get(f"/v1/files/{file['id']}/content", HTTP_ACCEPT="application/binary")
    assert answer.status_code == 200
    assert answer["Content-Type"] == "application/octet-stream"
    assert answer["Content-Disposition"] == 'attachment; filename="in.jsonl"'
    assert answer.getvalue() == content


def test_it_refuses_to_download_what_openai_refuses(api, upload):
    file = upload(b"x", purpose="user_data", name="a.txt")
    answer = api.get(f"/v1/files/{file['id']}/content")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Not allowed to download files of purpose: user_data"


def stored_bytes(settings):
    return [path for path in settings.FILES_DIR.rglob("*") if path.is_file()]


def test_deleting_hides_it_and_removes_its_bytes(api, upload, settings):
    file = upload(LINES)

    answer = api.delete(f"/v1/files/{file['id']}")

    assert answer.json() == {"id": file["id"], "object": "file", "deleted": True}
    assert api.get(f"/v1/files/{file['id']}").status_code == 404
    assert ids(api.get("/v1/files")) == []
    assert stored_bytes(settings) == []


def test_an_expired_file_is_gone_and_the_sweep_removes_its_bytes(api, upload, settings):
    file = upload(LINES)
    File.objects.update(expires_at=timezone.now() - timedelta(seconds=1))

    assert api.get(f"/v1/files/{file['id']}").status_code == 404
    assert api.get(f"/v1/files/{file['id']}/content").status_code == 404
    assert len(stored_bytes(settings)) == 1
    retention.sweep()
    assert stored_bytes(settings) == []
    retention.sweep()


def test_the_sweep_removes_what_it_can_and_says_what_it_cannot(api, upload, settings):
    stuck, other = (File.objects.get(pk=upload(LINES)["id"]) for _ in range(2))
    path = settings.FILES_DIR / stuck.content.name
    path.unlink()
    (path / "something").mkdir(parents=True)
    File.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    with pytest.raises(OSError, match="not empty"):
        retention.sweep()
    assert not (settings.FILES_DIR / other.content.name).exists()
    (path / "something").rmdir()
    retention.sweep()
    assert not path.exists()


def test_bytes_that_somebody_holds_stay_until_released(api, upload, settings):
    file = File.objects.get(pk=upload(LINES)["id"])
    FileHold.objects.create(file=file, holder="batch_1")
    FileHold.objects.create(file=file, holder="batch_2")

    api.delete(f"/v1/files/{file.pk}")
    retention.sweep()
    assert len(stored_bytes(settings)) == 1
    retention.release("batch_1")
    assert len(stored_bytes(settings)) == 1
    retention.release("batch_2")
    assert stored_bytes(settings) == []


def test_releasing_the_last_hold_of_a_visible_file_keeps_it(upload, settings):
    file = File.objects.get(pk=upload(LINES)["id"])
    FileHold.objects.create(file=file, holder="batch_1")
    retention.release("batch_1")
    assert len(stored_bytes(settings)) == 1


def test_the_sweep_removes_what_killed_uploads_left_a_day_ago(db, settings):
    old, young = settings.UPLOAD_DIR / "old", settings.UPLOAD_DIR / "young"
    for path in (old, young):
        path.write_bytes(b"x")
    day_ago = time.time() - retention.LEFTOVER_AGE_S - 1
    os.utime(old, (day_ago, day_ago))
    retention.sweep()
    assert list(settings.UPLOAD_DIR.iterdir()) == [young]


def test_the_sweep_removes_old_bytes_without_a_row_and_no_others(api, upload, settings):
    """An upload, or a part of one, whose process was killed between storing the bytes and committing the row."""
    kept = upload(LINES)["id"]
    part = new_part(api)
    directory = settings.FILES_DIR / kept[5:7]
    orphans = [directory / "file-orphan", settings.FILES_DIR / "parts" / "part_orphan"]
    for path in orphans:
        path.write_bytes(b"x")
    (directory / "file-young").write_bytes(b"x")
    day_ago = time.time() - retention.LEFTOVER_AGE_S - 1
    for path in [*orphans, directory / kept, settings.FILES_DIR / "parts" / part]:
        os.utime(path, (day_ago, day_ago))

    for _ in range(2):  # each sweep looks into one directory
        retention.sweep()
    assert len(stored_bytes(settings)) == 5  # older than the database: they may be another's

    MigrationRecorder.Migration.objects.update(applied=timezone.now() - timedelta(days=30))
    for _ in range(2):
        retention.sweep()
    assert sorted(path.name for path in stored_bytes(settings)) == sorted([kept, "file-young", part])


def new_part(api):
    asked = {"filename": "in.jsonl", "purpose": "batch", "bytes": 1, "mime_type": "application/jsonl"}
    upload = api.post("/v1/uploads", asked, format="json").json()
    part = api.post(f"/v1/uploads/{upload['id']}/parts", {"data": SimpleUploadedFile("a", b"x")})
    return part.json()["id"]


def test_bytes_stay_for_the_sweep_if_nobody_knows_whether_their_row_was_stored(upload):
    """Postgres may be committing while it does not answer any more."""
    file = File.objects.get(pk=upload([line("a")])["id"])
    File.objects.filter(pk=file.pk).delete()
    name = file.content.name
    with pytest.raises(OperationalError), unless_stored(file):
        raise OperationalError("server closed the connection unexpectedly")
    assert default_storage.exists(name) is (connection.vendor == "postgresql")
    file.content.name = name
    with pytest.raises(ZeroDivisionError), unless_stored(file):
        raise ZeroDivisionError
    assert not default_storage.exists(name)
