"""Several calls in flight and several drives on one backend: what they share, and who pays when it breaks down."""

import time
from datetime import timedelta

import pytest
from django.utils import timezone

from batches import backends, leases, registry
from batches.dispatch import admission, alone
from batches.dispatch.periodic_checks import LOOK_EVERY_S
from batches.dispatch.sharing import SharedBackend
from batches.models import Backend, Batch, Hold, Lease, Line, LineState
from batches.scheduling import persons
from tests.batches.dispatch.failures import two_drives
from tests.conftest import line, several_connections
from tests.fake_backend import Action

DOWN = Action(reset=True, delay_s=0.3)


@pytest.fixture(autouse=True)
def _few_seconds(settings):
    settings.INTERACTIVE_HOLD_S = 1.0


def most_at_once(backend, seen=None):
    """How many requests were at the server when these came, at most."""
    return max(sum(other.at <= each.at < other.left for other in backend.seen) for each in seen or backend.seen)


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", [1, 2, 6])
def test_so_many_calls_are_in_flight_and_no_more(create, work, backend, in_flight):
    work.in_flight = in_flight
    backend.delay_s = 0.1
    batch = work.run(create([line(f"id-{number}") for number in range(24)])["id"])
    assert batch["request_counts"]["completed"] == 24
    assert most_at_once(backend) == in_flight


def test_lines_that_begin_alike_are_in_flight_one_after_the_other(create, work, backend, settings):
    """Each slot of the server keeps the prompt that it read last."""
    settings.BACKEND_PARALLEL = 3
    backend.delay_s = 0.1
    groups = [{"role": "system", "content": letter * 400} for letter in "xyz"]
    bodies = [
        (f"{n}-{group}", {"messages": [groups[group], {"role": "user", "content": f"{n}-{group}"}]})
        for n in range(5)
        for group in range(3)
    ]
    batch = work.run(create([line(name, body=body) for name, body in bodies])["id"])
    assert batch["request_counts"]["completed"] == 15
    assert most_at_once(backend) == 3
    for each in backend.seen[:9]:  # at the end an idle slot helps another
        beside = [other for other in backend.seen if other is not each and other.at <= each.at < other.left]
        assert each.key[-2:] not in [other.key[-2:] for other in beside], [s.key for s in backend.seen]


def test_one_call_more_than_slots_is_in_flight_while_no_line_begins_as_another(create, work, backend, settings):
    """So that no slot waits for us."""
    settings.BACKEND_PARALLEL = 3
    backend.delay_s = 0.1
    bodies = [{"messages": [{"role": "user", "content": f"{number:03} " * 200}]} for number in range(16)]
    work.run(create([line(f"id-{number}", body=body) for number, body in enumerate(bodies)])["id"])
    assert most_at_once(backend) == 4


@pytest.mark.slow
def test_results_do_not_wait_for_the_slowest_of_a_group(create, work, backend):
    work.in_flight = 4
    backend.on("slow", Action(delay_s=4))
    batch = create([line(each) for each in ["slow", *"abcdefghi"]])["id"]
    work.validate(batch)
    done = []

    def look():
        done.append(Batch.objects.get().completed)
        return False

    work.drive(should_stop=look)
    assert 9 in done


