"""What a drive does when a person comes, and when its lines have waited for persons long enough."""

from datetime import timedelta

import pytest
from django.db.models import F

from batches import backends, leases, registry
from batches.backends.in_flight import Call
from batches.dispatch import persons_first
from batches.dispatch.admission import Admission
from batches.dispatch.dispatcher import PURPOSE
from batches.dispatch.persons_first import PersonsFirst
from batches.dispatch.readiness import Readiness
from batches.dispatch.sharing import SharedBackend
from batches.models import Batch, Hold, Line
from batches.scheduling import gate, persons
from common.models import ApiKey, Owner, Scope
from tests.conftest import CHAT, line


class Drive:
    """A drive's objects around PersonsFirst, with calls that nobody sends."""

    def __init__(self, keeper, *, kind="ollama", slots=1):
        self.backend = registry.own_backend()
        self.backend.parallel = slots
        self.kind = backends.kind_named(kind)
        self.calls = backends.open_calls(kind)
        self.shared = SharedBackend(self.backend, keeper.lease, self.kind)
        self.shared.look(is_idle=False, in_flight=0)
        self.admission = Admission(self.backend, self.shared)
        readiness = Readiness(self.backend, self.kind, was_unused=False)
        self.first = PersonsFirst(self.backend, self.kind, self.calls, self.shared, self.admission, readiness)
        self.first.look()

    def call(self, *, begun_s_ago=None):
        call = Call(Line(), CHAT, {}, 60.0)
        call.running_since = None if begun_s_ago is None else persons_first.time.monotonic() - begun_s_ago
        self.calls.in_flight.add(call)
        return call

    @property
    def is_open(self):
        return not self.admission.why_closed()


@pytest.fixture
def start(transactional_db, backend):
    registry.report_backend()
    with leases.Keeper(PURPOSE, backend=registry.own_backend()) as keeper:
        yield lambda **how: Drive(keeper, **how)


@pytest.mark.parametrize(("slots", "cut"), [(1, [False, True, True]), (2, [False, False, True]), (4, [False] * 3)])
def test_the_calls_that_the_server_has_not_begun_are_cut(start, slots, cut):
    drive = start(slots=slots)
    calls = [drive.call(begun_s_ago=5), drive.call(begun_s_ago=4), drive.call(begun_s_ago=3)]
    drive.first.look()
    assert not any(call.is_cut for call in calls)
    persons.Person(drive.backend)
    drive.first.look()
    assert [call.is_cut for call in calls] == cut
    assert all(call.was_shared for call in calls)
    assert not drive.is_open


def test_a_line_that_was_begun_before_the_person_because_it_was_sent_before_is_cut_too(start, monkeypatch):
    """The line before it ended between the person's request and our look at the gate."""
    drive = start(slots=2)
    drive.first.look()
    persons.Person(drive.backend)
    calls = [drive.call(begun_s_ago=30), drive.call(begun_s_ago=0)]
    drive.first.look()
    assert [call.is_cut for call in calls] == [False, True]


def test_a_person_who_stays_cuts_nothing_more(start):
    drive = start()
    person = persons.Person(drive.backend)
    drive.first.look()
    person.renew()
    call = drive.call(begun_s_ago=0)
    drive.first.look()
    assert not call.is_cut


def test_of_slots_that_nobody_counted_one_is_begun(start):
    drive = start(slots=None)
    drive.shared.limit.size = 6
    calls = [drive.call(begun_s_ago=number) for number in (6, 5, 4)]
    drive.first.look()
    persons.Person(drive.backend)
    drive.first.look()
    assert [call.is_cut for call in calls] == [False, True, True]


def test_a_server_that_begins_every_call_keeps_them_all(start):
    drive = start(kind="vllm", slots=None)
    calls = [drive.call(begun_s_ago=0) for _ in range(9)]
    persons.Person(drive.backend)
    drive.first.look()
    assert not any(call.is_cut for call in calls)
    assert not drive.is_open


