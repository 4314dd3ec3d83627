"""A backup of a server that runs, and its way back: the rows, the bytes of files, and what DATA_DIR keeps of its own.

Each row that is in a backup has its bytes there, whatever the server does meanwhile. Bytes are in place before their
row is committed, and go after it, so they are copied twice: what there is before the rows are read, lest it is removed
until then, and what came meanwhile after that. Bytes that came and went between the two are found by the rows, which
are then read again. A file never changes, so that a copy of it can be a hard link.

The rows of SQLite are its own copy (sqlite.org/backup.html). Those of Postgres are read in one transaction that sees
one state of the database (REPEATABLE READ), table by table in COPY's text format; the tables are made by the migrations
that the backup names. So no program of Postgres is needed, and none of another version is used.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.files.base import File as Content
from django.core.files.storage import default_storage
from django.db import connection, transaction
from django.db.backends.sqlite3.base import SQLiteCursorWrapper
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Case, Exists, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Now

from batches.models import Batch, Pulse
from batchserver import kept
from batchserver.version import VERSION
from common import disk
from common.database import from_now
from files_api import retention, storage_id
from files_api.models import File, FileHold, UploadPart, row_id
from files_api.storage import file_storage

logger = logging.getLogger(__name__)

FORMAT = 1
LIST, FILES, TABLES, SQLITE, KEPT = "backup.json", "files", "tables", "database.sqlite3", "kept"
MOST_READS = 5
AT_WORK_FOR = timedelta(seconds=30)  # after a tick, of which there is one every 17 seconds at least
# What the storage has beside the files of rows: whose it is.
BESIDE_ROWS = (storage_id.OBJECT,)
PIECE_BYTES = 2**20


class CannotGoOn(Exception):
    """The text says why there is no backup, or why one cannot be played back, and what to do."""


@dataclass(frozen=True)
class Stored:
    """The bytes of a row. Those that are not `needed` may be gone: their file is deleted, and no batch has it."""

    name: str
    size: int
    needed: bool = True


@dataclass
class Listed:
    """What is in a backup. It is written last: a directory without it is none."""

    vendor: str
    migrations: list[list[str]]
    columns: dict[str, list[str]] = field(default_factory=dict)  # of each table of Postgres
    sequences: list[tuple[str, str, int | None]] = field(default_factory=list)  # table, column, the last number given
    files: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)  # rows whose bytes the storage does not have
    version: str = VERSION
    made_at: str = ""
    format: int = FORMAT


def take(target: Path, *, tell: Callable[[str], None] = lambda _: None) -> Listed:
    """Make a backup in this directory, which is made and must be empty. Raises CannotGoOn and OSError.

    The server may run. Files are hard links where the storage is on the same file system, and copies elsewhere.
    """
    _make_empty(target)
    copied = _Copied(target / FILES)
    with connection.cursor() as cursor:
        stored = _stored(cursor)
    for each in stored:
        copied.add(each)
    tell(f"{copied.count} files are copied; reading the rows…")
    missing: list[str] = []
    for _ in range(MOST_READS):
        missed_before = missing
        listed, stored = _read_rows(target)
        missing = [each.name for each in stored if not copied.add(each) and each.needed]
        if not missing or missing == missed_before:  # twice the same: nobody removed them a moment ago
            break
        tell(f"{len(missing)} files are not there any more; reading the rows again…")
    for name in BESIDE_ROWS:
        if default_storage.exists(name):
            copied.add(Stored(name, default_storage.size(name), needed=False))
    for name in (kept.SECRET_KEY, kept.INSTANCE_ID):
        with suppress(FileNotFoundError):
            _copy(settings.DATA_DIR / name, target / KEPT / name)
    listed.files, listed.bytes, listed.missing = copied.count, copied.bytes, missing
    listed.made_at = datetime.now(UTC).isoformat(timespec="seconds")
    _write(target / LIST, json.dumps(asdict(listed), indent=1).encode())
    for directory, _, _ in os.walk(target):
        disk.sync_directory(Path(directory))
    return listed


def restore(source: Path) -> Listed:
    """Play a backup back into the configured database, storage and DATA_DIR, which have no batches and files yet.

    Raises CannotGoOn if it does not fit, and OSError; safe to run again after either. Nothing may use the database
    meanwhile. The tables are those of the backup's version then: `first_start.prepare` brings them up to date.
    """
    listed = _read_list(source)
    if listed.vendor != connection.vendor:
        raise CannotGoOn(
            f"The backup is one of {listed.vendor}, and DATABASE_URL leads to {connection.vendor}. Restore it where "
            f"DATABASE_URL leads to {listed.vendor}."
        )
    unknown = {tuple(each) for each in listed.migrations} - _known_migrations()
    if unknown:
        raise CannotGoOn(
            f"The backup is of version {listed.version}, which is newer than this code: install that version, and "
            "restore it there."
        )
    _refuse_what_is_used(source)
    files = source / FILES
    for path in sorted(files.rglob("*")):
        if path.is_file() and (name := path.relative_to(files).as_posix()) not in BESIDE_ROWS:
            _store(path, name)
    (_restore_sqlite if connection.vendor == "sqlite" else _restore_postgres)(source, listed)
    for path in (source / KEPT).glob("*"):
        _copy(path, settings.DATA_DIR / path.name)
        (settings.DATA_DIR / path.name).chmod(0o600)
    # Whose the storage is comes last: without it, the files are those of a try that did not come to its end.
    for name in BESIDE_ROWS:
        if (files / name).is_file():
            default_storage.delete(name)  # that of a storage which was made for nothing else
            _store(files / name, name)
    return listed


# Bytes


class _Copied:
    """The files that are in the backup already."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names: set[str] = set()
        self.count = self.bytes = 0

    def add(self, stored: Stored) -> bool:
        """Copy what is not there yet; False if the storage does not have it whole."""
        if stored.name in self._names:
            return True
        path = self._directory / stored.name
        try:
            _fetch(stored.name, path)
        except FileNotFoundError:
            return False
        size = path.stat().st_size
        if size != stored.size:
            logger.warning("%s has %d bytes, and its row says %d", stored.name, size, stored.size)
            path.unlink()
            return False
        self._names.add(stored.name)
        self.count += 1
        self.bytes += size
        return True


