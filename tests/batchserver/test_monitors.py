"""/livez and /readyz."""

import errno
import os
import threading
import time
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.utils import timezone

from batches.models import Backend, Pulse
from batches.status import conditions
from batches.status.conditions import Conditions, Failed
from batchserver import views
from common.models import ApiKey


@pytest.fixture
def working(db):
    """An inference worker has reported, and the control worker ticks."""
    Pulse.stamp("ticked")
    return Backend.objects.create(name="here", url="http://127.0.0.1:9", worker_seen_at=timezone.now())


def failed_checks(failed):
    return [each.check for each in failed]


# /livez


def test_the_web_process_lives_whatever_else_is_out_of_order(client):
    """No database is allowed in this test."""
    answer = client.get("/livez", headers={"host": "10.0.0.7:4080"})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert client.post("/livez").status_code == 405


# /readyz: its conditions


def test_all_is_well(working):
    assert conditions.by_rows() == conditions.by_disk() == conditions.by_broker(lambda: None) == []


def test_no_inference_worker_is_alive(working):
    Backend.objects.update(worker_seen_at=timezone.now() - timedelta(seconds=31))
    assert conditions.by_rows() == [Failed("inference worker", "No inference worker has reported lately.")]
    Backend.objects.all().delete()
    assert failed_checks(conditions.by_rows()) == ["inference worker"]


def test_that_the_model_server_is_away_or_all_is_paused_is_no_failure(working):
    working.pause("Ollama does not answer.")
    assert conditions.by_rows() == []


@pytest.mark.slow
def test_the_tick_fails_or_is_old(working):
    Pulse.stamp("ticked", error="send webhooks (OSError)")
    assert conditions.by_rows() == [
        Failed("control worker", "The control worker cannot send webhooks (OSError); its log says more.")
    ]
    Pulse.objects.update(at=timezone.now() - timedelta(seconds=31), error="")
    assert conditions.by_rows() == [Failed("control worker", "The control worker has not ticked lately.")]


def test_the_database_is_away_or_of_another_version(working, monkeypatch):
    def away(*_):
        raise OperationalError('connection to "db.lan", user "secret" failed')

    with monkeypatch.context() as patched:
        patched.setattr("django.db.backends.utils.CursorWrapper.execute", away)
        failed = conditions.by_rows()
    assert failed == [Failed("database", "The database does not answer.")]


def test_the_schema_is_another(working):
    MigrationRecorder(connection).record_applied("batches", "9999_of_tomorrow")
    [failed] = conditions.by_rows()
    assert failed.check == "database"
    assert "newer version" in failed.reason


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError("redis://:hunter2@host"), TimeoutError(), OSError(), RuntimeError("hunter2"), KeyError()],
)
def test_the_broker_is_away(error):
    def ask():
        raise error

    [failed] = conditions.by_broker(ask)
    assert failed == Failed("broker", f"The broker does not answer ({type(error).__name__}).")


def test_the_disk_is_full(settings, monkeypatch):
    settings.MIN_FREE_BYTES = 2**62
    [failed] = conditions.by_disk()
    assert failed.check == "disk"
    assert "MIN_FREE_BYTES" in failed.reason


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO, errno.ENOENT])
def test_the_disk_takes_nothing(number, monkeypatch):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "/srv/secret/path")

    monkeypatch.setattr("files_api.storage.NamedTemporaryFile", refuse)
    [failed] = conditions.by_disk()
    assert failed.check == "disk"
    assert os.strerror(number) in failed.reason
    assert "/srv" not in failed.reason


def test_a_directory_that_is_gone_is_told(settings):
    settings.UPLOAD_DIR.rmdir()
    assert failed_checks(conditions.by_disk()) == ["disk"]


def test_a_look_at_the_disk_leaves_nothing_there(settings):
    conditions.by_disk()
    assert list(settings.UPLOAD_DIR.iterdir()) == []


# /readyz: the page


def test_whatever_hangs_does_not_hang_the_page(transactional_db):
    """Here the broker; each condition is asked in the same way."""
    end = threading.Event()
    all_of_them = Conditions(lambda: end.wait(60), within_s=0.2)
    started = time.monotonic()
    try:
        for _ in range(3):
            assert Failed("broker", "The broker does not answer in time.") in all_of_them.failed()
    finally:
        end.set()
    assert time.monotonic() - started < 5


def test_the_page_says_what_is_wrong(transactional_db, settings, monkeypatch):
    monkeypatch.setattr(views, "_conditions", Conditions(lambda: 1 // 0))
    ApiKey.objects.make("laptop")  # none is needed here
    settings.BEHIND_TLS = settings.SECURE_SSL_REDIRECT = True

    answer = Client().get("/readyz", headers={"host": "web"})

    assert answer.status_code == 503
    body = answer.json()
    assert body["status"] == "failing"
    assert {"check": "broker", "reason": "The broker does not answer (ZeroDivisionError)."} in body["failed"]


def test_a_check_can_be_left_to_others(transactional_db, monkeypatch):
    """As Kubernetes does for a web server that is to take batches while the workers are away."""
    monkeypatch.setattr(views, "_conditions", Conditions(lambda: None))
    told = Client().get("/readyz").json()["failed"]
    assert {each["check"] for each in told} == {"control worker", "inference worker"}
    assert Client().get("/readyz?exclude=inference%20worker").status_code == 503
    ready = Client().get("/readyz?exclude=inference%20worker&exclude=control%20worker&exclude=no%20such")
    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "failed": []})
