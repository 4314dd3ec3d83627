"""A database of another version, or with a table or column missing, is told apart from one that is busy or away."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from batches.models import Batch
from common import schema
from common.database import retrying
from tests.stack import ROOT, Stack


@pytest.fixture
def without(transactional_db):
    """Take a column away; it is there again afterwards."""
    taken = []

    def take(table, column):
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO taken")
        taken.append((table, column))

    yield take
    with connection.cursor() as cursor:
        for table, column in taken:
            cursor.execute(f"ALTER TABLE {table} RENAME COLUMN taken TO {column}")


def test_the_api_says_what_to_do_and_not_that_the_database_is_busy(without, api):
    without("batches_batch", "endpoint")
    answer = api.get("/v1/batches")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == schema.DIFFERENT
    assert "manage.py setup" in schema.DIFFERENT
    assert "Retry-After" not in answer.headers


def test_a_missing_table_is_told_as_well(transactional_db, api):
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE batches_batch RENAME TO taken")
    try:
        assert api.get("/v1/batches").json()["error"]["message"] == schema.DIFFERENT
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE taken RENAME TO batches_batch")


def test_a_write_to_a_missing_column_is_told_as_well(without):
    without("batches_pulse", "at")
    with pytest.raises(DatabaseError) as caught, connection.cursor() as cursor:
        cursor.execute("INSERT INTO batches_pulse (name, at) VALUES ('a', '2026-01-01 00:00:00')")
    assert schema.explain(caught.value) == schema.DIFFERENT


def test_health_says_so(without, client):
    without("batches_pulse", "at")
    answer = client.get("/health")
    assert answer.status_code == 503
    assert answer.json()["reason"] == schema.DIFFERENT


def test_a_missing_column_is_not_waited_for(without):
    without("batches_batch", "endpoint")
    started = time.monotonic()
    with pytest.raises(DatabaseError):
        retrying(lambda: list(Batch.objects.all()))
    assert time.monotonic() - started < 5


def test_a_busy_database_is_still_busy():
    assert schema.explain(DatabaseError("database is locked")) is None


def test_a_database_of_a_newer_version_is_refused(db, client):
    MigrationRecorder(connection).record_applied("batches", "9999_later")
    with pytest.raises(
        CommandError, match=r"newer version than the code, .* batches\.9999_later\. Install that version"
    ):
        call_command("setup")
    answer = client.get("/health")
    assert (answer.status_code, answer.json()["reason"]) == (503, schema.newer())


def test_a_newer_version_is_seen_however_often_the_list_was_the_same(db, django_assert_num_queries):
    assert schema.newer() is None
    with django_assert_num_queries(1):
        assert schema.newer() is None
    MigrationRecorder(connection).record_applied("batches", "9999_later")
    assert "batches.9999_later" in schema.newer()
    MigrationRecorder(connection).record_unapplied("batches", "9999_later")
    assert schema.newer() is None


def test_health_tells_of_a_database_of_an_older_version(db, client):
    assert schema.trouble() is None
    newest = max(name for app, name in MigrationLoader(None).disk_migrations if app == "batches")
    MigrationRecorder(connection).record_unapplied("batches", newest)
    answer = client.get("/health")
    assert (answer.status_code, answer.json()["reason"]) == (503, schema.OLDER)


@pytest.mark.usefixtures("processes")
def test_a_server_does_not_start_on_a_database_of_a_newer_version(tmp_path, fake):
    server = Stack(tmp_path / "data", {"OLLAMA_BASE_URL": fake.url})
    setup = [sys.executable, "manage.py", "setup"]
    subprocess.run(setup, cwd=ROOT, env=os.environ | server.environment, check=True, capture_output=True)
    with closing(sqlite3.connect(server.data_dir / "db.sqlite3")) as database, database:
        database.execute("INSERT INTO django_migrations (app, name, applied) VALUES ('batches', '9999_later', '')")
    server.start(ready=False)
    try:
        assert server.process.wait(60) == 1
    finally:
        server.stop()
    assert "The database is of a newer version than the code" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("queue", ["control", "inference"])
def test_a_worker_does_not_start_on_a_database_that_is_not_set_up(queue, tmp_path):
    server = Stack(tmp_path / "data", {}, is_first_start=True)
    celery = ["-m", "celery", "--quiet", "--app", "batchserver", "worker", "--loglevel", "WARNING", "-c", "1"]
    server.start(ready=False, command=[sys.executable, *celery, "-Q", queue])
    try:
        assert server.process.wait(60) == 1
    finally:
        server.stop()
    assert server.log.read_text().strip() == schema.OLDER
