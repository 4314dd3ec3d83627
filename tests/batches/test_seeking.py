"""A worker finds work for its backend by itself, at the same cost with any number of backends, and stands by for the
drives of another one."""

import time
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from batches import leases, registry, tasks
from batches.dispatch import dispatcher
from batches.models import Backend, Lease, Line, LineState, PausedModel
from batches.scheduling import turns
from batches.seeking import Seeker
from batches.status import health
from batchserver.worker import HealthProbe
from tests.conftest import CHAT, line
from tests.ticks import tick

MODELS = ("gemma3:12b", "theirs:1b")


def stands_beside(number, *, models=MODELS[:1]):
    """So many live backends on other machines."""
    now = timezone.now()
    listed = [{"id": name, "created": 1, "owned_by": "library"} for name in models]
    state = {"kind": "ollama", "listed": listed, "worker_seen_at": now, "seen_at": now}
    return Backend.objects.bulk_create(
        Backend(name=f"http://10.0.0.{n}", url=f"http://10.0.0.{n}", **state) for n in range(number)
    )


def test_every_idle_worker_finds_work_at_its_first_look(create, work, settings):
    backends = stands_beside(16)
    work.validate(create([line(str(number)) for number in range(20)])["id"])
    for backend in backends:
        settings.BACKEND_NAME = backend.name
        assert Seeker().look() == 1


def test_the_one_worker_that_has_the_model_finds_the_line(create, work, settings):
    backends = stands_beside(7)
    [theirs] = Backend.objects.filter(pk=backends[5].pk)
    Backend.objects.filter(pk=theirs.pk).update(listed=[{"id": "theirs:1b", "created": 1, "owned_by": "x"}])
    work.validate(create([line("a", body={"model": "theirs:1b"})])["id"])
    found = {}
    for backend in backends:
        settings.BACKEND_NAME = backend.name
        found[backend.pk] = Seeker().look()
    assert found == {backend.pk: int(backend.pk == theirs.pk) for backend in backends}


@pytest.mark.parametrize("case", ["idle", "paused", "unknown", "away", "waits", "driven", "driven once", "to retry"])
def test_there_is_work_or_none(create, work, backend, settings, case):
    own = registry.report_backend()
    work.validate(create([line("a")])["id"])
    match case:
        case "idle":
            Line.objects.update(state=LineState.RUNNING)
        case "paused":
            own.pause("It does not answer.")
        case "unknown":
            Backend.objects.update(kind="")
        case "away":
            settings.BACKEND_NAME = "another"
        case "waits":
            Line.objects.update(not_before=timezone.now() + timedelta(minutes=1))
        case "driven":
            leases.acquire("drive", backend=own)
        case "driven once":
            settings.MAX_CONCURRENT_BATCHES = 3
            leases.acquire("drive", backend=own)
        case "to retry":
            paused = {"endpoint": CHAT, "model": "gemma3:12b", "reason": "It fails."}
            PausedModel.objects.create(backend=own, resume_at=timezone.now(), **paused)
    wanted = {"driven once": 2, "to retry": 1}
    assert Seeker().look() == wanted.get(case, 0)


def test_an_idle_server_is_asked_one_question(db, backend):
    registry.report_backend()
    seeker = Seeker()
    with CaptureQueriesContext(connection) as queries:
        assert seeker.look() == 0
    assert len(queries) == 1


@pytest.mark.parametrize(
    "look",
    [
        pytest.param(lambda: Seeker().look(), id="worker"),
        pytest.param(tick, id="tick"),
        pytest.param(lambda: turns.next_turn(registry.own_backend(), None), id="drive"),
        pytest.param(health.summary, id="health"),
        pytest.param(lambda: registry.is_elsewhere(registry.own_backend(), "theirs:1b"), id="line"),
    ],
)
def test_a_look_costs_as_much_beside_ten_backends_as_beside_two_hundred(create, work, backend, sent, monkeypatch, look):
    monkeypatch.setattr(registry, "READ_AGAIN_S", 60.0)
    registry.report_backend()
    stands_beside(1, models=MODELS)  # or the batch would fail for its second model
    batch = create([line("a"), line("b", body={"model": "theirs:1b"})])
    work.validate(batch["id"])
    assert work.batch(batch["id"])["status"] == "in_progress"

    def statements(number):
        Backend.objects.filter(url__startswith="http://10.").delete()
        for each in stands_beside(number, models=MODELS):
            paused = {"endpoint": CHAT, "model": "theirs:1b", "reason": "It fails."}
            PausedModel.objects.create(backend=each, resume_at=timezone.now(), **paused)
        monkeypatch.setattr(registry, "_known", (float("-inf"), []))
        with CaptureQueriesContext(connection) as queries:
            look()
        # Without the question for the time, which is asked every few seconds.
        return [query["sql"] for query in queries if "timestamp()" not in query["sql"]]

    statements(1)  # what a process reads once
    few, many = statements(10), statements(200)
    assert len(many) == len(few), many[len(few) :]


def test_backends_are_read_once_in_a_while(db, backend, monkeypatch):
    monkeypatch.setattr(registry, "READ_AGAIN_S", 60.0)
    monkeypatch.setattr(registry, "_known", (float("-inf"), []))
    assert registry.live_backends() == []
    own = registry.report_backend()  # while there was none, it is asked again
    assert registry.live_backends() == [own]
    stands_beside(1)
    with CaptureQueriesContext(connection) as queries:
        assert registry.live_backends() == [own]
    assert len(queries) == 0
    monkeypatch.setattr(registry, "READ_AGAIN_S", -1.0)
    assert len(registry.live_backends()) == 2


