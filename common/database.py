"""What SQLite and Postgres do beyond the ORM: the database's clock, fast inserts, and how durable a commit is."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from django.db import DatabaseError, Error, InterfaceError, OperationalError, connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import DateTimeField, ExpressionWrapper, Model, QuerySet
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Now
from django.db.models.sql import UpdateQuery
from django.utils import timezone

from common import schema, signs_of_life

logger = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")

RETRY_FOR_S = 20.0
# Postgres's codes: lock_not_available, idle_in_transaction_session_timeout.
LOCK_TIMEOUT, IDLE_IN_TRANSACTION = "55P03", "25P03"
READ_CLOCK_EVERY_S = 5.0
# No id of a row.
GIVEN = 2**62
# More than a clock that is adjusted little by little moves in that time.
LEAST_STEP_S = 0.1


@dataclass(frozen=True)
class _Reading:
    """What the database's clock said, and when that was by the clocks of this process."""

    at: datetime
    monotonic: float
    wall: float

    @classmethod
    def take(cls) -> "_Reading":
        with connection.cursor() as cursor:
            cursor.execute("SELECT statement_timestamp()")
            [at] = cursor.fetchone()
        # Afterwards, so that `now` is never ahead of the database.
        return cls(at, time.monotonic(), time.time())

    def now(self) -> datetime:
        return self.at + timedelta(seconds=time.monotonic() - self.monotonic)

    def is_good(self) -> bool:
        """Not if somebody has set this machine's clock since: the database may be on the same machine."""
        age_s = time.monotonic() - self.monotonic
        return age_s < READ_CLOCK_EVERY_S and abs(time.time() - self.wall - age_s) < LEAST_STEP_S


_reading: _Reading | None = None


def now() -> datetime:
    """The time by the database's clock, within some milliseconds and never ahead of it: for every stamp that is stored
    or compared. The clocks of hosts differ by minutes, and then a host that is behind seems to be missing, and one
    that is ahead to be alive after its death.

    Postgres is asked once in READ_CLOCK_EVERY_S; between, and while it is away, this process counts on. SQLite's clock
    is that of this machine. Raises DatabaseError if the database was never asked and is away.
    """
    global _reading
    if connection.vendor == "sqlite":
        return timezone.now()
    reading = _reading
    if reading is None or not reading.is_good():
        try:
            reading = _reading = _Reading.take()
        except (DatabaseError, InterfaceError):
            if reading is None:
                raise
            reading = _reading = _Reading(reading.now(), time.monotonic(), time.time())
    return reading.now()


def from_now(delay: timedelta) -> "ExpressionWrapper[CombinedExpression]":
    """`delay` from now by the database's clock: the hosts' own clocks may differ, and times are compared in SQL."""
    return ExpressionWrapper(Now() + delay, output_field=DateTimeField())


class _Worded:
    """A statement that is made all the time. Django puts it into words once in each process.

    That takes it a tenth of a millisecond of CPU time for a plain query, and a millisecond or two for a question about
    lines; SQLite answers either in 0.05 ms. So the words must never change: what depends on the time is filled in by
    the database (`Now()`, `from_now`), and nothing depends on a setting. GIVEN stands for the id of the row that the
    statement is about.
    """

    def __init__(self) -> None:
        self._words: tuple[str, tuple[Any, ...]] | None = None

    @contextmanager
    def _done(self, given: int | str) -> Iterator[CursorWrapper]:
        if self._words is None:
            made = self._worded()
            if made != self._worded():
                raise ValueError(f"The words change with the time: {made}")
            self._words = made
        words, values = self._words
        with connection.cursor() as cursor:
            cursor.execute(words, tuple(given if each in (GIVEN, str(GIVEN)) else each for each in values))
            yield cursor

    def _worded(self) -> tuple[str, tuple[Any, ...]]:
        raise NotImplementedError


