"""A disk that is full, or nearly: nothing is lost and nothing half written, and work goes on once there is room."""

import resource
from contextlib import contextmanager

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from batches import presence
from batches.models import Backend
from files_api.models import File
from tests.conftest import custom_ids, line


@contextmanager
def files_end_at(most_bytes):
    """The kernel refuses to write any file beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def stored(settings):
    return [path for path in settings.FILES_DIR.rglob("*") if path.is_file()]


def send(api, content):
    return api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("a.jsonl", content)})


def test_an_upload_that_does_not_fit_is_a_507_and_leaves_nothing(api, settings):
    with files_end_at(100_000):
        answer = send(api, b'{"a": 1}\n' * 100_000)
    assert (answer.status_code, answer.json()["error"]["type"]) == (507, "server_error")
    assert stored(settings) == []
    assert not File.objects.exists()


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


def test_with_too_little_left_batches_wait_and_go_on_later(create, work, backend, settings):
    batch = create([line("a")])["id"]
    work.validate(batch)
    settings.MIN_FREE_BYTES = 2**62
    work.drive()
    assert backend.arrived() == []
    assert "MIN_FREE_BYTES" in Backend.objects.get().pause_reason
    assert "Make room" in presence.health()["reason"]
    settings.MIN_FREE_BYTES = 0
    assert work.run(batch)["request_counts"]["completed"] == 1


def test_a_drive_under_way_stops_sending(create, work, backend, settings):
    batch = create([line(f"id-{number}") for number in range(8)])["id"]
    work.validate(batch)
    backend.delay_s = 0.4

    def fill_up():
        if len(backend.arrived()) >= 2:
            settings.MIN_FREE_BYTES = 2**62
            presence.report_backend()
        return False

    work.drive(should_stop=fill_up)
    assert len(backend.arrived()) < 8
    settings.MIN_FREE_BYTES = 0
    assert work.run(batch)["request_counts"]["completed"] == 8
