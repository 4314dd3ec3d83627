"""What a person at the backend holds back, and for how long."""

from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from batches import registry
from batches.models import Backend, Hold
from batches.scheduling import persons


@pytest.fixture
def here(transactional_db):
    return registry.own_backend()


def later(seconds):
    """So much time passes for every hold."""
    for hold in Hold.objects.exclude(until=None):
        Hold.objects.filter(pk=hold.pk).update(until=hold.until - timedelta(seconds=seconds))


def test_a_person_holds_from_the_first_moment_until_a_while_after(here, settings):
    settings.INTERACTIVE_HOLD_S = 10
    assert not persons.person_is_at(here)
    person = persons.Person(here)
    assert persons.person_is_at(here)
    person.was_answered = True
    person.leave()
    person.leave()
    later(9)
    assert persons.person_is_at(here)
    assert persons.forget_ended() == 0
    later(2)
    assert not persons.person_is_at(here)
    assert persons.forget_ended() == 1
    assert not Hold.objects.exists()


def test_0_lets_lines_go_on_at_once(here, settings):
    settings.INTERACTIVE_HOLD_S = 0
    answered(here)
    assert not Hold.objects.exists()


def test_a_request_that_was_not_answered_holds_nothing(here, settings):
    settings.INTERACTIVE_HOLD_S = 10
    persons.Person(here, "a").leave()
    assert not Hold.objects.exists()
    # Nor does it keep the hold of another from ending, or tell how soon its sender comes back.
    answered(here, "a")
    until = Hold.objects.get().until
    persons.Person(here, "a").leave()
    assert Hold.objects.get().until == until


def test_who_comes_back_soon_is_waited_for_less_long(here, settings):
    settings.INTERACTIVE_HOLD_S = 10
    for _ in range(3):
        answered(here, "a")
    answered(here, "b")
    left = sorted((hold.until - timezone.now()).total_seconds() for hold in Hold.objects.all())
    assert [round(each) for each in left] == [1, 1, 10, 10]  # at first nobody knows


def answered(here, who=""):
    """A request that was answered at once."""
    person = persons.Person(here, who)
    person.was_answered = True
    person.leave()


def test_what_is_not_renewed_ends_by_itself(here):
    persons.Person(here)
    later(14)
    assert persons.person_is_at(here)
    later(2)
    assert not persons.person_is_at(here)


def test_who_stays_is_renewed_every_few_seconds(here, monkeypatch):
    person = persons.Person(here)
    later(10)
    person.renew()  # too soon
    assert Hold.objects.get().until < timezone.now() + timedelta(seconds=6)
    monkeypatch.setattr(persons, "RENEW_EVERY_S", 0)
    person.renew()
    assert Hold.objects.get().until > timezone.now() + timedelta(seconds=13)


def test_a_hold_that_lapsed_is_taken_again(here, monkeypatch):
    monkeypatch.setattr(persons, "RENEW_EVERY_S", 0)
    person = persons.Person(here)
    later(20)
    assert persons.forget_ended() == 1
    person.renew()
    assert persons.person_is_at(here)


def test_several_at_once_are_held_for_each(here, settings):
    settings.INTERACTIVE_HOLD_S = 0
    first, second = persons.Person(here), persons.Person(here)
    first.leave()
    assert persons.person_is_at(here)
    second.leave()
    assert not persons.person_is_at(here)


def test_another_backend_is_not_concerned(here):
    other = Backend.objects.create(name="other", url="http://127.0.0.1:9")
    persons.Person(here)
    assert not persons.person_is_at(other)


def test_a_pause_of_everything_is_active_and_no_person(here):
    Hold.objects.create(reason=Hold.Reason.PAUSED)
    assert [hold.reason for hold in persons.active(here)] == ["paused"]
    assert not persons.person_is_at(here)
    assert persons.forget_ended() == 0


def test_a_clock_that_went_back_holds_nothing_for_hours(here):
    persons.Person(here)
    later(-3600)
    persons.forget_ended()
    assert Hold.objects.get().until < timezone.now() + timedelta(seconds=16)


def test_a_database_that_does_not_answer_keeps_nobody_waiting(here, monkeypatch):
    monkeypatch.setattr(persons, "RENEW_EVERY_S", 0)

    class Locked:
        def __call__(self, execute, *args):
            raise OperationalError("database is locked")

    with connection.execute_wrapper(Locked()):
        person = persons.Person(here)
        person.renew()
    person.renew()
    assert persons.person_is_at(here)
    with connection.execute_wrapper(Locked()):
        person.leave()
    later(16)
    assert not persons.person_is_at(here)
