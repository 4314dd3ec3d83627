"""What the server does now, and what waits behind it in which order."""

from datetime import timedelta

import pytest
from django.utils import timezone

from batches.models import Backend, Batch, Lease, Line, LineState, Part, Priority, Status
from batches.scheduling import switch
from batches.status import overview


@pytest.fixture
def make(live_backend):
    """Make a batch in progress with one line for this model."""

    def make(model="gemma3:12b", *, status=Status.IN_PROGRESS, **fields):
        now = timezone.now()
        usual = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "7d", "total": 1}
        stamps = {"expires_at": now + timedelta(days=7), "in_progress_at": now, "status": status}
        batch = Batch.objects.create(**usual | stamps | fields)
        part = Part.objects.create(batch=batch, model=model)
        Line.objects.create(batch=batch, part=part, number=1, custom_id="a", offset=0, length=1)
        return batch

    return make


def ids(told):
    return [each.batch.pk for each in told]


def test_batches_wait_in_the_order_of_their_turns(make):
    Backend.objects.update(loaded_model="loaded")
    other, loaded, low = make("other"), make("loaded"), make("loaded", priority=Priority.LOW)
    high, paused = make("other", priority=Priority.HIGH), make()
    new = make(status=Status.VALIDATING, priority=Priority.LOW)
    switch.pause(paused.pk)
    now = overview.now()
    assert now.sending == []
    # One that is paused has no turn to come; one that is not validated has none yet.
    assert set(ids(now.waiting)[-2:]) == {paused.pk, new.pk}
    first, *between, last = ids(now.waiting)[:-2]
    assert (first, last) == (high.pk, low.pk)
    assert set(between) == {other.pk, loaded.pk}
    assert all(each.progress is not None for each in now.waiting)


def test_the_model_that_is_loaded_goes_first(make):
    Backend.objects.update(loaded_model="loaded")
    batches = [make(model) for model in ("other", "loaded", "other", "loaded")]
    waiting = ids(overview.now().waiting)
    assert waiting[:2] == [batches[1].pk, batches[3].pk]
    assert set(waiting[2:]) == {batches[0].pk, batches[2].pk}


def test_a_batch_with_lines_at_the_server_is_sent_and_waits_no_more(make):
    waits, sent = make(), make()
    ends = make(status=Status.FINALIZING)
    lease = Lease.objects.create(purpose="drive", host="here", pid=1, started="", expires_at=timezone.now())
    Line.objects.filter(batch=sent).update(state=LineState.RUNNING, lease=lease)
    now = overview.now()
    assert (ids(now.sending), ids(now.waiting), ids(now.ending)) == ([sent.pk], [waits.pk], [ends.pk])


def test_many_batches_are_counted_and_few_forecast(make, monkeypatch, django_assert_max_num_queries):
    monkeypatch.setattr(overview, "MOST_LISTED", 5)
    monkeypatch.setattr(overview, "MOST_TOLD", 2)
    for _ in range(12):
        make()
    with django_assert_max_num_queries(60):
        now = overview.now()
    assert (len(now.waiting), now.more) == (5, 7)
    assert [each.progress is not None for each in now.waiting] == [True, True, False, False, False]


def test_a_file_without_a_row_is_known_by_what_the_batch_calls_it(make):
    batches = [make(), make(input_file_id="")]
    assert list(overview.filenames(batches).values()) == ["file-x", "no file"]