@pytest.mark.slow
def test_a_crash_under_several_lines_charges_none_of_them(create, work, backend):
    """One of the three kills the server; nobody can tell which."""
    work.in_flight = 3
    backend.always("poison", DOWN)
    for name in "ab":
        backend.on(name, Action(reset=True, delay_s=0.3))
    batch = work.run(create([line(name) for name in ["first", "a", "poison", "b"]])["id"])
    assert batch["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    crashes = dict(Line.objects.values_list("custom_id", "backend_crashes"))
    assert crashes == {"first": 0, "a": 0, "poison": 4, "b": 0}
    assert backend.arrived().count("poison") == 6  # once among three, once beside another, then alone
    times = [seen for seen in backend.seen if seen.key == "poison"]
    assert most_at_once(backend, times[2:]) == 1


def test_a_line_that_may_kill_its_worker_is_sent_by_itself(create, work, backend):
    """And after those that were lost beside it less often."""
    work.in_flight = 3
    backend.delay_s = 0.2
    work.validate(create([line(each) for each in "abcd"])["id"])
    for custom_id, times in (("a", 5), ("b", 3), ("c", 4)):
        Line.objects.filter(custom_id=custom_id).update(lost_claims=times)
    work.drive()
    assert backend.arrived() == ["d", "b", "c", "a"]
    assert most_at_once(backend) == 1


@pytest.mark.slow
def test_a_busy_server_gets_fewer_calls(create, work, backend):
    work.in_flight = 8
    for number in range(8):
        backend.on(f"id-{number}", Action(503, b"busy", delay_s=0.1))
    backend.delay_s = 0.2
    work.validate(create([line(f"id-{number}") for number in range(40)])["id"])
    work.drive()
    assert most_at_once(backend, backend.seen[:8]) == 8
    # Those of the first eight that came after the first refusal were on their way by then.
    assert most_at_once(backend, backend.seen[16:]) <= 4
    assert Backend.objects.get().concurrency_limit == 4
    assert not Line.objects.exclude(attempts=0).exists()


@pytest.mark.slow
def test_a_server_that_is_busy_with_others_is_left_alone(create, work, backend):
    for number in range(20):
        backend.always(f"id-{number}", Action(429, b"busy", headers={"Retry-After": "2"}))
    work.validate(create([line(f"id-{number}") for number in range(20)])["id"])
    ends_at = time.monotonic() + 5
    work.drive(should_stop=lambda: time.monotonic() > ends_at)
    times = [seen.at for seen in backend.seen]
    assert 3 <= len(times) <= 5  # two at first
    assert times[2] - times[1] > 1.9
    assert Line.objects.filter(not_before=None, attempts=0).count() >= 16


@pytest.mark.slow
def test_a_person_is_served_first(create, work, backend):
    """No new line is sent, and the call that waits in the server's queue is taken out of it, uncharged."""
    work.in_flight = 2
    backend.delay_s = 3.0
    batch = create([line(each) for each in "abcd"])["id"]
    work.validate(batch)
    came = []

    def look():
        if len(backend.arrived()) >= 2 and not came:
            came.append(persons.Person(registry.own_backend()))
            came.append(time.monotonic())
        if came and time.monotonic() > came[1] + 3:
            came[0].leave()
        return False

    work.drive(should_stop=look)
    *both, third = backend.seen[:3]  # the two may come in either order
    assert sorted(backend.arrived().count(each.key) for each in both) == [1, 2]
    assert third.at > came[1] + 3  # this person was not answered: lines go on when they leave
    assert Batch.objects.get().completed == 4
    assert set(Line.objects.values_list("attempts", "needs_trial")) == {(0, False)}


@pytest.mark.slow
def test_a_closed_gate_lets_the_drive_go_after_a_while(create, work, backend, monkeypatch):
    monkeypatch.setattr(admission, "LINGERS_S", 1.0)
    work.validate(create([line("a")])["id"])
    Hold.objects.create(reason=Hold.Reason.PAUSED)
    started = time.monotonic()
    work.drive()
    assert 1 < time.monotonic() - started < 5
    assert backend.arrived() == []
    assert not Lease.objects.exists()


# Alone


def test_one_drive_has_the_backend_alone_when_all_others_stand_by(db):
    backend = registry.own_backend()
    first, second = (leases.acquire("drive", backend=backend) for _ in range(2))
    assert not alone.take(backend, first)  # the other one may have calls in flight
    assert alone.is_anothers(fresh(backend), second)
    assert not alone.take(fresh(backend), second)
    alone.stand_by(second, True)
    assert alone.take(backend, first)
    alone.give_back(backend, first)
    assert not alone.is_anothers(fresh(backend), second)


def test_who_shares_a_backend_asks_once_a_second_who_else_does(db, backend, django_assert_num_queries):
    """And whether another one has it alone, once more, if we stood by until then: it may have begun meanwhile."""
    backend = registry.report_backend()  # of the fixture, which answers
    lease, other = (leases.acquire("drive", backend=backend) for _ in range(2))
    shared = SharedBackend(backend, lease, backends.kind_named(backend.kind))
    shared.look(is_idle=False, in_flight=0)  # makes the limit known
    with django_assert_num_queries(1):
        shared.look(is_idle=False, in_flight=0)
    assert not alone.take(fresh(backend), other)
    backend.refresh_from_db()
    shared.look(is_idle=True, in_flight=0)
    assert shared.stands_aside
    assert fresh_lease(lease).stands_by
    alone.give_back(fresh(backend), other)
    backend.refresh_from_db()
    assert alone.take(fresh(backend), other)  # after we have read the row
    shared.look(is_idle=True, in_flight=0)
    assert shared.stands_aside
    assert fresh_lease(lease).stands_by
    alone.give_back(fresh(backend), other)
    backend.refresh_from_db()
    shared.look(is_idle=True, in_flight=0)
    assert not shared.stands_aside
    assert not fresh_lease(lease).stands_by


def fresh_lease(lease):
    return Lease.objects.get(pk=lease.pk)


def test_a_dead_drive_keeps_nobody_from_the_backend(db):
    backend = registry.own_backend()
    dead, living = (leases.acquire("drive", backend=backend) for _ in range(2))
    alone.take(backend, dead)
    Lease.objects.filter(pk=dead.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    assert not alone.is_anothers(fresh(backend), living)
    assert alone.take(fresh(backend), living)
    alone.give_back(backend, living)
    alone.take(fresh(backend), dead)
    leases.reap()
    assert fresh(backend).alone_id is None


def fresh(backend):
    return Backend.objects.get(pk=backend.pk)


@several_connections
def test_two_drives_share_the_window_and_a_poisoned_line_costs_no_neighbour(create, work, backend):
    backend.delay_s = 0.2
    backend.always("poison", DOWN)
    names = [f"id-{number}" for number in range(60)]
    batch = create([line(name) for name in [*names[:10], "poison", *names[10:]]])["id"]
    work.validate(batch)
    own = registry.report_backend()
    own.set_concurrency_limit(4)
    began = two_drives(own)
    settled = [each for each in backend.seen if not any(0 <= each.at - at < LOOK_EVERY_S + 0.5 for at in began)]
    assert len(settled) > 10
    assert most_at_once(backend, settled) <= 4
    states = dict(Line.objects.values_list("custom_id", "state"))
    assert states.pop("poison") == LineState.FAILED
    assert set(states.values()) == {LineState.SUCCEEDED}
    charged = Line.objects.exclude(backend_crashes=0, attempts=0).values_list("custom_id", flat=True)
    assert list(charged) == ["poison"]
