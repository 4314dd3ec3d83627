import time

import pytest
from django.db import IntegrityError, connection, transaction

from batches.models import Backend
from common import signs_of_life
from common.database import bulk_writes, durable_commit, insert, relaxed_commits, retrying


def setting(name):
    with connection.cursor() as cursor:
        cursor.execute(name)
        return cursor.fetchone()[0]


def test_a_relaxed_commit_survives_the_kill_of_any_process(transactional_db):
    """SQLite's are in the kernel's hands then; Postgres's would be in those of a process that can be killed."""
    if connection.vendor == "sqlite":
        with relaxed_commits():
            assert setting("PRAGMA synchronous") == 1  # NORMAL
        assert setting("PRAGMA synchronous") == 2  # FULL
    else:
        with relaxed_commits():
            assert setting("SHOW synchronous_commit") == "on"


def test_a_durable_commit_among_relaxed_ones_survives_a_power_cut(transactional_db):
    with relaxed_commits():
        with durable_commit():
            if connection.vendor == "sqlite":
                assert setting("PRAGMA synchronous") == 2  # FULL
        if connection.vendor == "sqlite":
            assert setting("PRAGMA synchronous") == 1
    with transaction.atomic(), durable_commit():  # too late for this transaction, and no error
        assert Backend.objects.count() == 0


def test_bulk_writes_give_back_what_they_took(transactional_db):
    if connection.vendor != "sqlite":
        with bulk_writes():
            return
    before = setting("PRAGMA cache_size"), setting("PRAGMA wal_autocheckpoint")
    with bulk_writes():
        assert (setting("PRAGMA cache_size"), setting("PRAGMA wal_autocheckpoint")) == (-65536, 16384)
    assert (setting("PRAGMA cache_size"), setting("PRAGMA wal_autocheckpoint")) == before


def test_rows_that_break_a_constraint_are_refused_whole(transactional_db):
    names = ("name", "url")
    insert(Backend, names, [("a", "http://a")])
    with pytest.raises(IntegrityError), transaction.atomic():
        insert(Backend, names, [("b", "http://b"), ("a", "http://a")])
    stored = Backend.objects.get()
    assert (stored.name, stored.listed, stored.kind, stored.concurrency_limit, stored.seen_at) == ("a", [], "", 0, None)


def test_a_wait_for_a_lock_has_an_end_and_the_connection_a_guard(db):
    if connection.vendor == "sqlite":
        assert setting("PRAGMA busy_timeout") == 20_000
        return
    assert setting("SHOW lock_timeout") == "10s"
    assert setting("SHOW idle_in_transaction_session_timeout") == "5min"
    given = connection.connection.info.get_parameters()
    assert (given["connect_timeout"], given["tcp_user_timeout"]) == ("10", "60000")


on_postgres = pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite's own wait has a test above")


@pytest.fixture
def locked(transactional_db):
    """The table of backends is locked by somebody else; a wait for it ends after a moment."""
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '50ms'")
    other = connection.copy()
    try:
        with transaction.atomic(), other.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("LOCK TABLE batches_backend, files_api_file, batches_batch IN ACCESS EXCLUSIVE MODE")
        yield other
    finally:
        other.close()
        connection.close()


@on_postgres
def test_who_waits_for_a_lock_gives_signs_and_tries_again(locked, monkeypatch):
    signs = []

    def give_up_the_lock():
        signs.append(1)
        if len(signs) == 3:
            locked.close()

    monkeypatch.setattr(signs_of_life, "alive", give_up_the_lock)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert retrying(Backend.objects.count) == 0
    assert len(signs) == 3


@on_postgres
@pytest.mark.parametrize(
    ("method", "path"),
    [("get", "/v1/batches/batch_1"), ("post", "/v1/batches/batch_1/cancel"), ("get", "/v1/files"),
     ("delete", "/v1/files/file-1"), ("post", "/v1/batches/batch_1/priority"), ("get", "/v1/batches")],
)  # fmt: skip
def test_a_request_that_waits_for_a_lock_is_told_to_come_again(locked, api, method, path):
    response = getattr(api, method)(path, {"priority": 1} if method == "post" else None, format="json")
    assert response.status_code == 503
    assert response["Retry-After"] == "5"
    assert response.json()["error"]["message"] == "The database is busy or away. Try again."
