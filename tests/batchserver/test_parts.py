"""Parts of a server by themselves: which processes they are, what they need, and how they join the others."""

import os
import subprocess
import sys
import time

import pytest
import requests
from django.core.exceptions import ImproperlyConfigured
from django.db.migrations.recorder import MigrationRecorder

from batchserver import joining, parts, program, serve_options
from common import schema
from files_api import storage_id
from tests.conftest import CHAT, line
from tests.fake_backend import FakeBackend
from tests.stack import ROOT, Stack, eventually
from tests.whole_server import client_of, finish, lines_of, submit

SERVE = [sys.executable, "manage.py", "serve"]
FIRST_AND_SECOND = ("first:1b", "second:1b")


# Which parts


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ([], ("web", "control", "inference")),
        (["--only", "inference"], ("inference",)),
        (["--only", "control,web"], ("web", "control")),
        (["--only", "control", "--only=web"], ("web", "control")),
        (["--only", " inference , web "], ("web", "inference")),
        (["--only", "web,web"], ("web",)),
        (["--only", "inference,web,control"], ("web", "control", "inference")),
    ],
)
def test_the_parts_that_are_named_start_in_their_order(given, chosen):
    parser = serve_options.argparse.ArgumentParser()
    serve_options.add_arguments(parser)
    assert serve_options.chosen_parts(parser.parse_args(given).only) == chosen


@pytest.mark.parametrize("given", ["worker", "", "web,", "web inference", "Web", "celery,web"])
def test_another_part_is_refused_with_those_that_are(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        program.manage(["manage.py", "serve", "--only", given])
    assert "expected web, control, inference, or several with commas between" in capsys.readouterr().err


def names(chosen):
    return [child.name for child in parts.children(chosen)]


def test_each_part_has_its_processes_and_what_they_need(settings, tmp_path):
    settings.DATA_DIR = tmp_path
    settings.BROKER_DIR = tmp_path / "broker"
    settings.EMBEDDED_BROKER = settings.EMBEDDED_BACKEND = True
    assert names(serve_options.PARTS) == [*("broker", "embedded backend", "web", "control worker", "inference worker")]
    assert names(["control"]) == ["broker", "control worker"]
    assert names(["web"]) == ["web"]
    assert names(["inference"]) == ["embedded backend", "inference worker"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://localhost:11435", "inference-11435@%h"),
        ("https://gpu.lan", "inference-443@%h"),
        ("http://gpu.lan", "inference-80@%h"),
        ("http://127.0.0.1:8001,http://127.0.0.1:8002", "inference-8001@%h"),
    ],
)
def test_two_inference_workers_on_one_machine_have_two_names(settings, tmp_path, url, name):
    settings.DATA_DIR, settings.BACKEND_URL = tmp_path, url
    [child] = parts.children(["inference"])
    assert child.command[-1] == name
    assert parts.children(["control", "inference"])[-1].command[-1] == "inference@%h"


# What they need


def refusal(**options):
    with pytest.raises(ImproperlyConfigured) as error:
        joining.check(["inference"], **{"beside_server": True} | options)
    return str(error.value)


def test_parts_that_would_have_all_of_their_own_are_told_what_to_set(db, settings):
    settings.EMBEDDED_BROKER = True
    told = refusal(beside_server=False)
    assert "CELERY_BROKER_URL (redis://:password@host:6379/0)" in told
    assert "docs/second-machine.md" in told
    if joining.connection.vendor == "sqlite":
        assert "would have a SQLite database and a broker of its own, which no other part" in told
        assert "Set DATABASE_URL (postgres://user:password@host/name) and CELERY_BROKER_URL" in told
        settings.EMBEDDED_BROKER = False
        told = refusal(beside_server=False)
        assert "Set DATABASE_URL" in told
        assert "CELERY_BROKER_URL" not in told
    else:
        assert "DATABASE_URL" not in told


def test_beside_a_server_they_share_its_database_and_its_broker(db, settings):
    settings.EMBEDDED_BROKER = True
    joining.check(["inference"], beside_server=True)