def _stored(cursor: Any) -> list[Stored]:
    """The bytes of all rows. Those of a hidden file are needed as long as something holds them."""
    visible = Q(deleted_at=None) & (Q(expires_at=None) | Q(expires_at__gt=Now()))
    held = Exists(FileHold.objects.filter(file=OuterRef("pk")))
    files = File.objects.exclude(content="").annotate(needed=_flag(visible | Q(held))).order_by("pk")
    # A part is removed before its row, once its upload is over.
    is_over = Exists(UploadPart.objects.all().discardable().filter(pk=OuterRef("pk")))
    parts = UploadPart.objects.exclude(content="").annotate(needed=_flag(~Q(is_over))).order_by("pk")
    rows = [row for each in (files, parts) for row in _rows(cursor, each, "content", "bytes", "needed")]
    return [Stored(name, size, bool(needed)) for name, size, needed in rows]


def _flag(condition: Q) -> Case:
    return Case(When(condition, then=Value(1)), default=Value(0))


def _rows(cursor: Any, queryset: QuerySet[Any], *names: str) -> list[tuple[Any, ...]]:
    """What Django's own connection would give, by this cursor: it may be that of a copy."""
    cursor.execute(*queryset.values_list(*names).query.sql_with_params())
    found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


def _fetch(name: str, path: Path) -> None:
    """Put a stored file into the backup. Raises FileNotFoundError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with suppress(NotImplementedError):  # a storage that is no disk has no paths
        try:
            os.link(default_storage.path(name), path, follow_symlinks=False)
            return
        except FileNotFoundError:
            raise
        except OSError:
            pass  # another file system, or one without hard links
    with default_storage.open(name, "rb") as stored:
        _write(path, stored)


def _store(path: Path, name: str) -> None:
    with path.open("rb") as stream:
        default_storage.save(name, Content(stream))


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("rb") as stream:
        _write(target, stream)


def _write(path: Path, content: Any) -> None:
    """Write bytes, or a stream of them, whole and on the disk, or leave nothing."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            shutil.copyfileobj(content, file, PIECE_BYTES)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _make_empty(target: Path) -> None:
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(target.iterdir()):
        what = "has a backup" if (target / LIST).exists() else "is not empty"
        raise CannotGoOn(f"{target} {what} already. Name a directory that is empty or not there yet.")
    for name in (FILES, TABLES, KEPT):
        (target / name).mkdir(mode=0o700)