# Standing by


@pytest.fixture
def driven(create, work, backend):
    """A drive of another machine that has claimed one line of two and falls silent."""
    own = registry.report_backend()
    work.validate(create([line("a"), line("b")])["id"])
    lease = leases.acquire("drive", backend=own)
    Line.objects.filter(custom_id="a").update(state=LineState.RUNNING, lease=lease)
    Lease.objects.update(host="another machine")
    return lease


def falls_silent():
    Lease.objects.update(silent_at=timezone.now() - timedelta(seconds=1))


def claimed():
    return Line.objects.filter(state=LineState.RUNNING).count()


def test_a_drive_begins_beside_a_silent_one_and_then_takes_its_lines(driven, work, backend, monkeypatch):
    seeker = Seeker()
    assert seeker.look() == 0
    falls_silent()
    assert (seeker.look(), claimed()) == (1, 1)  # nothing is lost yet
    assert (seeker.look(), claimed()) == (1, 1)  # too soon to say that it lasts
    monkeypatch.setattr(leases, "LASTS_AFTER_S", 0.0)
    assert (seeker.look(), claimed()) == (1, 0)
    assert not leases.renew(driven)
    assert not Lease.objects.exists()
    work.drive()
    assert sorted(backend.arrived()) == ["a", "b"]


def test_its_lines_are_taken_if_no_others_are_left(driven, monkeypatch):
    Line.objects.filter(custom_id="b").delete()
    monkeypatch.setattr(leases, "LASTS_AFTER_S", 0.0)
    seeker = Seeker()
    falls_silent()
    assert seeker.look() == 1


def test_a_slow_drive_that_gives_a_sign_of_life_loses_nothing(driven, monkeypatch):
    monkeypatch.setattr(leases, "LASTS_AFTER_S", 0.0)
    monkeypatch.setattr(leases, "LOOK_IS_LATE_S", 60.0)
    seeker = Seeker()
    for _ in range(3):
        falls_silent()
        Lease.objects.update(silent_at=timezone.now() - timedelta(seconds=1))
        monkeypatch.setattr(leases, "LASTS_AFTER_S", 30.0)
        assert (seeker.look(), claimed()) == (1, 1)
        assert leases.renew(driven)
        monkeypatch.setattr(leases, "LASTS_AFTER_S", 0.0)
        assert (seeker.look(), claimed()) == (0, 1)


def test_a_drive_of_this_machine_whose_process_is_there_is_slow_and_not_dead(driven, monkeypatch):
    monkeypatch.setattr(leases, "LASTS_AFTER_S", 0.0)
    Lease.objects.update(host=leases._host())
    seeker = Seeker()
    falls_silent()
    for _ in range(2):
        assert (seeker.look(), claimed()) == (0, 1)


def test_a_look_that_comes_late_takes_nothing(driven, monkeypatch):
    """The database stood still for all, so who lives could give no sign of life."""
    seeker = Seeker()
    falls_silent()
    assert (seeker.look(), claimed()) == (1, 1)
    monkeypatch.setattr(leases, "LASTS_AFTER_S", 0.01)
    monkeypatch.setattr(leases, "LOOK_IS_LATE_S", 0.02)
    time.sleep(0.05)
    assert (seeker.look(), claimed()) == (1, 1)


def test_steps_and_drives_of_earlier_versions_are_given_the_whole_time(driven, monkeypatch):
    monkeypatch.setattr(leases, "LASTS_AFTER_S", 0.0)
    Lease.objects.update(silent_at=None)
    seeker = Seeker()
    for _ in range(2):
        assert (seeker.look(), claimed()) == (0, 1)
    assert leases.acquire("finalize").silent_at is None


def test_one_worker_drives_and_the_other_stands_by(driven, work, backend, sent):
    tasks.drive()
    assert backend.arrived() == []
    assert Lease.objects.get() == driven
    falls_silent()
    Backend.objects.update(loaded_model="gemma3:12b")  # a load would wait for the end of the silent lease
    tasks.drive()
    assert backend.arrived() == ["b"]


def test_of_drives_that_begin_at_once_the_oldest_stays(create, work, backend):
    own = registry.report_backend()
    work.validate(create([line("a")])["id"])
    later = {"should_stop": lambda: False, "wake_control": lambda batch: None, "most_drives": 1}
    older = leases.acquire("drive", backend=own)
    dispatcher.Dispatcher(own, **later).run()
    assert backend.arrived() == []
    leases.release(older)
    dispatcher.Dispatcher(own, **later).run()
    assert backend.arrived() == ["a"]


def test_a_backend_is_asked_half_as_often_while_no_batch_is_at_work(create, work, backend):
    own = registry.report_backend()

    def looks(number):
        asked = []
        for _ in range(number):
            Backend.objects.update(worker="nobody")
            probe.look()
            asked.append(Backend.objects.get(pk=own.pk).worker != "nobody")
        return asked

    probe = HealthProbe()
    assert looks(4) == [True, False, True, False]
    batch = create([line("a")])["id"]
    work.validate(batch)
    assert looks(3) == [True, True, True]
    work.run(batch)
    assert looks(3) == [False, True, False]
