"""What is kept in DATA_DIR: texts that are whole, and nothing that another user of the machine may read."""

import os
import stat
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from batchserver import first_start, kept, private
from tests.conftest import at_once

DAMAGED = [b"", b"\n", b" " * 80, b"\0" * 67, b"short", b"a" * 67, b"x" * 49, b"\xff" * 67, b"secret\0" * 10]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_text_that_is_none_is_made_anew_once(data, content, caplog):
    path = data / kept.SECRET_KEY
    path.write_bytes(content)
    path.chmod(0o644)
    [key] = set(at_once(8, lambda: kept.text(data, kept.SECRET_KEY)))
    assert (len(key), path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (67, key, 0o600)
    assert [each.name for each in data.iterdir()] == [kept.SECRET_KEY]
    assert [record.getMessage() for record in caplog.records] == ["secret_key was damaged, and is made anew"]


def test_a_good_one_stays(data):
    key = "".join(map(chr, range(40, 100)))
    (data / kept.SECRET_KEY).write_text(f"{key}\n")
    assert kept.text(data, kept.SECRET_KEY) == key


def test_it_is_on_the_disk_before_anybody_has_it(data, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    kept.text(data, kept.SECRET_KEY)
    assert Path(synced[0]).name.startswith(".secret_key.")
    assert synced[1:] == [str(data)]


def make_directory(path):
    path.mkdir()


def make_link_to_itself(path):
    path.symlink_to(path)


@pytest.mark.parametrize("make", [make_directory, make_link_to_itself])
def test_what_cannot_be_a_text_is_refused_with_a_word(tmp_path, settings, make):
    settings.DATA_DIR = tmp_path
    make(tmp_path / kept.SECRET_KEY)
    with pytest.raises(OSError, match=r"secret_key cannot be used: .+ Let this user read and write it, or remove it"):
        kept.text(tmp_path, kept.SECRET_KEY)


def test_a_start_closes_what_an_older_version_left_open(tmp_path, settings):
    settings.DATA_DIR = tmp_path / "data"
    settings.FILES_DIR, settings.UPLOAD_DIR = settings.DATA_DIR / "files", settings.DATA_DIR / "files" / ".incoming"
    outside = tmp_path / "outside"
    outside.write_text("of somebody else")
    outside.chmod(0o644)
    made = ["db.sqlite3", "db.sqlite3-wal", "db.sqlite3-shm", "backup/db.sqlite3", "files/ab/file-ab", "logs/run.log"]
    for name in made:
        path = settings.DATA_DIR / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        path.chmod(0o664)
        path.parent.chmod(0o775)
    (settings.DATA_DIR / "script").write_text("x")
    (settings.DATA_DIR / "script").chmod(0o755)
    (settings.DATA_DIR / "link").symlink_to(outside)

    first_start.make_directories()
    modes = {each: stat.S_IMODE(each.lstat().st_mode) for each in [settings.DATA_DIR, *settings.DATA_DIR.rglob("*")]}
    assert {mode for each, mode in modes.items() if each.is_dir()} == {0o700}
    assert {modes[settings.DATA_DIR / name] for name in made} == {0o600}
    assert modes[settings.DATA_DIR / "script"] == 0o700
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644

    new = settings.DATA_DIR / "new"
    new.write_text("x")
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["/", "/root", "/home/ann", "checkout", "/tmp", "/var", "/usr"])
def test_a_directory_that_holds_other_things_is_not_closed(settings, monkeypatch, name):
    monkeypatch.setattr(private, "make", lambda directory: None)  # of the machine of the tests, if this fails
    settings.DATA_DIR = settings.BASE_DIR if name == "checkout" else Path(name)
    before = settings.DATA_DIR.exists() and settings.DATA_DIR.stat().st_mode
    with pytest.raises(ImproperlyConfigured, match="expected a directory of its own"):
        first_start.make_directories()
    assert (settings.DATA_DIR.exists() and settings.DATA_DIR.stat().st_mode) == before


def test_the_home_of_a_services_own_user_will_do(tmp_path, settings, monkeypatch):
    settings.DATA_DIR = tmp_path / "service"
    monkeypatch.setenv("HOME", str(settings.DATA_DIR))
    first_start.make_directories()
    assert stat.S_IMODE(settings.DATA_DIR.stat().st_mode) == 0o700


def test_what_cannot_be_closed_is_told_and_no_reason_not_to_start(tmp_path, monkeypatch, caplog):
    (tmp_path / "of another user").write_text("x")
    (tmp_path / "of another user").chmod(0o644)

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    private.make(tmp_path)
    assert "of another user may be read by other users: Operation not permitted" in caplog.text