# Rows


def _read_rows(target: Path) -> tuple[Listed, list[Stored]]:
    """Write one state of the database into the backup; its list, and the bytes of its rows."""
    with (_copy_of_sqlite if connection.vendor == "sqlite" else _snapshot_of_postgres)(target) as cursor:
        applied = _rows(cursor, MigrationRecorder.Migration.objects.order_by("app", "name"), "app", "name")
        listed = Listed(connection.vendor, list(map(list, applied)))
        if connection.vendor == "postgresql":
            _read_tables(cursor, target / TABLES, listed)
        return listed, _stored(cursor)


@contextmanager
def _copy_of_sqlite(target: Path) -> Iterator[Any]:
    path = target / SQLITE
    path.unlink(missing_ok=True)
    connection.ensure_connection()
    copy = connection.Database.connect(path)  # type: ignore[attr-defined]
    try:
        # All pages at once: others may write meanwhile, which the copy does not see.
        connection.connection.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        yield copy.cursor(factory=SQLiteCursorWrapper)
    finally:
        copy.close()
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _snapshot_of_postgres(target: Path) -> Iterator[Any]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield cursor


def _models() -> list[Any]:
    """All models with a table, and the one of the migrations that were applied; a table stands there once."""
    models: list[Any] = [*apps.get_models(include_auto_created=True), MigrationRecorder.Migration]
    by_table = {each._meta.db_table: each for each in models if each._meta.managed and not each._meta.proxy}
    return list(by_table.values())


def _read_tables(cursor: Any, directory: Path, listed: Listed) -> None:
    for model in _models():
        table = model._meta.db_table
        columns = [each.column for each in model._meta.local_concrete_fields]
        listed.columns[table] = columns
        names = ", ".join(map(connection.ops.quote_name, columns))
        with (directory / f"{table}.copy").open("wb") as file:
            # A query, since a table that is partitioned cannot be copied as such.
            with cursor.copy(f"COPY (SELECT {names} FROM {connection.ops.quote_name(table)}) TO STDOUT") as rows:
                for piece in rows:
                    file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        for column in columns:
            if sequence := _sequence_of(cursor, table, column):
                cursor.execute(f"SELECT CASE WHEN is_called THEN last_value END FROM {sequence}")
                listed.sequences.append((table, column, cursor.fetchone()[0]))


def _sequence_of(cursor: Any, table: str, column: str) -> str | None:
    """The sequence that numbers a column, as SQL names it."""
    cursor.execute("SELECT pg_get_serial_sequence(%s, %s)", [connection.ops.quote_name(table), column])
    sequence: str | None = cursor.fetchone()[0]
    return sequence


def _restore_sqlite(source: Path, listed: Listed) -> None:
    uri = f"{(source / SQLITE).as_uri()}?mode=ro&immutable=1"
    copy = connection.Database.connect(uri, uri=True)  # type: ignore[attr-defined]
    try:
        connection.ensure_connection()
        copy.backup(connection.connection)
    finally:
        copy.close()
    connection.close()


