"""A worker whose host has not the files of the database takes no work, and one that is older than the database ends."""

import logging
from types import SimpleNamespace

import pytest
from celery.worker import state
from django.db import OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

from batches import hosts, tasks
from batches.lifecycle import Outcome
from batches.models import Backend, Batch, Line, LineState, Pulse, Response
from batches.status import conditions, health, progress
from batches.status.conditions import Failed
from batchserver import views
from batchserver import worker as workers
from batchserver.fitness import Fitness
from files_api import storage_id
from files_api.models import Storage
from tests.conftest import line


class Queues:
    """The queues that a Celery worker reads, as its consumer is told."""

    def __init__(self):
        self.task_consumer = object()
        self.read = {"control", "inference"}

    def cancel_task_queue(self, name):
        self.read.discard(name)

    def add_task_queue(self, name):
        self.read.add(name)


@pytest.fixture
def queues(transactional_db, monkeypatch):
    monkeypatch.setattr(tasks.hold, "value", 0)
    monkeypatch.setattr(tasks.shutdown, "value", 0)
    monkeypatch.setattr(state, "should_stop", None)
    return Queues()


@pytest.fixture
def fitness(queues):
    storage_id.settle()
    return Fitness(SimpleNamespace(consumer=queues), queues.read, tasks.hold)


@pytest.fixture
def unmounted(settings):
    """Calls take the storage away, and bring it back."""

    def change(is_away):
        place = settings.FILES_DIR
        kept = place.with_name("kept")
        (place.rename(kept), place.mkdir()) if is_away else (place.rmdir(), kept.rename(place))

    return change


def test_a_worker_with_the_files_takes_work_and_says_that_it_works(fitness, queues):
    fitness.look()
    assert queues.read == {"control", "inference"}
    assert Storage.objects.get().seen_at is not None
    assert hosts.held() == {}


def test_a_worker_without_the_files_reads_no_queue_until_they_are_back(fitness, queues, unmounted, caplog, client):
    unmounted(True)
    for _ in range(3):
        fitness.look()
    assert (queues.read, tasks.hold.value) == (set(), 1)
    [told] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert told.startswith("the worker takes no work: The storage of files on this host has no id")
    [reason] = hosts.held().values()
    assert conditions.by_storage() == [Failed("storage", reason)]
    Pulse.stamp("ticked")
    assert health.summary()["status"] == "waiting"
    assert reason in client.get("/health").json()["reason"]
    unmounted(False)
    fitness.look()
    assert (queues.read, tasks.hold.value) == ({"control", "inference"}, 0)
    assert hosts.held() == {}
    assert conditions.by_storage() == []


def test_that_another_host_is_held_is_a_warning_while_others_work(queues, client, monkeypatch):
    """Who asks /readyz whether to send requests here must not be turned away for it."""
    hosts.hold("It has no files.")
    assert conditions.by_storage() == [Failed("storage", "It has no files.")]  # nobody else works
    Pulse.stamp("ticked")
    Backend.objects.create(name="here", url="http://a", worker_seen_at=timezone.now())
    assert conditions.by_storage() == [Failed("storage", "It has no files.", is_warning=True)]
    for is_warning, status in ((True, 200), (False, 503)):
        found = Failed("storage", "It has no files.", is_warning=is_warning)
        monkeypatch.setattr(views._conditions, "failed", lambda found=found: [found])
        answer = client.get("/readyz")
        assert answer.status_code == status
        told = [{"check": "storage", "reason": "It has no files."}]
        assert answer.json()["warnings" if is_warning else "failed"] == told


def test_what_cannot_be_found_out_now_changes_nothing(fitness, queues, monkeypatch):
    def away(*_):
        raise OperationalError("away")

    with monkeypatch.context() as patched:
        patched.setattr("django.db.backends.utils.CursorWrapper.execute", away)
        fitness.look()

    def fails(*_):
        raise PermissionError

    monkeypatch.setattr("files_api.storage._without_links", fails)
    fitness.look()
    assert (queues.read, tasks.hold.value) == ({"control", "inference"}, 0)


def test_a_storage_that_was_away_at_the_start_gets_its_id_later(fitness, queues, upload, unmounted):
    upload([line("a")])
    Storage.objects.all().delete()
    unmounted(True)
    fitness.look()  # and a host without the files is held, though no storage has an id yet
    assert (queues.read, Storage.objects.count()) == (set(), 0)
    unmounted(False)
    fitness.look()
    assert queues.read == {"control", "inference"}
    assert Storage.objects.get().mark == storage_id.read()


