"""Hosts with one database have one storage: what happens on a host that has another one, or none."""

import shutil
from datetime import timedelta

import pytest
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.utils import timezone

from files_api import retention, storage_id
from files_api.models import File, Storage, UploadPart
from files_api.storage import opened
from tests.conftest import line

LINES = [line("a")]
on_postgres = pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite's database is that of one host")


def seen(ago_s):
    """A process of another host works with the storage of the database, or did so."""
    Storage.objects.update(seen_at=timezone.now() - timedelta(seconds=ago_s))


@pytest.fixture
def host(settings, tmp_path):
    """Be on the host of this name, which has a storage of its own from then on."""

    def go_to(name):
        place = tmp_path / name
        (place / ".incoming").mkdir(parents=True, exist_ok=True)
        settings.FILES_DIR, settings.UPLOAD_DIR = place, place / ".incoming"
        options = {"OPTIONS": {"location": str(place)}}
        settings.STORAGES = settings.STORAGES | {"default": settings.STORAGES["default"] | options}
        return place

    return go_to


def refused():
    with pytest.raises(storage_id.WrongStorage) as caught:
        storage_id.settle()
    return storage_id.at_start(caught.value)


def test_the_first_start_gives_the_storage_an_id_and_the_next_one_changes_nothing(db, settings):
    assert storage_id.trouble() == ""  # nobody has given it one
    storage_id.settle()
    given = (settings.FILES_DIR / "storage_id").read_text().strip()
    assert given == storage_id.expected() == storage_id.read()
    storage_id.settle()
    assert storage_id.read() == given
    assert storage_id.trouble() == ""
    storage_id.check()


def test_an_update_gives_an_id_to_the_storage_that_has_the_files(api, upload, host):
    place = host("first")
    upload(LINES)
    host("second")  # begins first, and does not have them
    assert "None of the files of the database is in the storage of this host" in refused()
    assert storage_id.expected() is None
    host("first")
    storage_id.settle()
    assert (place / "storage_id").exists()


def test_a_file_that_was_lost_long_ago_keeps_nobody_from_the_update(api, upload, settings):
    lost, _ = upload(LINES), upload(LINES)
    default_storage.delete(File.objects.get(pk=lost["id"]).content.name)
    storage_id.settle()
    assert storage_id.read()


@pytest.mark.parametrize(
    "how", ["a directory of its own", "a mount that is missing", "an id of another", "no file left"]
)
def test_a_host_without_the_files_does_not_start(how, api, upload, host):
    shared = host("shared")
    storage_id.settle()
    wanted = storage_id.expected()
    upload(LINES)
    place = host("other")
    if how == "a mount that is missing":
        shutil.rmtree(place)
    elif how == "an id of another":
        (place / "storage_id").write_text("1234\n")
    elif how == "no file left":
        shutil.copy(shared / "storage_id", place)
        (place / "storage_id").write_bytes(b"")
    told = refused()
    assert wanted in told
    assert str(place) in told
    assert "setup --take-storage" in told
    assert not (place / "storage_id").exists() or how in ("an id of another", "no file left")
    host("shared")
    storage_id.settle()


def test_a_host_without_files_does_not_start_beside_one_that_works_even_before_the_first_upload(db, host):
    host("first")
    storage_id.settle()
    storage_id.note_seen()
    host("second")
    assert "has no id" in refused()


@pytest.mark.parametrize("ago_s", [None, 90])
def test_while_nothing_is_stored_and_nobody_works_another_storage_may_take_its_place(ago_s, db, host):
    """The directory was emptied, or a container of its own made the tables."""
    host("first")
    storage_id.settle()
    before = storage_id.expected()
    if ago_s is not None:
        seen(ago_s)
    place = host("second")
    storage_id.settle()
    assert storage_id.expected() != before
    assert (place / "storage_id").read_text().strip() == storage_id.expected()
    host("first")
    assert "has the id" in storage_id.trouble()


def test_a_person_may_say_that_the_files_are_gone(api, upload, host):
    host("first")
    storage_id.settle()
    upload(LINES)
    host("second")
    refused()
    storage_id.take()
    storage_id.settle()
    assert storage_id.trouble() == ""
    host("first")
    assert "has the id" in storage_id.trouble()


