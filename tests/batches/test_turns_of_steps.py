"""Whose step comes next: owners take turns, then the batches of each owner, whatever messages wait."""

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from batches import leases, lifecycle, steps, tasks, validation
from batches.models import Batch, Status
from common.models import Owner
from tests.conftest import line


def play(sent):
    """Do what the messages ask for, in their order, until none is left; yields after each how many are done."""
    done = 0
    while sent:
        name, *args = sent.pop(0)
        if name != "drive":
            getattr(tasks, name)(*args)
            done += 1
            yield done


def steps_until(sent, batch, status):
    """How many messages are taken until the batch has this status."""
    return next(done for done in play(sent) if Batch.objects.get(pk=batch).status == status)


@pytest.fixture
def small_slices(monkeypatch):
    """Of two lines each."""
    monkeypatch.setattr(validation, "SLICE_S", -1.0)
    monkeypatch.setattr(validation, "LEAST_GROUP_LINES", 2)


def validated(sent):
    """The batches of which a slice was validated, in this order."""
    order, before = [], {}
    for _ in play(sent):
        now = dict(Batch.objects.values_list("pk", "validated_lines"))
        order += [pk for pk, lines in now.items() if lines != before.get(pk, 0)]
        before = now
    return order


def test_one_of_another_owner_is_validated_in_every_second_slice(create, work, sent, small_slices):
    """However many batches the first owner has; and they take turns too."""
    many = [create([line(str(n)) for n in range(10)])["id"] for _ in range(6)]
    other = create([line(str(n)) for n in range(10)])["id"]
    Batch.objects.filter(pk=other).update(owner=Owner.objects.create(name="other"))
    order = validated(sent)
    places = [place for place, batch in enumerate(order) if batch == other]
    assert places == [1, 3, 5, 7, 9]
    assert [batch for batch in order if batch != other] == many * 5
    assert not Batch.objects.filter(status=Status.VALIDATING).exists()


def test_a_single_slice_does_not_wait_for_all_that_came_before(create, work, sent):
    """Batches of one slice each, of an owner who sends them all the time."""
    many = [create([line("a")])["id"] for _ in range(5)]
    other = create([line("a")])["id"]
    Batch.objects.filter(pk=other).update(owner=Owner.objects.create(name="other"))
    assert steps_until(sent, other, Status.IN_PROGRESS) == 2
    assert Batch.objects.filter(pk__in=many, status=Status.VALIDATING).count() == 4


def test_the_end_of_a_batch_waits_for_no_more_than_one_step_of_another_owner(create, work, sent, small_slices, backend):
    """Whatever the steps are."""
    other = create([line("a")])["id"]
    Batch.objects.filter(pk=other).update(owner=Owner.objects.create(name="other"))
    for _ in play(sent):
        pass
    for _ in range(5):
        create([line(str(n)) for n in range(10)])
    lifecycle.cancel(other)
    tasks.wake_control(other)
    assert [name for name, *_ in sent] == ["validate"] * 5 + ["finalize"]
    assert steps_until(sent, other, Status.CANCELLED) <= 2


def test_a_message_serves_the_next_batch_if_another_worker_is_faster(create, work, sent):
    """Both workers ask whose turn it is, and are told the same batch."""
    first, second = (create([line("a")])["id"] for _ in range(2))
    took = []

    def other_worker(execute, query, *arguments):
        if not took and query.startswith("UPDATE") and "step_at" in query:
            took.append(leases.acquire("validate"))
            Batch.objects.filter(pk=first).update(lease=took[0])
        return execute(query, *arguments)

    with connection.execute_wrapper(other_worker):
        tasks.validate(second)
    assert Batch.objects.get(pk=first).lease == took[0]
    assert Batch.objects.get(pk=second).status == Status.IN_PROGRESS


def test_a_stamp_of_the_future_is_no_reason_to_wait(create, work, sent):
    """The clock went back."""
    ahead, usual = (create([line("a")])["id"] for _ in range(2))
    Batch.objects.filter(pk=usual).update(step_at=timezone.now())
    Batch.objects.filter(pk=ahead).update(step_at=timezone.now() + timedelta(hours=1))
    assert steps.next_turn() == ahead
    Owner.objects.update(step_at=timezone.now() + timedelta(hours=1))
    Batch.objects.filter(pk=usual).update(owner=Owner.objects.create(name="other", step_at=timezone.now()))
    assert steps.next_turn() == ahead
    assert lifecycle.cancel(ahead)
    Batch.objects.filter(pk=usual).update(lease=leases.acquire("validate"))
    assert steps.next_turn() == ahead
    Batch.objects.filter(pk=ahead).update(retry_at=timezone.now() + timedelta(minutes=1))
    assert steps.next_turn() is None