def test_a_broker_that_does_not_answer_is_named_without_its_password(db, monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://:hunter2@127.0.0.1:9/0")  # Celery reads it each time
    told = refusal()
    assert "The broker (redis://:**@127.0.0.1:9/0) does not answer" in told
    assert "hunter2" not in told + str(joining.described())


def test_a_database_of_another_version_is_no_place_to_join(db):
    applied = MigrationRecorder.Migration.objects
    last = applied.filter(app="batches").latest("id")
    last.delete()
    assert refusal().startswith("The database is older than this code. Update the machine that runs the part control")
    applied.create(app="batches", name=last.name)
    applied.create(app="batches", name="9999_of_tomorrow")
    assert "The database is of a newer version than the code" in refusal()
    assert schema.OLDER not in refusal()


def test_files_that_cannot_be_stored_are_told_with_their_place(db, settings, tmp_path):
    settings.UPLOAD_DIR = tmp_path / "not mounted"
    assert f"The files are in {settings.FILES_DIR}, which every machine of a server has to share." in refusal()


def test_a_machine_with_another_storage_than_that_of_the_server_is_told_so(db, settings, upload):
    """What is written there is found by nobody, and what is read is not there."""
    joining.check(["inference"], beside_server=True)
    own = storage_id.read()
    upload([line("a")])
    (settings.FILES_DIR / storage_id.OBJECT).write_text("another\n")
    told = refusal()
    assert f"has the id another, and the files of the database lie in the one with the id {own}" in told
    assert str(settings.FILES_DIR) in told
    (settings.FILES_DIR / storage_id.OBJECT).unlink()  # as where nothing is mounted
    assert "has no id" in refusal()
    assert storage_id.read() is None


@pytest.mark.parametrize(
    ("url", "is_ollama", "said"),
    [
        ("http://localhost:11434", True, "set OLLAMA_BASE_URL to http://ADDRESS-OF-THIS-MACHINE:11434"),
        ("http://127.0.0.1:8000", False, "set BACKEND_URL to http://ADDRESS-OF-THIS-MACHINE:8000"),
        ("http://gpu.lan:11434", True, ""),
    ],
)
def test_a_model_server_that_this_machine_alone_reaches_is_told(settings, url, is_ollama, said):
    settings.BACKEND_URL, settings.BACKEND_IS_OLLAMA = url, is_ollama
    settings.BACKEND_IS_LOCAL = "gpu.lan" not in url
    assert said in joining.unreachable_backend()
    assert bool(said) is bool(joining.unreachable_backend())


# Together


@pytest.mark.usefixtures("processes")
def test_two_workers_with_a_card_each_join_a_server_that_has_none(tmp_path):
    """The server has no model server of its own; each worker has one, with another model."""
    head = Stack(tmp_path / "data", {"OLLAMA_BASE_URL": "http://127.0.0.1:9"})
    with FakeBackend() as first, FakeBackend() as second:
        first.models = first.loaded = ["first:1b"]
        second.models = second.loaded = ["second:1b"]
        workers = [Stack(head.data_dir, {"OLLAMA_BASE_URL": each.url}) for each in (first, second)]
        try:
            head.data_dir.mkdir()
            alone = subprocess.run(
                [*SERVE, "--only", "inference"],
                cwd=ROOT,
                env=os.environ | workers[0].environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (alone.returncode, "Traceback" in alone.stderr) == (2, False)
            assert "inference alone would have a SQLite database and a broker of its own" in alone.stderr

            head.start(ready=False, command=[*SERVE, "--only", "web,control"])
            eventually(head.health, what="a web server")
            for each in workers:
                each.start(ready=False, command=[*SERVE, "--only", "inference"])
            eventually(lambda: len((head.health() or {}).get("backends", [])) == 2, what="two model servers")
            assert head.log.read_text().count("Ollama Batch Server (inference) is up.") == 2

            client = client_of(head)
            lines = [line(f"{model} {number}", body={"model": model}) for model in FIRST_AND_SECOND for number in "123"]
            batch = finish(client, submit(client, lines).id)
            assert (batch.status, batch.request_counts.completed) == ("completed", 6)
            assert {each["response"]["body"]["model"] for each in lines_of(client, batch.output_file_id)} == set(
                FIRST_AND_SECOND
            )
            for fake, model in ((first, "first:1b"), (second, "second:1b")):
                asked = line("person", body={"model": model})["body"]
                assert requests.post(f"{head.base}{CHAT}", json=asked, timeout=60).status_code == 200
                assert "person" in fake.arrived()
            started = time.monotonic()
            for each in workers:
                each.process.terminate()
                assert each.process.wait(60) == 0
            assert time.monotonic() - started < 30
        finally:
            for each in (*workers, head):
                each.stop()
