"""A disk that is full, or nearly: nothing is lost and nothing half written, and work goes on once there is room."""

import errno
import io
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError, connection

from batches import registry
from batches.models import Backend
from batches.status import conditions, health
from common import disk
from files_api import storage
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


FAILING = ["EROFS", "EIO", "ENOSPC", "EDQUOT", "EACCES", "EPERM", "ESTALE", "ENODEV"]


def failing(monkeypatch, place, name):
    """Let this call of the system fail as a disk lets it."""
    error = OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    def fail(*args, **kwargs):
        raise error

    module, function = place
    monkeypatch.setattr(module, function, fail)
    return error.strerror


def begin_upload(api):
    asked = {"filename": "a.jsonl", "purpose": "batch", "bytes": 3, "mime_type": "text/jsonl"}
    return api.post("/v1/uploads", asked, format="json").json()["id"]


def add_part(api, upload_id):
    return api.post(f"/v1/uploads/{upload_id}/parts", {"data": SimpleUploadedFile("upload", b"{}\n")})


@pytest.mark.parametrize(
    "place", [(storage, "NamedTemporaryFile"), (os, "fsync"), (os, "replace")], ids=lambda it: it[1]
)
@pytest.mark.parametrize("name", FAILING)
def test_what_a_failing_disk_does_not_take_is_a_507_with_the_reason(api, monkeypatch, settings, name, place):
    upload_id = begin_upload(api)
    joined = begin_upload(api)
    part_id = add_part(api, joined).json()["id"]
    before = stored(settings)
    reason = failing(monkeypatch, place, name)
    join = {"part_ids": [part_id]}
    answers = [send(api, b"{}\n"), add_part(api, upload_id)]
    answers.append(api.post(f"/v1/uploads/{joined}/complete", join, format="json"))
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["type"]) == (507, "server_error")
        told = answer.json()["error"]["message"]
        assert "no room" in told or reason in told
    assert not File.objects.exists()
    assert [each.check for each in conditions.by_disk()] == (["disk"] if place[0] is storage else [])
    monkeypatch.undo()
    assert stored(settings) == before
    assert send(api, b"{}\n").status_code == 200
    assert api.post(f"/v1/uploads/{joined}/complete", join, format="json").status_code == 200


@pytest.mark.parametrize("name", ["EROFS", "EIO", "ENOSPC", "EACCES"])
def test_a_batch_waits_for_a_disk_that_fails_at_its_end(api, create, work, backend, monkeypatch, name):
    batch = create([line("a")])["id"]
    work.validate(batch)
    work.drive()
    reason = failing(monkeypatch, (storage, "NamedTemporaryFile"), name)
    work.finalize(batch)
    assert work.batch(batch)["status"] == "finalizing"
    assert reason in api.get(f"/v1/batches/{batch}/progress").json()["waiting_for"]
    monkeypatch.undo()
    work.finalize(batch)
    assert work.batch(batch)["status"] == "completed"


MESSAGES = {
    "attempt to write a readonly database": "write in DATA_DIR",
    "disk I/O error": "in order",
    "database or disk is full": "Make room",
    "unable to open database file": "write in DATA_DIR",
}
sqlite = pytest.mark.skipif(connection.vendor != "sqlite", reason="these are messages of SQLite")


@sqlite
def test_a_database_that_takes_no_changes_is_a_507_to_who_sends_and_serves_who_reads(transactional_db, api, create):
    batch = create([line("a")])["id"]
    # SQLite's error is then that of a disk that is read-only.
    connection.connection.execute("PRAGMA query_only = ON")
    try:
        answers = [send(api, b"{}\n"), api.post(f"/v1/batches/{batch}/cancel"), api.post("/v1/batches/pause")]
        assert api.get(f"/v1/batches/{batch}").status_code == 200
    finally:
        connection.connection.execute("PRAGMA query_only = OFF")
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["type"]) == (507, "server_error")
        assert "attempt to write a readonly database" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("message", "advice"), MESSAGES.items())
def test_what_sqlite_says_of_its_disk_is_told_with_what_to_do(message, advice):
    assert message in disk.database_trouble(OperationalError(message))
    assert advice in disk.database_trouble(OperationalError(message))
    assert disk.database_trouble(OperationalError("database is locked")) == ""