def _restore_postgres(source: Path, listed: Listed) -> None:
    _make_tables(listed)
    with transaction.atomic(), connection.cursor() as cursor:
        tables = ", ".join(map(connection.ops.quote_name, listed.columns))
        # What migrations put there; the backup has its own.
        cursor.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
        for table, columns in listed.columns.items():
            names = ", ".join(map(connection.ops.quote_name, columns))
            command = f"COPY {connection.ops.quote_name(table)} ({names}) FROM STDIN"
            with (source / TABLES / f"{table}.copy").open("rb") as file, cursor.copy(command) as rows:
                while piece := file.read(PIECE_BYTES):
                    rows.write(piece)
        for table, column, last in listed.sequences:
            if last is not None and (sequence := _sequence_of(cursor, table, column)):
                cursor.execute("SELECT setval(%s, %s)", [sequence, last])


def _make_tables(listed: Listed) -> None:
    """Tables as the backup's version had them. Raises CannotGoOn if there are others."""
    wanted = {(app, name) for app, name in listed.migrations}
    executor = MigrationExecutor(connection)
    applied = set(executor.loader.applied_migrations)
    if applied - wanted:
        raise CannotGoOn(
            "The database has tables of a newer version than the backup. Give it an empty database (dropdb, createdb)."
        )
    graph = executor.loader.graph
    ends = [
        node
        for node in wanted & set(graph.nodes)
        if not any(child.key in wanted and child.key[0] == node[0] for child in graph.node_map[node].children)
    ]
    executor.migrate(sorted(ends))


def _known_migrations() -> set[tuple[str, str]]:
    loader = MigrationExecutor(connection).loader
    replaced = {each for migration in loader.disk_migrations.values() for each in migration.replaces}
    return set(loader.disk_migrations) | replaced


def _refuse_what_is_used(source: Path) -> None:
    """Raise CannotGoOn if there is something that a restore would replace, or somebody at work, here or elsewhere."""
    tables = set(connection.introspection.table_names())
    try:
        for model in (File, Batch):
            if model._meta.db_table in tables and model._default_manager.exists():
                raise CannotGoOn(
                    f"The database has {model._meta.verbose_name_plural} already. A backup is restored into an empty "
                    "one: name another DATA_DIR or DATABASE_URL."
                )
        ticked = Pulse.objects.filter(pk="ticked", at__gt=from_now(-AT_WORK_FOR))
        if Pulse._meta.db_table in tables and ticked.exists():
            raise CannotGoOn(
                f"A control worker was at work with this database in the last {AT_WORK_FOR.seconds} seconds. Stop the "
                "server on all machines, and try again."
            )
    finally:
        connection.close()
    # Another server may be at work with this storage: each would remove the new files of the other as leftovers.
    storage = file_storage()
    is_anothers = any(map(default_storage.exists, BESIDE_ROWS))
    for directory in storage.directories():
        for name in storage.written_at(directory):
            if row_id(name).startswith(retention.IDS) and (is_anothers or not (source / FILES / name).exists()):
                raise CannotGoOn(
                    f"The storage of files ({storage_id.where()}) has files of a server already. A backup is restored "
                    "into an empty one: name another DATA_DIR, or AWS_STORAGE_BUCKET_NAME or AWS_LOCATION."
                )


def _read_list(source: Path) -> Listed:
    try:
        told = json.loads((source / LIST).read_bytes())
    except FileNotFoundError:
        raise CannotGoOn(f"{source} is no backup, or one that was not finished: it has no {LIST}.") from None
    except ValueError:
        raise CannotGoOn(f"{source / LIST} is damaged. Take another backup.") from None
    if told.get("format") != FORMAT:
        raise CannotGoOn(f"{source} is a backup of form {told.get('format')!r}; this version reads {FORMAT}.")
    return Listed(**told)
