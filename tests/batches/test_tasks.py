"""What the tick finds and pushes on: whatever a lost message or a dead process can leave behind."""

from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from batches import leases, lifecycle, registry, tasks
from batches.dispatch import dispatcher
from batches.models import (
    Backend,
    Batch,
    Counts,
    Hold,
    Lease,
    Line,
    LineState,
    Part,
    PausedModel,
    Pulse,
    Status,
    WebhookDelivery,
)
from batches.status import health
from batchserver import worker
from common import database
from tests.conftest import line
from tests.fake_backend import Action
from tests.ticks import next_tick, tick


@pytest.fixture
def asks_for_tick(sent):
    """Whether the main process of the control worker asks for a tick now."""

    def ask():
        sent.clear()
        worker._ask_for_tick()
        return sent == [("tick",)]

    return ask


def forgotten(batch_id):
    """The batch's last message was sent long ago and lost."""
    Batch.objects.filter(pk=batch_id).update(nudged_at=timezone.now() - timedelta(minutes=1))


def test_creating_asks_for_validation(create, sent, work):
    batch = create([line("a")])
    assert sent == [("validate", batch["id"])]


def test_what_a_dead_process_was_at_is_asked_for_at_once(create, sent):
    batch = create([line("a")])["id"]
    Batch.objects.update(lease=leases.acquire("validate"))
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    sent.clear()
    tick()
    assert sent == [("validate", batch)]


def test_a_lost_message_of_any_step_is_sent_again_once_in_a_while(create, work, backend, sent):
    batch = create([line("a")])["id"]
    for step, status in (("validate", "validating"), ("finalize", "finalizing"), ("tidy", "completed")):
        assert work.batch(batch)["status"] == status
        forgotten(batch)
        sent.clear()
        tick()
        assert (step, batch) in sent
        sent.clear()
        tick()
        assert (step, batch) not in sent
        if step == "validate":
            work.validate(batch)
            sent.clear()
            tick()
            assert sent == [("drive",)]
            work.drive()
        elif step == "finalize":
            tasks.results.finalize(batch, breathe=lambda: None)
    work.finalize(batch)
    forgotten(batch)
    sent.clear()
    tick()
    assert sent == []


OPEN = {
    "a sweep": lambda batch: Pulse.objects.filter(pk="sweep").update(at=timezone.now() - 2 * tasks.SWEEP_EVERY),
    "the first sweep": lambda batch: Pulse.objects.all().delete(),
    "a clock that went back": lambda batch: Pulse.objects.update(at=timezone.now() + timedelta(hours=1)),
    "a duty that failed": lambda batch: Pulse.stamp("ticked", error="send webhooks (OSError)"),
    "a batch": lambda batch: Batch.objects.update(status=Status.VALIDATING, tidied_at=None),
    "a batch to tidy": lambda batch: Batch.objects.update(tidied_at=None),
    "a lease": lambda batch: leases.acquire("drive"),
    "a token on a batch": lambda batch: Batch.objects.update(lease_id=7),
    "a token on a line": lambda batch: Line.objects.update(state=LineState.RUNNING, lease_id=7),
    "counts": lambda batch: Counts.objects.create(batch_id=batch, lease_id=7),
    "an event": lambda batch: WebhookDelivery.announce(batch, "batch.completed"),
    "a paused model": lambda batch: PausedModel.pause(
        registry.own_backend(), "/v1/chat/completions", "gemma", "It fails.", at_least=timedelta(hours=1)
    ),
}


@pytest.mark.parametrize("what", OPEN)
def test_a_tick_is_asked_for_while_anything_is_open(what, create, work, backend, sent, settings, asks_for_tick):
    settings.WEBHOOK_URL = "http://127.0.0.1:9/hook"
    batch = create([line("a")])["id"]
    work.run(batch)
    WebhookDelivery.objects.all().delete()
    tick()
    assert not asks_for_tick()
    OPEN[what](batch)
    assert asks_for_tick()


def test_an_idle_tick_and_what_asks_for_it_are_cheap(work, sent, asks_for_tick, django_assert_max_num_queries):
    tick()
    with django_assert_max_num_queries(2):
        assert not asks_for_tick()
    Pulse.objects.filter(pk="tick").update(at=timezone.now() - timedelta(seconds=2))
    with django_assert_max_num_queries(11):
        tasks.tick()


def test_a_database_that_is_away_is_told_by_a_tick(work, sent, asks_for_tick):
    tick()

    def away(execute, sql, params, many, context):
        raise OperationalError("the database system is shutting down")

    with connection.execute_wrapper(away):
        assert asks_for_tick()


def test_a_cancelled_batch_is_finalized(api, create, work, sent):
    batch = create([line("a")])["id"]
    api.post(f"/v1/batches/{batch}/cancel")
    assert ("finalize", batch) in sent


