import time
from datetime import UTC, datetime, timedelta

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models import Exists
from django.db.models.functions import Now
from django.utils import timezone

from batches import registry, tasks
from batches.models import Backend, Pulse
from batches.status import health
from common import database, signs_of_life
from common.database import (
    GIVEN,
    Asked,
    Change,
    Column,
    bulk_writes,
    durable_commit,
    insert,
    passing_by_locks,
    relaxed_commits,
    retrying,
)
from tests.conftest import line


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
        assert (setting("PRAGMA cache_size"), setting("PRAGMA wal_autocheckpoint")) == (-57344, 16384)
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
    assert setting("SHOW idle_in_transaction_session_timeout") == "15s"
    given = connection.connection.info.get_parameters()
    assert (given["connect_timeout"], given["tcp_user_timeout"]) == ("10", "60000")


on_postgres = pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite's own wait has a test above")


# What a connection has beyond its transactions.
OF_SESSION = """
    SELECT 'prepared ' || statement FROM pg_prepared_statements
    UNION ALL SELECT 'cursor ' || statement FROM pg_cursors
    UNION ALL SELECT 'advisory lock' FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
    UNION ALL SELECT 'listens to ' || channel FROM pg_listening_channels() AS channel
    UNION ALL SELECT 'set ' || name FROM pg_settings WHERE source = 'session'
    UNION ALL SELECT 'table ' || relname FROM pg_class WHERE relpersistence = 't' AND pg_table_is_visible(oid)
"""


@on_postgres
def test_nothing_outlives_its_transaction(create, work, backend, api):
    """Between two of them a PgBouncer gives the connection to others, and ours is another one (docs/deploy.md)."""

    def of_session():
        return connection.connection.execute(OF_SESSION).fetchall()

    def watch(execute, sql, params, many, context):
        if not connection.in_atomic_block:
            assert of_session() == before, f"before {sql}"
        answer = execute(sql, params, many, context)
        if not connection.in_atomic_block:
            assert of_session() == before, f"behind {sql}"
        return answer

    setting("SHOW lock_timeout")  # connects
    before = of_session()
    with connection.execute_wrapper(watch):
        done = work.run(
            create([line("a"), line("b", body={"temperature": 0}), line("c", body={"temperature": 0})])["id"]
        )
        assert [each["custom_id"] for each in work.content(done["output_file_id"])] == ["a", "b", "c"]
        tasks.tick()
        assert api.get("/v1/batches").status_code == api.get("/health").status_code == 200
    assert of_session() == before


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


@on_postgres
def test_a_transaction_that_stood_still_is_tried_again(transactional_db):
    """As after SIGSTOP, or a cut cable: the server has ended it, and says so by an error of a class of its own."""
    tries = []

    @transaction.atomic
    def work():
        tries.append(1)
        Backend.objects.create(name=f"try {len(tries)}", url="http://a")
        if len(tries) == 1:
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL idle_in_transaction_session_timeout = '20ms'")
            time.sleep(0.2)
        return Backend.objects.count()

    assert retrying(work) == 1
    assert Backend.objects.get().name == "try 2"