def test_a_drive_without_a_slot_of_its_own_has_begun_nothing(start):
    drive = start(slots=1)
    with leases.Keeper(PURPOSE, backend=drive.backend) as younger:
        other = Drive(younger, slots=1)
        drive.shared.look(is_idle=False, in_flight=0)
        assert (drive.shared.begun, other.shared.begun) == (1, 0)
        call = other.call(begun_s_ago=5)
        persons.Person(drive.backend)
        other.first.look()
        assert call.is_cut


class Clock:
    """Time for the drive and its holds."""

    def __init__(self):
        self.now = 10_000.0

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds
        Hold.objects.update(until=F("until") - timedelta(seconds=seconds))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(persons_first, "time", clock)
    return clock


def stay(drive, clock, seconds, reason=Hold.Reason.PERSON):
    """A person is there for so long; the seconds for which the gate was open meanwhile."""
    opened = 0
    for _ in range(seconds):
        Hold.objects.filter(reason=reason).delete()
        Hold.objects.create(backend=drive.backend, reason=reason, until=gate.timezone.now() + timedelta(seconds=60))
        clock.wait(1)
        drive.first.look()
        opened += drive.is_open
    return opened


def test_a_person_who_never_leaves_leaves_lines_their_share(start, clock, settings):
    drive = start()
    assert stay(drive, clock, 40) == 0
    assert 0.25 * 240 <= stay(drive, clock, 200) <= 0.32 * 240
    assert Hold.objects.filter(reason=Hold.Reason.SHARE).count() <= 1


def test_what_only_lingers_leaves_lines_their_share_sooner(start, clock):
    drive = start()
    assert stay(drive, clock, 20, Hold.Reason.AFTER_PERSON) == 0
    assert stay(drive, clock, 30, Hold.Reason.AFTER_PERSON) > 5
    # A person who comes in such a turn goes first.
    while not drive.is_open:
        stay(drive, clock, 1, Hold.Reason.AFTER_PERSON)
    waiting = [drive.call(begun_s_ago=9), drive.call()]
    persons.Person(drive.backend)
    drive.first.look()
    assert not drive.is_open
    assert [call.is_cut for call in waiting] == [False, True]


def test_without_a_share_lines_wait(start, clock, settings):
    settings.BATCH_SHARE = 0
    assert stay(start(), clock, 300) == 0


def test_a_share_of_1_waits_for_nobody(start, clock, settings):
    settings.BATCH_SHARE = 1
    assert stay(start(), clock, 20) == 20


def test_a_pause_and_quiet_hours_owe_nothing(start, clock):
    drive = start()
    Hold.objects.create(reason=Hold.Reason.PAUSED)
    assert stay(drive, clock, 200) == 0
    Hold.objects.filter(reason=Hold.Reason.PAUSED).delete()
    assert stay(drive, clock, 30) == 0


def test_a_drive_that_ends_in_its_turn_ends_the_turn(start, clock):
    drive = start()
    stay(drive, clock, 45)
    assert drive.is_open
    assert gate.look(drive.backend).newest_person
    drive.first.close()
    assert gate.look(drive.backend).reason.startswith("A person's request is at the model server")


def test_what_lines_had_is_told_while_persons_come(start, clock):
    drive = start()
    clock.wait(20)
    drive.first.look()
    assert registry.own_backend().share_had is None
    stay(drive, clock, 400)
    assert 0.2 < registry.own_backend().share_had < 0.35


@pytest.mark.slow
def test_the_lines_of_a_batch_run_in_their_share(create, work, backend, settings, monkeypatch):
    """The cycles are short here; a person never leaves, and the batch is another owner's: chats of one owner hold no
    batch of another for ever."""
    monkeypatch.setattr("batches.scheduling.share.CYCLE_S", 2.0)
    backend.delay_s = 0.05
    work.validate(create([line(str(number)) for number in range(10)])["id"])
    Batch.objects.update(owner=Owner.objects.create(name="Bob"))
    chatting, _ = ApiKey.objects.make("Ann's", owner=Owner.objects.create(name="Ann"), scopes=[Scope.CHAT])
    persons.Person(registry.own_backend(), who=f"key {chatting.pk}")
    work.drive()
    assert Batch.objects.get().completed == 10
    assert not Hold.objects.filter(reason=Hold.Reason.SHARE).exists()