def test_an_overdue_batch_is_closed_and_finalized(create, work, sent):
    batch = create([line("a")])["id"]
    work.validate(batch)
    Batch.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    sent.clear()
    tick()
    assert Batch.objects.get().status == Status.FINALIZING
    assert sent == [("finalize", batch)]


def test_the_lines_of_a_dead_worker_are_taken_back_and_driven_again(create, work, sent):
    batch = create([line("a")])["id"]
    work.validate(batch)
    lease = leases.acquire(dispatcher.PURPOSE)
    Line.objects.update(state=LineState.RUNNING, lease=lease)
    sent.clear()
    tick()
    assert sent == []  # it is at work

    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    tick()
    assert Line.objects.get().state == LineState.PENDING
    assert sent == [("drive",)]


def test_a_paused_backend_wakes_nobody_until_it_answers(create, work, backend, sent):
    batch = create([line("a")])["id"]
    work.validate(batch)
    registry.own_backend().pause("away")
    sent.clear()
    tick()
    assert sent == []
    registry.report_backend()
    assert not Backend.objects.get().is_paused
    tick()
    assert sent == [("drive",)]


def test_a_line_that_waits_before_its_next_attempt_wakes_nobody(create, work, sent):
    work.validate(create([line("a")])["id"])
    Line.objects.update(not_before=timezone.now() + timedelta(minutes=1))
    sent.clear()
    tick()
    assert sent == []


def test_many_ticks_at_once_are_one(create, work, sent):
    work.validate(create([line("a")])["id"])
    sent.clear()
    tick()
    for _ in range(5):
        tasks.tick()
    assert sent == [("drive",)]


def test_one_drive_is_woken_for_each_that_could_run(create, work, sent, settings):
    settings.MAX_CONCURRENT_BATCHES = 2
    work.validate(create([line("a"), line("b")])["id"])
    for running in (0, 1, 2):
        sent.clear()
        tick()
        assert sent == ([("drive",)] if running < 2 else [])
        leases.acquire(dispatcher.PURPOSE)


@pytest.fixture
def no_sweep(settings):
    """There is a file where the directory of uploads should be."""
    directory = settings.UPLOAD_DIR
    settings.UPLOAD_DIR = directory / "file"
    settings.UPLOAD_DIR.write_text("no directory")
    yield
    settings.UPLOAD_DIR = directory


def test_a_duty_that_fails_is_told_by_health_and_logged_once(create, work, sent, request, settings, caplog):
    work.validate(create([line("a")])["id"])
    request.getfixturevalue("no_sweep")
    sent.clear()
    tick()
    assert sent == [("drive",)]  # the other duties are done
    reason = (
        "The control worker cannot remove files that are not needed (FileExistsError: File exists); its log says more."
    )
    assert (health.summary()["status"], health.summary()["reason"]) == ("failing", reason)
    for _ in range(3):
        next_tick()
    assert health.summary()["status"] == "failing"
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [(record.message, record.exc_info[0]) for record in errors] == [
        ("the tick cannot remove files that are not needed (FileExistsError: File exists)", FileExistsError)
    ]
    settings.UPLOAD_DIR = settings.UPLOAD_DIR.parent
    next_tick()
    assert health.summary()["status"] == "ok"


def test_each_duty_that_fails_is_logged(work, sent, no_sweep, caplog):
    tick()
    caplog.clear()

    def broken(execute, sql, params, many, context):
        if "batches_answer" in sql:
            raise OperationalError("disk I/O error")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(broken):
        next_tick()
        next_tick()
    assert [record.message for record in caplog.records] == ["the tick cannot forget old answers (OperationalError)"]
    reason = health.summary()["reason"]
    assert "forget old answers (OperationalError), remove files" in reason
    assert "disk I/O" not in reason


def test_a_tick_that_cannot_run_at_all_fails_health_after_a_while(work, sent, caplog):
    tick()
    caplog.clear()

    def away(execute, sql, params, many, context):
        raise OperationalError("the database system is shutting down")

    with connection.execute_wrapper(away):
        tasks.tick()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert health.summary()["status"] == "ok"
    Pulse.objects.filter(pk="ticked").update(at=timezone.now() - 2 * health.TICK_MISSING_AFTER)
    assert health.summary()["status"] == "failing"


def test_a_batch_that_was_closed_is_woken_though_the_next_close_fails(create, work, sent):
    first, second = (create([line("a")])["id"] for _ in range(2))
    for batch in (first, second):
        work.validate(batch)
    Line.objects.update(state=LineState.SUCCEEDED)
    sent.clear()
    moves = []

    def breaks_off(execute, sql, params, many, context):
        if sql.startswith('UPDATE "batches_batch" SET "status"'):
            moves.append(sql)
            if len(moves) == 2:
                raise OperationalError("database is locked")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(breaks_off):
        tick()
    closed = Batch.objects.get(status=Status.FINALIZING).pk
    assert sent == [("finalize", closed)]
    assert "close finished batches (OperationalError)" in health.summary()["reason"]
    sent.clear()
    next_tick()
    other = ({first, second} - {closed}).pop()
    assert sent == [("finalize", other)]
    assert health.summary()["status"] == "ok"


