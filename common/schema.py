"""Whether the database's schema is that of this code. An older, newer or broken schema is no database that is busy."""

import hashlib
import re
from functools import cache

from django.db import DatabaseError, connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

WHAT_TO_DO = "Run `python manage.py setup`, or restart `script/server`, which does it first."
OLDER = f"The database is not up to date with the code. {WHAT_TO_DO}"
DIFFERENT = f"The database's schema is not the one of this version. {WHAT_TO_DO}"

SQLITE_MESSAGE = re.compile(r"no such (table|column)|table \S+ has no column named ")
# By database: the end of its list when all of it was known to this code. Workers ask every few seconds.
_end_when_known: dict[str, tuple[int, int]] = {}
POSTGRES_CODES = ("42P01", "42703")  # undefined_table, undefined_column


def trouble(using: str = "default") -> str | None:
    """Why this code cannot work with the database, and what to do; None if its migrations are those of the code.

    Raises DatabaseError if the database is busy or away.
    """
    known = _known_migrations()
    if reason := newer(using):
        return reason
    return OLDER if known - MigrationRecorder(connections[using]).applied_migrations().keys() else None


def newer(using: str = "default") -> str | None:
    """Why this code must not use the database: a newer version has changed it. None if no newer version has."""
    if using in _end_when_known and _end_of_applied(using) == _end_when_known[using]:
        return None
    known = _known_migrations()
    apps = {app for app, _ in known}
    applied = MigrationRecorder(connections[using]).applied_migrations()
    unknown = sorted(f"{app}.{name}" for app, name in applied.keys() - known if app in apps)
    if not unknown:
        # Another one may have been applied meanwhile.
        if applied and (end := _end_of_applied(using))[0] == len(applied):
            _end_when_known[using] = end
        return None
    return (
        f"The database is of a newer version than the code, which does not know its {', '.join(unknown)}. Install that "
        "version again, or restore a backup that was made before the update."
    )


def _end_of_applied(using: str) -> tuple[int, int]:
    """How many migrations were applied, and the id of the last one: each that is applied or taken back changes them."""
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT count(*), max(id) FROM django_migrations")
        count, last = cursor.fetchone()
    return count, last


def explain(error: DatabaseError) -> str | None:
    """What to do about an error that a missing table or column caused; None for any other error."""
    if not is_schema_error(error):
        return None
    try:
        return trouble() or DIFFERENT
    except DatabaseError:  # the transaction of the error is still open
        return DIFFERENT


def is_schema_error(error: Exception) -> bool:
    """Whether a table or a column is missing. SQLite says so only in the message of an OperationalError."""
    if getattr(error.__cause__, "sqlstate", None) in POSTGRES_CODES:
        return True
    return SQLITE_MESSAGE.match(str(error)) is not None


@cache
def mark() -> str:
    """Six hexadecimal digits that tell this database from others, for what its servers leave on shared machines: by the
    moment when its first migration was applied. Raises DatabaseError if the database is busy or away."""
    applied = MigrationRecorder.Migration.objects.order_by("id").values_list("app", "name", "applied").first()
    return hashlib.sha256(repr(applied and (*applied[:2], applied[2].timestamp())).encode()).hexdigest()[:6]


@cache
def _known_migrations() -> frozenset[tuple[str, str]]:
    return frozenset(MigrationLoader(None, ignore_no_migrations=True).disk_migrations)
