"""A backup of a server that is at work, and its way back: every row, its bytes, and each line answered once."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.utils import timezone

from batches.models import Lease, Line, Pulse
from batchserver import backup, locks
from files_api import storage_id
from files_api.models import File, UploadPart
from tests.conftest import _empty_tables, custom_ids, jsonl, line, use_bucket
from tests.fake_backend import Action
from tests.s3 import BUCKET, KEY, SECRET
from tests.stack import ROOT, Stack, eventually
from tests.whole_server import client_of, finish, lines_of, submit

IDS = [f"line {number}" for number in range(8)]


def lose_everything(settings):
    """Another machine: its database is empty, and so is its storage."""
    _empty_tables(None)
    for each in settings.FILES_DIR.iterdir():
        if each != settings.UPLOAD_DIR:
            shutil.rmtree(each)


def stored(settings):
    return {
        path.relative_to(settings.FILES_DIR).as_posix(): path.read_bytes()
        for path in settings.FILES_DIR.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def batch(create, work, backend, settings):
    """A batch in the middle of its work: three of its lines are answered, and the worker was stopped."""
    settings.SHUTDOWN_GRACE_S = 0.1
    batch_id = create([line(each) for each in IDS])["id"]
    work.validate(batch_id)
    for each in IDS[3:]:
        backend.always(each, Action(hang=True))
    work.in_flight = 8
    work.drive(should_stop=lambda: len(backend.arrived(answered=True)) == 3)
    backend.forget()
    assert work.batch(batch_id)["request_counts"]["completed"] == 3
    return batch_id


def test_a_batch_goes_on_where_the_backup_was_taken(work, backend, batch, settings, tmp_path):
    backup.take(tmp_path / "backup")
    rows = Line.objects.count()
    lose_everything(settings)

    listed = backup.restore(tmp_path / "backup")

    assert (listed.files, Line.objects.count()) == (1, rows)
    assert work.batch(batch)["request_counts"]["completed"] == 3
    done = work.run(batch)
    assert done["status"] == "completed"
    assert custom_ids(work.content(done["output_file_id"])) == IDS
    # What was answered before the backup is not asked again.
    assert set(Counter(backend.arrived(answered=True)).values()) == {1}


def test_a_batch_whose_files_are_in_s3_goes_on_in_another_bucket(s3, work, backend, batch, settings, tmp_path):
    backup.take(tmp_path / "backup")
    bucket = settings.STORAGES["default"]["OPTIONS"]
    default_storage.delete(File.objects.get().content.name)  # nothing of the old one is needed
    _empty_tables(None)
    use_bucket(settings, **bucket | {"location": f"{bucket['location']}-restored"})

    listed = backup.restore(tmp_path / "backup")

    assert listed.files == 1
    assert storage_id.trouble() == ""
    done = work.run(batch)
    assert done["status"] == "completed"
    assert custom_ids(work.content(done["output_file_id"])) == IDS
    assert set(Counter(backend.arrived(answered=True)).values()) == {1}


def test_what_ends_after_the_rows_were_read_is_done_again(work, backend, batch, settings, tmp_path):
    """The input file is deleted and the batch over while the backup is taken: its rows need the bytes."""
    file = File.objects.get()
    told = []

    def go_on(progress):
        told.append(progress)
        if len(told) == 1:
            file.hide()
            work.run(batch)

    backup.take(tmp_path / "backup", tell=go_on)
    assert work.batch(batch)["status"] == "completed"
    lose_everything(settings)
    backup.restore(tmp_path / "backup")
    done = work.run(batch)
    assert custom_ids(work.content(done["output_file_id"])) == IDS


def test_bytes_that_go_while_the_rows_are_read_are_in_the_backup(upload, work, settings, tmp_path):
    """A file that is deleted between the copy of the files and the reading of the rows, and one that comes then."""
    first, second = upload([line("first")])["id"], None

    def meanwhile(_):
        nonlocal second
        if second is None:
            second = upload([line("second")])["id"]

    backup.take(tmp_path / "backup", tell=meanwhile)
    lose_everything(settings)
    backup.restore(tmp_path / "backup")
    assert {each.pk for each in File.objects.all()} == {first, second}
    assert sorted(stored(settings).values()) == sorted([jsonl([line("first")]), jsonl([line("second")])])


def test_a_file_that_comes_and_goes_meanwhile_is_in_none_of_the_rows(upload, work, settings, tmp_path):
    """Its row is read, and its bytes are gone before they are copied: the rows are read again."""
    file_id = upload([line("first")])["id"]
    lost = File.objects.get(pk=file_id)
    Path(lost.content.path).unlink()  # as if it came after the first copy, and went after its row was read
    told = []

    def meanwhile(progress):
        told.append(progress)
        if "reading the rows again" in progress:
            lost.hide()

    listed = backup.take(tmp_path / "backup", tell=meanwhile)
    assert (listed.missing, len(told)) == ([], 2)
    lose_everything(settings)
    backup.restore(tmp_path / "backup")
    assert not File.objects.all().visible().exists()


def test_bytes_that_the_storage_has_lost_are_named_and_stop_no_backup(upload, work, settings, tmp_path, capsys):
    whole, lost, short = (upload([line(each)])["id"] for each in ("whole", "lost", "short"))
    Path(File.objects.get(pk=lost).content.path).unlink()
    Path(File.objects.get(pk=short).content.path).write_bytes(b"{}")
    call_command("backup", tmp_path / "backup")
    assert "does not have the bytes of 2 files" in capsys.readouterr().err
    listed = json.loads((tmp_path / "backup" / "backup.json").read_text())
    assert (listed["files"], len(listed["missing"])) == (1, 2)
    assert all(any(each in name for name in listed["missing"]) for each in (lost, short))
    lose_everything(settings)
    backup.restore(tmp_path / "backup")
    kept = File.objects.get(pk=whole)
    assert kept.content.storage.size(kept.content.name) == kept.bytes


def test_the_parts_of_an_upload_come_back_too(api, work, settings, tmp_path):
    content = jsonl([line("a"), line("b")])
    request = {"filename": "in.jsonl", "purpose": "batch", "bytes": len(content), "mime_type": "application/jsonl"}
    upload_id = api.post("/v1/uploads", request, format="json").json()["id"]
    parts = []
    for piece in (content[:50], content[50:]):
        answer = api.post(f"/v1/uploads/{upload_id}/parts", {"data": SimpleUploadedFile("part", piece)})
        parts.append(answer.json()["id"])
    backup.take(tmp_path / "backup")
    lose_everything(settings)
    backup.restore(tmp_path / "backup")
    assert UploadPart.objects.count() == 2
    completed = api.post(f"/v1/uploads/{upload_id}/complete", {"part_ids": parts}, format="json")
    assert completed.status_code == 200
    assert completed.json()["file"]["bytes"] == len(content)


def test_files_are_linked_and_not_copied_where_that_can_be(upload, work, settings, tmp_path):
    upload([line("a")])
    backup.take(tmp_path / "backup")
    [copy] = [path for path in (tmp_path / "backup" / "files").rglob("*") if path.is_file()]
    [original] = [path for path in settings.FILES_DIR.rglob("*") if path.is_file()]
    assert copy.samefile(original)
    # And what is put back is none of the backup's: an older backup stays what it was.
    lose_everything(settings)
    backup.restore(tmp_path / "backup")
    [restored] = [path for path in settings.FILES_DIR.rglob("*") if path.is_file()]
    assert not restored.samefile(copy)


def test_numbers_that_were_given_are_given_to_nobody_else(work, backend, batch, settings, tmp_path):
    """The id of a lease is a token: a worker that was frozen since before the backup must not hold a later one."""
    last = Lease.objects.create(purpose="drive", expires_at=timezone.now() + timedelta(seconds=30), host="h", pid=1)
    last_id = last.pk
    last.delete()
    backup.take(tmp_path / "backup")
    lose_everything(settings)
    backup.restore(tmp_path / "backup")
    again = Lease.objects.create(purpose="drive", expires_at=timezone.now() + timedelta(seconds=30), host="h", pid=1)
    assert again.pk > last_id


def test_keys_come_back_and_are_nobody_elses(upload, work, settings, tmp_path):
    settings.DATA_DIR = tmp_path / "old"
    settings.DATA_DIR.mkdir()
    (settings.DATA_DIR / "secret_key").write_text("k" * 60)
    upload([line("a")])
    backup.take(tmp_path / "backup")
    lose_everything(settings)
    settings.DATA_DIR = tmp_path / "new"
    settings.DATA_DIR.mkdir()
    backup.restore(tmp_path / "backup")
    key = settings.DATA_DIR / "secret_key"
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("k" * 60, 0o600)
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0


# What is refused


def refused(path):
    with pytest.raises(backup.CannotGoOn) as error:
        backup.restore(path)
    return str(error.value)


@pytest.fixture
def taken(upload, work, settings, tmp_path):
    upload([line("a")])
    backup.take(tmp_path / "backup")
    return tmp_path / "backup"


def change(path, **changes):
    listed = json.loads((path / "backup.json").read_text()) | changes
    (path / "backup.json").write_text(json.dumps(listed))


def test_a_directory_that_has_something_is_no_place_for_a_backup(taken, tmp_path):
    with pytest.raises(backup.CannotGoOn, match=r"has a backup already\. Name a directory that is empty"):
        backup.take(taken)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(CommandError, match=r"There is no backup: .* is not empty already"):
        call_command("backup", tmp_path / "other")


def test_what_is_no_whole_backup_is_not_restored(taken, settings):
    lose_everything(settings)
    change(taken, format=2)
    assert "is a backup of form 2; this version reads 1" in refused(taken)
    (taken / "backup.json").write_text('{"format": ')
    assert "is damaged" in refused(taken)
    (taken / "backup.json").unlink()
    assert "is no backup, or one that was not finished: it has no backup.json" in refused(taken)
    assert not File.objects.exists()


def test_a_backup_of_another_database_or_of_a_newer_version_is_not_restored(taken, settings):
    lose_everything(settings)
    listed = json.loads((taken / "backup.json").read_text())
    change(taken, migrations=[*listed["migrations"], ["batches", "9999_of_tomorrow"]], version="99.0")
    assert "The backup is of version 99.0, which is newer than this code" in refused(taken)
    change(taken, vendor="oracle")
    assert f"is one of oracle, and DATABASE_URL leads to {connection.vendor}" in refused(taken)


def test_nothing_that_is_there_is_replaced(taken, settings):
    assert "The database has files already. A backup is restored into an empty one" in refused(taken)
    lose_everything(settings)
    Pulse.stamp("ticked")
    assert "A control worker was at work with this database in the last 30 seconds" in refused(taken)
    Pulse.objects.update(at=timezone.now() - timedelta(minutes=1))
    assert not File.objects.exists()
    backup.restore(taken)
    assert File.objects.exists()


@pytest.fixture(params=["disk", "s3"])
def storage(request, processes):
    if request.param == "s3":
        request.getfixturevalue("s3")


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize("case", ["it is at work", "nothing came since", "a try that broke off"])
def test_a_storage_that_another_server_may_use_is_not_taken(upload, work, tmp_path, case):
    storage_id.settle()
    upload([line("a")])
    backup.take(tmp_path / "backup")
    later = upload([line("b")])["id"] if case == "it is at work" else None
    if case == "a try that broke off":
        default_storage.delete(storage_id.OBJECT)
    default_storage.save("other/notes.txt", ContentFile(b"not ours"))  # a bucket may have other things in it
    names = [File.objects.get(pk=later).content.name] if later else []
    _empty_tables(None)
    if case != "a try that broke off":
        told = refused(tmp_path / "backup")
        assert f"The storage of files ({storage_id.where()}) has files of a server already" in told
        assert not File.objects.exists()
        for name in [*names, storage_id.OBJECT]:
            default_storage.delete(name)
    backup.restore(tmp_path / "backup")
    assert File.objects.exists()
    assert storage_id.trouble() == ""
    assert storage_id.read() is not None


def test_a_server_that_runs_is_not_overwritten(taken, settings, tmp_path):
    settings.DATA_DIR = tmp_path / "data"
    settings.DATA_DIR.mkdir()
    settings.FILES_DIR, settings.UPLOAD_DIR = tmp_path / "data" / "files", tmp_path / "data" / "files" / ".incoming"
    with (
        locks.take(settings.DATA_DIR / locks.SERVER),
        pytest.raises(CommandError, match="A server runs with DATA_DIR="),
    ):
        call_command("restore", taken)


# A server in real processes


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_a_server_that_works_is_backed_up_and_another_goes_on(where, request, tmp_path, fake):
    bucket = {}
    if where == "s3":
        at = request.getfixturevalue("s3_server").url
        key = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        bucket = key | {"AWS_STORAGE_BUCKET_NAME": BUCKET, "AWS_S3_ENDPOINT_URL": at}
    with ExitStack() as stack:
        old, new = (
            Stack(tmp_path / name, {"OLLAMA_BASE_URL": fake.url, "AWS_LOCATION": name if bucket else ""} | bucket)
            for name in ("old", "new")
        )
        for each in (old, new):
            stack.callback(each.stop)
        old.start()
        ids = [f"line {number:03d}" for number in range(200)]
        fake.delay_s = 0.5  # it would be at work for a minute
        batch_id = submit(client_of(old), [line(each) for each in ids]).id

        def completed(server):
            return client_of(server).batches.retrieve(batch_id).request_counts.completed

        eventually(lambda: completed(old), what="the first lines")
        manage(old, "backup", str(tmp_path / "backup"))
        at_backup = completed(old)
        assert at_backup < len(ids), "it was over before the backup was"
        fake.delay_s = 0.0
        eventually(lambda: completed(old) > at_backup, what="more lines after the backup")
        old.stop()

        new.data_dir.mkdir()
        assert "go on when the server starts" in manage(new, "restore", str(tmp_path / "backup"))
        new.start()
        client = client_of(new)
        batch = finish(client, batch_id)
        assert (batch.status, batch.request_counts.completed) == ("completed", len(ids))
        assert custom_ids(lines_of(client, batch.output_file_id)) == ids


def manage(server, *arguments):
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=os.environ | server.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