def test_while_the_broker_is_away_the_worker_is_held_all_the_same(fitness, queues, unmounted):
    unmounted(True)
    queues.task_consumer = None
    fitness.look()
    assert (queues.read, tasks.hold.value) == ({"control", "inference"}, 1)
    queues.task_consumer = object()
    fitness.look()
    assert queues.read == set()


def test_a_host_that_is_gone_is_forgotten(db):
    hosts.hold("It has no files.")
    assert hosts.held()
    Pulse.objects.update(at=timezone.now() - 2 * hosts.FORGOTTEN_AFTER)
    assert hosts.held() == {}
    hosts.release()
    assert not Pulse.objects.exists()


# Batches wait for it, and nothing of them fails


def test_a_drive_hands_its_lines_back_uncharged(create, work, backend, fitness, queues, unmounted):
    batch = create([line(str(number)) for number in range(8)])["id"]
    work.validate(batch)
    unmounted(True)
    work.drive()
    assert backend.arrived() == []
    assert Line.objects.filter(state=LineState.PENDING, attempts=0, lost_claims=0, not_before=None).count() == 8
    stored = Batch.objects.get()
    assert (stored.stalls, stored.failed) == (0, 0)  # a worker of another host may go on at once
    tasks.drive()
    assert backend.arrived() == []
    unmounted(False)
    assert work.run(batch)["request_counts"]["completed"] == 8


def test_calls_in_flight_are_answered_before_the_drive_ends(create, work, backend, queues):
    backend.delay_s = 1.0
    batch = create([line(str(number)) for number in range(8)])["id"]
    work.validate(batch)
    work.drive(must_end=lambda: bool(backend.arrived()))
    assert 1 <= Batch.objects.get().completed == len(backend.arrived()) < 8
    assert Line.objects.filter(state=LineState.RUNNING).count() == 0
    assert Line.objects.exclude(attempts=0).count() == 0


@pytest.mark.parametrize("step", ["validating", "finalizing", "tidying"])
def test_a_step_waits_for_a_host_with_the_files(step, create, work, backend, fitness, unmounted):
    batch = create([line("a")])["id"]
    if step != "validating":
        work.validate(batch)
        work.drive()
    if step == "tidying":
        assert tasks.results.finalize(batch, breathe=lambda: None) is Outcome.DONE
    before = Batch.objects.values("status", "stalls", "lease", "tidied_at", "retry_at").get()
    unmounted(True)
    fitness.look()
    ways = {"validating": work.validate, "finalizing": work.finalize}
    outcome = ways.get(step, lambda pk: tasks.cleanup.tidy(pk, breathe=lambda: None))(batch)
    assert outcome is Outcome.LATER
    assert Batch.objects.values("status", "stalls", "lease", "tidied_at", "retry_at").get() == before
    assert Response.objects.count() == (step != "validating")
    told = progress.waiting_for(Batch.objects.get()) or ""
    assert ("takes no work. The storage of files on this host has no id" in told) is (step != "tidying")
    unmounted(False)
    fitness.look()
    assert progress.waiting_for(Batch.objects.get()) is None
    seen = work.run(batch)
    assert (seen["status"], seen["request_counts"]["completed"]) == ("completed", 1)


def test_the_inference_worker_of_a_host_without_the_files_is_none(create, work, backend, fitness, unmounted):
    batch = create([line("a")])["id"]
    work.validate(batch)
    unmounted(True)
    fitness.look()
    workers.health_probe.look()
    Backend.objects.update(worker_seen_at=timezone.now() - tasks.timedelta(minutes=1))
    workers.health_probe.look()
    assert "takes no work. The storage of files" in progress.waiting_for(Batch.objects.get(pk=batch))


# A rolling update


def test_a_worker_that_is_older_than_the_database_ends_after_its_calls(fitness, queues, caplog):
    MigrationRecorder(connection).record_applied("batches", "9999_later")
    try:
        for _ in range(2):
            fitness.look()
    finally:
        MigrationRecorder(connection).record_unapplied("batches", "9999_later")
    assert state.should_stop == 0
    assert fitness.is_ending
    assert (tasks.hold.value, tasks.shutdown.value) == (1, 0)
    [told] = [record.getMessage() for record in caplog.records if "newer version" in record.getMessage()]
    assert told.startswith("the worker ends: ")
    duties = workers.Duties(None)
    duties.fitness = fitness
    duties.close(None)
    assert tasks.shutdown.value == 0  # its calls are not cut


def test_whoever_ends_the_worker_stops_its_drives(fitness, queues):
    """`celery control shutdown` and the page of Flower send no signal: Celery closes the worker's steps."""
    duties = workers.Duties(None)
    duties.fitness = fitness
    duties.close(None)
    assert tasks.shutdown.value == 1
