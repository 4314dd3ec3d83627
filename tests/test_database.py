from django.db import connection

from batchserver.database import relaxed_commits


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