def test_a_drive_wakes_a_closed_batch_though_the_next_close_fails(create, work, backend, monkeypatch):
    """It tries again at once, and then finds only the other one to close."""
    monkeypatch.setattr("common.database.time.sleep", lambda seconds: None)
    batches = [create([line("a")])["id"] for _ in range(2)]
    for batch in batches:
        work.validate(batch)
    moves = []

    def breaks_off(execute, sql, params, many, context):
        if sql.startswith('UPDATE "batches_batch" SET "status"'):
            moves.append(sql)
            if len(moves) == 2:
                raise OperationalError("database is locked")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(breaks_off):
        assert sorted(work.drive()) == sorted(batches)


@pytest.fixture
def many(create, work):
    """Fifty batches in progress: one of this file's lines to send, one that an operator paused, and one whose last line
    a drive stored that died before it closed the batch."""
    ids = [create([line(str(number))])["id"] for number in range(50)]
    for each in ids:
        work.validate(each)
    Batch.objects.exclude(pk=ids[0]).update(paused_at=timezone.now())
    Line.objects.filter(batch=ids[1]).update(state=LineState.SUCCEEDED)
    return ids


def test_a_drive_asks_for_the_batches_that_it_stores_lines_of_and_the_tick_for_the_others(
    many, work, backend, sent, django_assert_num_queries
):
    """With a thousand drives and two thousand batches, each second two million would be looked at."""
    with django_assert_num_queries(0):
        lifecycle.close_finished(lambda batch_id: None, [])  # as a drive that has nothing
    assert work.drive() == [many[0]]
    assert Batch.objects.get(pk=many[1]).status == Status.IN_PROGRESS
    sent.clear()
    tick()
    assert Batch.objects.get(pk=many[1]).status == Status.FINALIZING
    assert ("finalize", many[1]) in sent


def test_a_drive_closes_the_batch_of_its_lines_that_is_overdue(many, work, backend, monkeypatch):
    monkeypatch.setattr("batches.dispatch.periodic_checks.LOOK_EVERY_S", 0.05)
    backend.on("0", Action(delay_s=30))
    Batch.objects.filter(pk=many[0]).update(expires_at=timezone.now() + timedelta(seconds=1))
    Batch.objects.filter(pk=many[2]).update(expires_at=timezone.now() - timedelta(seconds=1))
    assert work.drive() == [many[0]]
    assert set(Batch.objects.filter(status=Status.FINALIZING).values_list("pk", flat=True)) == {many[0]}
    tick()
    assert Batch.objects.get(pk=many[2]).status == Status.FINALIZING


def test_a_step_that_finishes_the_last_line_closes_the_batch_though_no_tick_is_due(create, work, sent):
    batch = create([line("a")])["id"]
    work.validate(batch)
    Part.objects.update(failure={"status": 404, "body": "{}", "code": "model_not_found", "message": "none"})
    tick()
    sent.clear()
    tasks.fail_lines(batch)
    assert Batch.objects.get().status == Status.FINALIZING
    assert sent == [("finalize", batch)]


def test_health_tells_of_a_missing_tick(db):
    assert health.summary()["status"] == "failing"
    Pulse.stamp("ticked")
    assert health.summary()["status"] == "waiting"  # no worker has reported
    Pulse.objects.update(at=timezone.now() - timedelta(minutes=5))
    assert health.summary()["status"] == "failing"


def test_a_broker_that_is_away_is_no_error(create, work, monkeypatch):
    from kombu.exceptions import OperationalError

    def refused(self, args=(), **options):
        raise OperationalError("Connection refused")

    monkeypatch.setattr("celery.app.task.Task.apply_async", refused)
    assert create([line("a")])["status"] == "validating"


def test_holds_that_ended_are_forgotten(db, sent):
    _over, lasting = (
        Hold.objects.create(reason=Hold.Reason.PERSON, until=timezone.now() + timedelta(seconds=seconds))
        for seconds in (-1, 5)
    )
    tick()
    assert list(Hold.objects.all()) == [lasting]


@pytest.mark.parametrize("off_s", [300, -300])
def test_a_message_lives_on_a_host_whose_clock_is_off(off_s, db, monkeypatch):
    """Whoever reads it looks at the clock of its host; what counts is that of the database when it is sent."""
    sent = {}
    monkeypatch.setattr(tasks.drive, "apply_async", lambda **options: sent.update(options))
    monkeypatch.setattr(database, "now", lambda: timezone.now() + timedelta(seconds=off_s))
    tasks.wake(tasks.drive)
    left_s = (sent["expires"] - timezone.now()).total_seconds() - off_s
    assert 590 < left_s <= 600
