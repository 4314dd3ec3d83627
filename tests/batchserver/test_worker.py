"""What a worker's main process asks its own processes for."""

import gc
import socket
import time
from functools import partial
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.signals import worker_before_create_process
from django.db import OperationalError, connection
from kombu.asynchronous import Hub
from kombu.exceptions import OperationalError as BrokerError

from batches import registry, tasks
from batchserver import worker
from tests.conftest import line


@pytest.fixture
def asked(monkeypatch):
    """The messages that go out: task, queue, and how long they hold."""
    messages = []

    def publish(self, args=(), **options):
        messages.append((self.name.rpartition(".")[2], options.get("queue"), options.get("expires")))

    monkeypatch.setattr("celery.app.task.Task.apply_async", publish)
    monkeypatch.setattr(worker, "ASK_AGAIN_AFTER_S", 60.0)
    return messages


@pytest.fixture
def with_work(create, work, backend, asked):
    registry.report_backend()
    work.validate(create([line("a"), line("b")])["id"])
    asked.clear()


@pytest.mark.usefixtures("with_work")
def test_it_asks_its_own_processes_for_a_drive_and_not_again_at_once(asked, monkeypatch):
    own, other = worker.OwnWork(), worker.OwnWork()
    for _ in range(3):
        own.look()
    other.look()
    assert [(task, expires) for task, _, expires in asked] == [("drive", 60.0)] * 2
    assert [queue for _, queue, _ in asked] == [own.queue.name, other.queue.name]
    assert own.queue.name != other.queue.name
    monkeypatch.setattr(worker, "ASK_AGAIN_AFTER_S", 0.0)
    own.look()
    assert len(asked) == 3


def test_a_drive_that_is_over_keeps_no_new_work_waiting(with_work, asked, create, work, backend):
    """A batch was answered in a moment, the next one comes behind it, and no other worker has the model."""
    own = worker.OwnWork()
    own.look()
    tasks.drive()
    assert sorted(backend.arrived()) == ["a", "b"]
    own.look()
    work.validate(create([line("c")])["id"])
    asked.clear()
    for _ in range(3):
        own.look()
    assert [queue for _, queue, _ in asked] == [own.queue.name]


@pytest.mark.usefixtures("with_work")
def test_it_asks_for_as_many_as_it_has_processes(asked, settings):
    settings.MAX_CONCURRENT_BATCHES = 4
    worker.OwnWork().look()
    assert len(asked) == 4


@pytest.mark.usefixtures("with_work")
def test_a_worker_that_ends_asks_for_nothing(asked, monkeypatch):
    monkeypatch.setattr(tasks.shutdown, "value", 1)
    worker.OwnWork().look()
    assert asked == []


@pytest.mark.usefixtures("with_work")
def test_a_database_or_broker_that_is_away_is_no_error(asked, monkeypatch, caplog):
    def away(execute, sql, params, many, context):
        raise OperationalError("the database system is shutting down")

    own = worker.OwnWork()
    with connection.execute_wrapper(away):
        own.look()
    assert asked == []
    assert "the database does not answer" in caplog.messages[-1]

    def refused(self, args=(), **options):
        raise BrokerError("Connection refused")

    monkeypatch.setattr("celery.app.task.Task.apply_async", refused)
    own.look()
    assert "the broker does not answer" in caplog.messages[-1]


def test_a_message_goes_to_its_own_queue_and_leaves_nothing_else_at_the_broker():
    """By Celery's and kombu's own code, at a broker in memory."""
    with Celery(broker="memory://", set_as_current=False) as app:
        own = worker.OwnWork()
        app.amqp.queues.select_add(own.queue)
        with app.connection_for_write() as connection, connection.channel() as channel:
            before = set(channel.state.bindings)
            app.send_task("drive", queue=own.queue.name, connection=connection)
            assert set(channel.state.bindings) == before
            taken = []
            with app.amqp.TaskConsumer(channel, queues=[own.queue], callbacks=[lambda _, sent: taken.append(sent)]):
                connection.drain_events(timeout=5)
    assert [each.headers["task"] for each in taken] == ["drive"]


def test_the_collector_leaves_alone_what_a_process_of_the_pool_shares_with_its_parent():
    """A full collection in either of them would else write to all of it: 27 MB of its own for each process."""
    try:
        worker_before_create_process.send(sender=None)
        assert gc.get_freeze_count() > 100_000
    finally:
        gc.unfreeze()


def test_each_duty_is_done_in_its_rounds_and_whatever_becomes_of_the_others(caplog):
    done, rounds = [], worker.Rounds()
    rounds.add(2.0, lambda: 1 / 0)
    for every_s in (1.0, 2.0, 3.0):
        rounds.add(every_s, partial(done.append, every_s))
    for _ in range(6):
        rounds.go()
        done.append(0)
    assert done == [*(1, 2, 3, 0), *(1, 0), *(1, 2, 0), *(1, 3, 0), *(1, 2, 0), *(1, 0)]
    assert len(caplog.records) == 3


def test_a_loop_that_goes_round_all_the_time_has_a_round_a_second(monkeypatch):
    clock, went_at, rounds = [100.0], [], worker.Rounds()
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    rounds.add(1.0, lambda: went_at.append(clock[0]))
    for _ in range(1000):
        rounds.go_if_due()
        clock[0] += 0.01
    assert len(went_at) == pytest.approx(11, abs=1)
    assert went_at[0] == 100.0


def test_a_loop_in_which_nothing_happens_has_its_rounds_all_the_same(monkeypatch):
    """As with a broker that says nothing, and a kombu without a timer of its own."""
    monkeypatch.setattr(worker, "FALLBACK_S", 0.05)
    monkeypatch.setattr(worker, "SLACK_S", worker.ROUND_S - 0.01)
    hub, went, rounds = Hub(), [], worker.Rounds()
    silent, other = socket.socketpair()
    hub.add_reader(silent.fileno(), went.append, "read")
    rounds.add(1.0, lambda: went.append("round"))
    try:
        rounds.ride_on(hub)
        loop = hub.create_loop()
        ends_at = time.monotonic() + 20
        while len(went) < 4 and time.monotonic() < ends_at:
            next(loop)
        assert went == ["round"] * 4
        rounds.stop()
        assert not hub.on_tick
        assert all(each.entry.canceled for each in hub.timer.schedule.queue)
    finally:
        hub.close()
        silent.close()
        other.close()
