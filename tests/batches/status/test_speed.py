"""How fast lines were finished in the last hours."""

from datetime import timedelta

import pytest
from django.utils import timezone

from batches import failing, leases
from batches.models import Batch, Line, LineState, Part, Status
from batches.status import speed


@pytest.fixture
def ran(db):
    """Make a batch whose lines finished so many minutes ago, in this order."""

    def make(minutes, *, settled=0, **fields):
        now = timezone.now()
        batch = Batch.objects.create(
            **{"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "7d"},
            **{"status": Status.IN_PROGRESS, "expires_at": now, "in_progress_at": now - timedelta(hours=9)},
            **{"total": len(minutes) + settled, "folded_completed": len(minutes), "last_place": len(minutes) + settled},
        )
        Batch.objects.filter(pk=batch.pk).update(**fields)
        part = Part.objects.create(batch=batch, model="m")
        ends = [*minutes, *[0] * settled]
        Line.objects.bulk_create(
            Line(
                **{"batch": batch, "part": part, "number": number, "custom_id": str(number), "offset": 0, "length": 1},
                state=LineState.CANCELLED if number > len(minutes) else LineState.SUCCEEDED,
                finished_at=now - timedelta(minutes=ago),
                place=number,
            )
            for number, ago in enumerate(ends, 1)
        )
        return batch

    return make


def lines_in(points, first, last):
    """The lines between so many minutes ago, by the rates."""
    now, minutes = timezone.now(), speed.STEP / timedelta(minutes=1)
    found = [rate for at, rate in points if timedelta(minutes=last) <= now - at <= timedelta(minutes=first)]
    return sum(found) * minutes


def test_without_lines_it_is_nought(db):
    points = speed.last_hours()
    assert len(points) == 72
    assert {rate for _, rate in points} == {0}


def test_it_tells_when_lines_were_finished(ran):
    # Two hours of work at 10 lines a minute, a pause of an hour, and an hour at 20 lines a minute.
    ran([240 - index / 10 for index in range(1200)] + [60 - index / 20 for index in range(1200)])
    points = speed.last_hours()
    assert lines_in(points, 230, 130) == pytest.approx(1000, rel=0.1)
    assert lines_in(points, 110, 70) == pytest.approx(0, abs=10)
    assert lines_in(points, 55, 10) == pytest.approx(900, rel=0.15)
    assert lines_in(points, 360, 0) == pytest.approx(2400, rel=0.1)


def test_lines_before_the_hours_do_not_count(ran):
    ran([500 - index / 10 for index in range(2000)] + [5.0] * 10)
    assert lines_in(speed.last_hours(), 360, 15) == pytest.approx(600, rel=0.2)


def test_lines_that_were_never_asked_do_not_count(ran):
    ran([30 - index / 10 for index in range(100)], settled=500, status=Status.CANCELLED, cancelling_at=timezone.now())
    assert lines_in(speed.last_hours(), 360, 0) == pytest.approx(100, rel=0.1)


def test_batches_are_added_up(ran):
    for _ in range(3):
        ran([20.0] * 10)
    assert lines_in(speed.last_hours(), 360, 0) == pytest.approx(30, rel=0.1)


def test_the_work_does_not_grow_with_the_batch(ran, django_assert_max_num_queries):
    ran([100 - index / 100 for index in range(5000)])
    with django_assert_max_num_queries(3):
        speed.last_hours()


def test_lines_of_a_failed_part_are_told(ran, monkeypatch):
    """Some lines are answered, the rest fails page by page, not in the order of the input."""
    monkeypatch.setattr(failing, "FAILED_AT_ONCE", 30)
    batch = ran([60.0] * 100)
    answered = Line.objects.filter(number__lte=10)
    Line.objects.filter(number__gt=10).update(state=LineState.PENDING, finished_at=None, place=None)
    for each in Line.objects.all():
        each.order_key = bytes([each.number % 7])
        each.save(update_fields=["order_key"])
    lease = leases.acquire("test")
    Batch.objects.filter(pk=batch.pk).update(folded_completed=10, last_place=10, lease=lease)
    part = batch.parts.get()
    while failing._fail_page(part, {"status": 400, "body": "{}", "code": "gone", "message": "Gone."}, lease):
        pass
    assert answered.count() == 10
    assert sorted(Line.objects.values_list("place", flat=True)) == list(range(1, 101))
    in_order = Line.objects.filter(place__gt=10).order_by("place").values_list("number", flat=True)
    assert list(in_order) == sorted(in_order, key=lambda number: (number % 7, number))
    batch.refresh_from_db()
    assert (batch.last_place, batch.failed) == (100, 90)
    Line.objects.filter(place__gt=10).update(finished_at=timezone.now() - timedelta(minutes=20))
    assert lines_in(speed.last_hours(), 30, 10) == pytest.approx(90, rel=0.05)