@on_postgres
def test_a_request_whose_transaction_stood_still_is_told_to_come_again(api, monkeypatch):
    def stands_still(*_):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = '20ms'")
            time.sleep(0.2)
            cursor.execute("SELECT 1")

    monkeypatch.setattr("batches.creation.create", lambda **_: stands_still())
    answer = api.post(
        "/v1/batches",
        {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        format="json",
    )
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")


@on_postgres
def test_what_is_locked_for_longer_than_a_moment_is_passed_by(locked):
    started = time.monotonic()
    done = []
    with passing_by_locks():
        done.append(Backend.objects.count())
    assert done == []
    assert time.monotonic() - started < 5
    with pytest.raises(IntegrityError), passing_by_locks():  # no other error is passed by
        raise IntegrityError
    locked.close()
    with passing_by_locks():
        done.append(Backend.objects.count())
    assert done == [0]


# The database's clock


@pytest.fixture
def clock_is_off(monkeypatch):
    """Sets the clock of this process off by so many seconds."""
    real = time.time

    def set_off(seconds):
        monkeypatch.setattr(time, "time", lambda: real() + seconds)
        monkeypatch.setattr(timezone, "now", lambda: datetime.fromtimestamp(real() + seconds, UTC))

    monkeypatch.setattr(database, "_reading", None)
    yield set_off
    monkeypatch.undo()
    database._reading = None


def seconds_off():
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return (database.now() - cursor.fetchone()[0]).total_seconds()


@on_postgres
@pytest.mark.parametrize("off_s", [300, -300, 86_400])
def test_stamps_are_of_the_databases_clock_whatever_that_of_the_host_says(off_s, db, clock_is_off):
    clock_is_off(off_s)
    assert -1 < seconds_off() < 0.01


@on_postgres
def test_the_clock_is_asked_again_when_that_of_the_host_was_set(db, clock_is_off, django_assert_num_queries):
    database.now()
    with django_assert_num_queries(0):
        for _ in range(100):
            database.now()
    clock_is_off(60)
    with django_assert_num_queries(1):
        for _ in range(100):
            database.now()
    assert -1 < seconds_off() < 0.01


@on_postgres
def test_the_clock_goes_on_while_the_database_is_away(db, clock_is_off, monkeypatch):
    before = database.now()
    clock_is_off(60)

    def away(*_):
        raise OperationalError("away")

    with monkeypatch.context() as patched:
        patched.setattr("django.db.backends.utils.CursorWrapper.execute", away)
        assert timedelta() <= database.now() - before < timedelta(seconds=30)
        database._reading = None
        with pytest.raises(OperationalError):
            database.now()


@on_postgres
@pytest.mark.parametrize("off_s", [300, -300])
def test_a_host_whose_clock_is_off_is_seen_alive_and_dead_as_it_is(off_s, db, clock_is_off, settings):
    """A worker reports by its clock, and others look by theirs."""
    here = Backend.objects.create(name="here", url="http://a")
    clock_is_off(off_s)
    Backend.objects.filter(pk=here.pk).update(worker_seen_at=database.now(), seen_at=database.now())
    Pulse.stamp("ticked")
    clock_is_off(-off_s)
    assert [each.is_fresh for each in registry.live_backends()] == [True]
    assert health.tick_trouble() == []
    past = "now() - interval '40 seconds'"
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE batches_backend SET worker_seen_at = {past}, seen_at = {past}")
        cursor.execute(f"UPDATE batches_pulse SET at = {past}")
    for seconds in (off_s, -off_s):
        clock_is_off(seconds)
        assert registry.live_backends() == []
        assert not Backend.objects.get().is_fresh
        assert health.tick_trouble() == ["The control worker has not ticked lately."]


def test_a_question_that_is_asked_all_the_time_is_answered_anew_each_time(db):
    old = Pulse.objects.filter(at__lte=database.from_now(-timedelta(seconds=60)))
    asked = Asked(Backend.objects.all, lambda: old)
    assert not asked.is_true()
    Pulse.stamp("ticked")
    assert not asked.is_true()
    Pulse.objects.update(at=timezone.now() - timedelta(seconds=61))
    assert asked.is_true()
    Pulse.objects.all().delete()
    Backend.objects.create(name="here")
    assert asked.is_true()


def test_columns_and_changes_are_those_of_the_moment_and_of_the_row_that_is_given(db, django_assert_num_queries):
    old = Pulse.objects.filter(at__lte=database.from_now(-timedelta(seconds=60)))
    ids = Column(lambda: Backend.objects.filter(url="http://here").order_by("-pk"))
    change = Change(lambda: Backend.objects.filter(pk=GIVEN).filter(Exists(old)), seen_at=Now(), version="2")
    first, second = (Backend.objects.create(name=name, url="http://here", version="1") for name in "ab")
    names = Column(lambda: Backend.objects.filter(pk=GIVEN), "name")
    with django_assert_num_queries(3):
        assert ids.of() == [second.pk, first.pk]
        assert names.of(second.pk) == ["b"]
        assert change.make(first.pk) == 0
    Pulse.objects.create(name="old", at=timezone.now() - timedelta(seconds=61))
    assert change.make(first.pk) == 1
    assert change.make(2**40) == 0
    assert dict(Backend.objects.values_list("pk", "version")) == {first.pk: "2", second.pk: "1"}
    first.refresh_from_db()
    assert first.seen_at is not None
    second.delete()
    assert ids.of() == [first.pk]


def test_a_question_whose_words_change_with_the_time_is_refused(db):
    with pytest.raises(ValueError, match="The words change with the time"):
        Asked(lambda: Pulse.objects.filter(at__lte=timezone.now())).is_true()
    with pytest.raises(ValueError, match="The words change with the time"):
        Change(lambda: Pulse.objects.filter(at__lte=timezone.now()), error="").make()
