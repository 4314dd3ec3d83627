"""A disk that is full, or nearly: nothing is lost and nothing half written, and work goes on once there is room."""

import io
import shutil

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from batches import registry
from batches.models import Backend
from batches.status import health
from files_api.models import File
from tests.conftest import custom_ids, line
from tests.disk import files_end_at, stored


def send(api, content):
    return api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("a.jsonl", content)})


def test_an_upload_that_does_not_fit_is_a_507_and_leaves_nothing(api, settings):
    with files_end_at(100_000):
        answer = send(api, b'{"a": 1}\n' * 100_000)
    assert (answer.status_code, answer.json()["error"]["type"]) == (507, "server_error")
    assert stored(settings) == []
    assert not File.objects.exists()


@pytest.mark.slow
def test_result_files_that_do_not_fit_are_written_once_there_is_room(create, work, backend, settings):
    batch = create([line(f"id-{number}") for number in range(40)])["id"]
    work.validate(batch)
    work.drive()
    before = stored(settings)
    with files_end_at(4096):
        work.finalize(batch)
    assert work.batch(batch)["status"] == "finalizing"
    assert stored(settings) == before
    work.finalize(batch)
    done = work.batch(batch)
    assert done["status"] == "completed"
    assert len(custom_ids(work.content(done["output_file_id"]))) == 40


@pytest.fixture
def nearly_full(settings):
    """More has to stay free than any disk has."""
    settings.MIN_FREE_BYTES = 2**62
    return settings


def test_with_too_little_left_uploads_are_refused(api, nearly_full):
    assert send(api, b"{}\n").status_code == 507
    upload = {"filename": "a.jsonl", "purpose": "batch", "bytes": 3, "mime_type": "text/jsonl"}
    upload_id = api.post("/v1/uploads", upload, format="json").json()["id"]
    part = {"data": SimpleUploadedFile("upload", b"{}\n")}
    assert api.post(f"/v1/uploads/{upload_id}/parts", part).status_code == 507


def test_an_upload_of_unknown_length_is_refused_on_the_way(api, settings, monkeypatch):
    monkeypatch.setattr("files_api.upload_handler.LOOK_EVERY_BYTES", 100_000)
    free = shutil.disk_usage(settings.FILES_DIR).free
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + b"{}\n" * 200_000
    settings.MIN_FREE_BYTES = free - 100_000_000  # enough when it begins

    class Filling(io.BytesIO):
        def read(self, *args):
            settings.MIN_FREE_BYTES = 2**62  # and too little meanwhile
            return super().read(*args)

    answer = api.generic(
        "POST",
        "/v1/files",
        body + b"\r\n--b--\r\n",
        content_type="multipart/form-data; boundary=b",
        HTTP_TRANSFER_ENCODING="chunked",
        **{"wsgi.input": Filling(body + b"\r\n--b--\r\n")},
    )
    assert answer.status_code == 507
    assert stored(settings) == []


def test_joining_needs_room_too(api, settings):
    upload = {"filename": "a.jsonl", "purpose": "batch", "bytes": 3, "mime_type": "text/jsonl"}
    upload_id = api.post("/v1/uploads", upload, format="json").json()["id"]
    part = api.post(f"/v1/uploads/{upload_id}/parts", {"data": SimpleUploadedFile("upload", b"{}\n")}).json()["id"]
    settings.MIN_FREE_BYTES = 2**62
    complete = {"part_ids": [part]}
    assert api.post(f"/v1/uploads/{upload_id}/complete", complete, format="json").status_code == 507
    settings.MIN_FREE_BYTES = 0
    assert api.post(f"/v1/uploads/{upload_id}/complete", complete, format="json").status_code == 200


def test_with_too_little_left_batches_wait_and_go_on_later(create, work, backend, settings):
    batch = create([line("a")])["id"]
    work.validate(batch)
    settings.MIN_FREE_BYTES = 2**62
    work.drive()
    assert backend.arrived() == []
    assert "MIN_FREE_BYTES" in Backend.objects.get().pause_reason
    assert "Make room" in health.summary()["reason"]
    settings.MIN_FREE_BYTES = 0
    assert work.run(batch)["request_counts"]["completed"] == 1


@pytest.mark.slow
def test_a_drive_under_way_stops_sending(create, work, backend, settings):
    batch = create([line(f"id-{number}") for number in range(16)])["id"]
    work.validate(batch)
    backend.delay_s = 0.4

    def fill_up():
        if len(backend.arrived()) >= 2:
            settings.MIN_FREE_BYTES = 2**62
            registry.report_backend()
        return False

    work.drive(should_stop=fill_up)
    assert len(backend.arrived()) < 16
    settings.MIN_FREE_BYTES = 0
    assert work.run(batch)["request_counts"]["completed"] == 16
