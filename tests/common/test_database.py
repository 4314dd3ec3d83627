import pytest
from django.db import IntegrityError, connection, transaction

from batches.models import Backend
from common.database import bulk_writes, insert, relaxed_commits


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