class Asked(_Worded):
    """A question: whether any of these queries finds a row."""

    def __init__(self, *queries: Callable[[], "QuerySet[Any]"]) -> None:
        super().__init__()
        self.queries = queries

    def is_true(self, given: int | str = 0) -> bool:
        """One statement. Raises DatabaseError."""
        with self._done(given) as cursor:
            [found] = cursor.fetchone()
        return bool(found)

    def _worded(self) -> tuple[str, tuple[Any, ...]]:
        parts = [query().query.exists().get_compiler(connection=connection).as_sql() for query in self.queries]
        return (
            "SELECT " + " OR ".join(f"EXISTS ({words})" for words, _ in parts),
            tuple(each for _, given in parts for each in given),
        )


class Column(_Worded):
    """One column of the rows that a query finds, in its order: their ids, or another column that is read as it is."""

    def __init__(self, query: Callable[[], "QuerySet[Any]"], name: str = "pk") -> None:
        super().__init__()
        self._query, self._name = query, name

    def of(self, given: int | str = 0) -> list[Any]:
        """One statement. Raises DatabaseError."""
        with self._done(given) as cursor:
            return [value for [value] in cursor.fetchall()]

    def _worded(self) -> tuple[str, tuple[Any, ...]]:
        words, values = self._query().values_list(self._name).query.get_compiler(connection=connection).as_sql()
        return words, tuple(values)


class Change(_Worded):
    """New values for the rows that a query finds."""

    def __init__(self, query: Callable[[], "QuerySet[Any]"], **values: Any) -> None:
        super().__init__()
        self._query, self._values = query, values

    def make(self, given: int | str = 0) -> int:
        """How many rows were changed. One statement. Raises DatabaseError."""
        with self._done(given) as cursor:
            return int(cursor.rowcount)

    def _worded(self) -> tuple[str, tuple[Any, ...]]:
        query: Any = self._query().query.chain(UpdateQuery)
        query.add_update_values(self._values)
        words, values = query.get_compiler(connection=connection).as_sql()
        return words, tuple(values)