def other_things(path, tmp_path):
    """What may lie at the place of a stored file, made there one after the other."""
    yield "directory", lambda: path.mkdir()
    yield "pipe", lambda: os.mkfifo(path)
    yield "link out", lambda: path.symlink_to(tmp_path / "secret")
    yield "broken link", lambda: path.symlink_to(tmp_path / "nowhere")
    yield "link to itself", lambda: path.symlink_to(path)
    yield "socket", lambda: bound(path)


def bound(path):
    place = tempfile.mkdtemp()
    with socket.socket(socket.AF_UNIX) as it:  # the path of a socket is short
        it.bind(f"{place}/s")
    os.rename(f"{place}/s", path)
    os.rmdir(place)


def removed(path):
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.mark.timeout(60)
def test_what_is_no_file_any_more_is_a_404_that_says_so(api, admin_client, create, work, backend, tmp_path):
    (tmp_path / "secret").write_text("secret")
    batch = create([line("a")])["id"]
    work.run(batch)
    done = work.batch(batch)
    paths = [f"/v1/files/{done[name]}/content" for name in ("input_file_id", "output_file_id")]
    paths += [f"/v1/batches/{batch}/output", f"/v1/files/{done['output_file_id']}/content?offset=0"]
    files = [File.objects.get(pk=done[name]) for name in ("input_file_id", "output_file_id")]
    for index in range(6):
        for file in files:
            path = settings_path(file)
            removed(path)
            name, make = list(other_things(path, tmp_path))[index]
            make()
        for url in paths:
            answer = api.get(url)
            assert answer.status_code == 404, (name, url)
            assert "secret" not in str(answer.json())
        for kind in ("input", "output"):
            assert admin_client.get(f"/admin/batches/batch/{batch}/download/{kind}/").status_code == 404, name
        assert api.post(f"/v1/batches/{batch}/retry").status_code < 500


def test_what_has_a_row_and_is_not_on_this_host_is_a_503_and_is_there_again_later(
    api, admin_client, create, work, backend
):
    batch = create([line("a")])["id"]
    work.run(batch)
    done = work.batch(batch)
    paths = [f"/v1/files/{done[name]}/content" for name in ("input_file_id", "output_file_id")]
    paths += [f"/v1/batches/{batch}/output"]
    files = [File.objects.get(pk=done[name]) for name in ("input_file_id", "output_file_id")]
    kept = {settings_path(file): settings_path(file).read_bytes() for file in files}
    for path in kept:
        path.unlink()
    for url in paths:
        answer = api.get(url)
        assert answer.status_code == 503, url
        assert "cannot be read now. No such file or directory." in answer.json()["error"]["message"]
    assert api.post(f"/v1/batches/{batch}/retry").status_code == 503
    page = f"/admin/batches/batch/{batch}/download"
    for kind in ("input", "output"):
        answer = admin_client.get(f"{page}/{kind}/")
        assert (answer.status_code, b"No such file or directory" in answer.content) == (503, True)
    for path, content in kept.items():
        path.write_bytes(content)
    assert all(api.get(url).getvalue() for url in paths)

    api.delete(f"/v1/files/{done['output_file_id']}")
    assert api.get(paths[1]).status_code == 404


def settings_path(file):
    return Path(file.content.path)


@pytest.mark.parametrize("name", ["EIO", "EACCES", "ESTALE"])
def test_a_file_that_cannot_be_read_now_is_a_503_with_the_reason(api, monkeypatch, name):
    file_id = send(api, b"{}\n").json()["id"]
    reason = failing(monkeypatch, (storage, "_without_links"), name)
    answer = api.get(f"/v1/files/{file_id}/content")
    assert answer.status_code == 503
    assert reason in answer.json()["error"]["message"]
    assert "Retry-After" in answer.headers


@pytest.mark.parametrize("is_beside", [False, True])
def test_a_directory_that_leads_out_is_not_followed(api, settings, tmp_path, is_beside):
    """Nor if it leads to one beside, whose name begins alike."""
    moved = settings.FILES_DIR.with_name(f"{settings.FILES_DIR.name}-moved") if is_beside else tmp_path / "moved"
    file_id = send(api, b"{}\n").json()["id"]
    directory = settings_path(File.objects.get(pk=file_id)).parent
    assert directory != settings.FILES_DIR
    directory.rename(moved)
    try:
        directory.symlink_to(moved)
        assert api.get(f"/v1/files/{file_id}/content").status_code == 404
    finally:
        directory.unlink()
        moved.rename(directory)
    assert api.get(f"/v1/files/{file_id}/content").getvalue() == b"{}\n"