def test_a_database_that_begins_anew_beside_its_files_takes_their_storage(db, settings):
    if connection.vendor != "sqlite":
        pytest.skip("of SQLite, whose database lies beside the files")
    (settings.FILES_DIR / "storage_id").write_text("abcd\n")
    storage_id.settle()
    assert storage_id.expected() == "abcd"


@on_postgres
def test_a_new_database_does_not_take_the_storage_of_another(db, settings):
    (settings.FILES_DIR / "storage_id").write_text("abcd\n")
    assert "belongs to another database (its id is abcd), and this database is new" in refused()


def test_a_restored_database_from_before_ids_takes_the_storage_that_has_its_files(api, upload, settings):
    upload(LINES)
    (settings.FILES_DIR / "storage_id").write_text("abcd\n")
    storage_id.settle()
    assert storage_id.expected() == "abcd"


def test_one_that_works_says_so_now_and_then(db):
    storage_id.settle()
    storage_id.note_seen()
    first = Storage.objects.get().seen_at
    storage_id.note_seen()
    assert Storage.objects.get().seen_at == first
    seen(30)
    storage_id.note_seen()
    assert Storage.objects.get().seen_at >= first


# What a running process does whose storage is another one


@pytest.fixture
def lost(api, upload, host):
    """The storage is not mounted any more. Gives the file that is stored in it, and an upload that is begun."""
    host("shared")
    storage_id.settle()
    file = upload(LINES)
    begun = api.post(
        "/v1/uploads",
        {"filename": "a", "purpose": "batch", "bytes": 3, "mime_type": "application/jsonl"},
        format="json",
    ).json()
    place = host("empty")
    return file, begun, place


def test_it_stores_nothing_that_nobody_finds(lost, api):
    _, begun, place = lost
    answer = api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("in.jsonl", b"{}\n")})
    assert answer.status_code == 507
    assert "has no id" in answer.json()["error"]["message"]
    answer = api.post(f"/v1/uploads/{begun['id']}/parts", {"data": SimpleUploadedFile("a", b"abc")})
    assert answer.status_code == 507
    assert (File.objects.count(), UploadPart.objects.count()) == (1, 0)
    assert [path for path in place.rglob("*") if path.is_file()] == []


def test_a_download_is_not_now_and_after_the_deletion_is_none(lost, api):
    file, _, _ = lost
    answer = api.get(f"/v1/files/{file['id']}/content")
    assert (answer.status_code, answer["Retry-After"]) == (503, "30")
    api.delete(f"/v1/files/{file['id']}")
    assert api.get(f"/v1/files/{file['id']}/content").status_code == 404


def test_it_sweeps_nothing(lost):
    file, _, _ = lost
    File.objects.update(deleted_at=timezone.now())
    with pytest.raises(OSError, match="has no id"):
        retention.sweep()
    assert File.objects.get(pk=file["id"]).content


def test_a_file_that_is_there_by_half_is_not_given_out(api, upload, settings):
    file = File.objects.get(pk=upload(LINES)["id"])
    path = settings.FILES_DIR / file.content.name
    path.write_bytes(path.read_bytes()[:-1])
    answer = api.get(f"/v1/files/{file.pk}/content")
    assert answer.status_code == 503
    assert "A part of the file is missing" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["row is deleted", "row is hidden", "bytes were removed"])
def test_what_was_removed_after_the_row_was_read_is_a_404(name, api, upload, settings):
    """As a request does that is overtaken: it has read the row already."""
    file = File.objects.get(pk=upload(LINES)["id"])
    default_storage.delete(file.content.name)
    {
        "row is deleted": lambda: File.objects.all().delete(),
        "row is hidden": lambda: File.objects.update(deleted_at=timezone.now()),
        "bytes were removed": lambda: File.objects.update(content=""),
    }[name]()
    with pytest.raises(Exception, match="No such File object") as caught:
        opened(file.pk, file.content)
    assert caught.value.status == 404