def insert(model: type[Model], names: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert rows that give the fields `names`, as the database takes them; all other fields have their defaults.

    Ids that are not given stay unknown. Raises IntegrityError. `bulk_create` makes an instance of each row and prepares
    every field of it: 127 us of CPU time for a Line on SQLite; `insert` takes 9.
    """
    fields: dict[str, Any] = {field.name: field for field in model._meta.concrete_fields}
    given = [fields.pop(name).column for name in names]
    defaults = {
        field.column: field.get_db_prep_save(field.get_default(), connection)
        for field in fields.values()
        if not field.primary_key and field.get_default() is not None
    }
    quote = connection.ops.quote_name
    columns = ", ".join(map(quote, [*given, *defaults]))
    whole: Any = ((*row, *defaults.values()) for row in rows)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            statement = f"COPY {quote(model._meta.db_table)} ({columns}) FROM STDIN"
            with connection.wrap_database_errors, cursor.copy(statement) as copy:
                for row in whole:
                    copy.write_row(row)
        else:
            places = ", ".join(["%s"] * (len(given) + len(defaults)))
            cursor.executemany(f"INSERT INTO {quote(model._meta.db_table)} ({columns}) VALUES ({places})", whole)


def is_away(error: Exception) -> bool:
    """Whether the database is locked or away, or has ended a transaction of ours that was idle: it may pass. Postgres
    has another class of errors for the latter."""
    return isinstance(error, OperationalError | InterfaceError) or _code(error) == IDLE_IN_TRANSACTION


def _code(error: Exception) -> str | None:
    """Postgres's code of the error."""
    return getattr(error.__cause__, "sqlstate", None)


@contextmanager
def passing_by_locks() -> Iterator[None]:
    """A transaction for one of many things to do. If another process has a row of it locked for longer than a moment,
    nothing of it is done and the block ends without an error: the others need not wait, and whoever is asked again
    later does it. On SQLite, which has one lock for all, it is any transaction.
    """
    try:
        with transaction.atomic():
            if connection.vendor == "postgresql":
                with connection.cursor() as cursor:
                    cursor.execute("SET LOCAL lock_timeout = '500ms'")
            yield
    except OperationalError as error:
        if _code(error) != LOCK_TIMEOUT:
            raise
        logger.info("another process has the rows locked: they are looked at again later")


@contextmanager
def relaxed_commits() -> Iterator[None]:
    """On SQLite let commits of this connection survive kill -9 but not a power cut, and wait at most 5 s for a lock.

    For what a drive writes beside answers: a lost claim is made again, and so is a lost move to finalizing. Answers
    (`durable_commit`), an accepted batch and the final moves keep the full fsync. On Postgres everything keeps it:
    without it, the latest commits are in the server's own memory, and are lost if one of its processes is killed.
    """
    with _pragmas(
        {"synchronous": "NORMAL", "busy_timeout": 5000}, after={"synchronous": "FULL", "busy_timeout": 20000}
    ):
        yield


@contextmanager
def not_waiting() -> Iterator[None]:
    """On SQLite let a write raise OperationalError at once while another has the lock: for what may as well be written
    at another time. Postgres locks rows one by one, so there nothing changes."""
    with _pragmas({"busy_timeout": 0}, after={"busy_timeout": 20000}):
        yield


@contextmanager
def durable_commit() -> Iterator[None]:
    """Let what commits in the block survive a power cut, with all that was committed before, inside of
    `relaxed_commits` too. Begin the transaction in the block: within one, SQLite refuses to change this."""
    if connection.vendor != "sqlite" or connection.in_atomic_block:
        yield
        return
    with connection.cursor() as cursor:
        [before] = cursor.execute("PRAGMA synchronous").fetchone()
    with _pragmas({"synchronous": "FULL"}, after={"synchronous": before}):
        yield


@contextmanager
def bulk_writes() -> Iterator[None]:
    """On SQLite let this connection use 56 MiB of memory, and 64 of the log, for writes all over the indexes.

    With a million rows, each group then finds the pages that it changes in memory, and most changes of a page reach the
    database's file together: 33,000 rows/s and 2.9 KB written a row, instead of 27,000 and 4.3, and as fast at the end
    as at the start.
    """
    with _pragmas(
        {"cache_size": -57344, "wal_autocheckpoint": 16384}, after={"cache_size": -2000, "wal_autocheckpoint": 1000}
    ):
        yield


@contextmanager
def _pragmas(during: dict[str, Any], after: dict[str, Any]) -> Iterator[None]:
    """SQLite's settings of this connection while the block runs."""
    if connection.vendor != "sqlite":
        yield
        return
    _set(during)
    try:
        yield
    finally:
        # A connection that was lost meanwhile has lost its settings too.
        if connection.connection is not None and connection.is_usable():
            _set(after)


def _set(pragmas: dict[str, Any]) -> None:
    with connection.cursor() as cursor:
        for name, value in pragmas.items():
            cursor.execute(f"PRAGMA {name}={value}")


class DamagedText(ValueError):
    """A text of a row is not UTF-8. SQLite keeps no checksums, so a damaged page may give such a text."""


def readable(query: Callable[[], T]) -> T:
    """What `query` returns. Raises DamagedText if a text that it reads is not UTF-8, instead of the OperationalError
    that also says that the database is locked or away."""
    try:
        return query()
    except OperationalError as error:
        if "Could not decode to UTF-8" in str(error):  # sqlite3 has no code for it
            raise DamagedText from error
        raise


def retrying(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns. While the database `is_away`, try again for RETRY_FOR_S, then raise the last error.

    `work` must be one transaction that can be run again. An error of a missing table or column is raised at once.
    """
    ends_at = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            return work(*args, **kwargs)
        except Error as error:
            if not is_away(error) or time.monotonic() > ends_at or schema.is_schema_error(error):
                raise
            logger.warning("the database did not answer, trying again: %s", error)
            connection.close_if_unusable_or_obsolete()
            signs_of_life.alive()
            time.sleep(0.5)
