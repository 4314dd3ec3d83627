"""GET /v1/batches/{id}/progress: what a batch waits for, how fast it is, and an end that is not made up."""

import time
from datetime import timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from batches import forecasts, leases
from batches.models import Backend, Batch, Hold, Line, LineState, Part, PausedModel, Response, Status
from batches.scheduling import gate, switch
from batches.scheduling.quiet_hours import QuietHours
from batches.status import disk, progress
from common.models import Owner
from files_api.models import File
from tests.batches.conftest import folded
from tests.conftest import CHAT, line
from tests.fake_backend import MODEL
from tests.quiet import quiet_now


def second(number):
    return timedelta(seconds=number)


@pytest.fixture
def make(db):
    """A batch in progress: its lines answered so far, the newest just now, and those left open, all in order."""

    def make(done=0, left=0, *, each=2.0, took=None, model=MODEL, batch=None, state=LineState.SUCCEEDED, **fields):
        now = timezone.now()
        if batch is None:
            batch = Batch.objects.create(
                input_file_id="file-x",
                endpoint=CHAT,
                completion_window="24h",
                expires_at=now + timedelta(hours=24),
                status=Status.IN_PROGRESS,
                **folded(**fields),
            )
        part = Part.objects.create(batch=batch, model=model)
        first = batch.lines.count()
        lines = [
            Line(
                batch=batch,
                part=part,
                number=first + n,
                custom_id=str(first + n),
                offset=0,
                length=1,
                order_key=b"%08d" % n,
                state=state if n < done else LineState.PENDING,
                finished_at=now - second((done - 1 - n) * each) if n < done else None,
                duration_ms=int((each if took is None else took) * 1000) if n < done else None,
                output_tokens=50 if n < done else 0,
            )
            for n in range(done + left)
        ]
        Line.objects.bulk_create(lines)
        counts = {"total": batch.total + done + left}
        name = "failed" if state == LineState.FAILED else "completed"
        counts[name] = getattr(batch, name) + done
        Batch.objects.filter(pk=batch.pk).update(**folded(**counts))
        batch.refresh_from_db()
        return batch

    return make


def ends_in(told):
    return (told.estimated_end - timezone.now()).total_seconds()


# Speed and end


def test_the_end_follows_from_the_speed_of_the_last_lines(make, live_backend):
    told = progress.of(make(300, 1000, each=2.0))
    assert (told.lines_open, told.waiting_for) == (1000, None)
    assert (told.lines_per_minute, told.tokens_per_second) == (30.0, 25.0)
    assert ends_in(told) == pytest.approx(2000, abs=2)
    assert told.estimated_from == "The speed of the last 199 lines."


def test_the_object(api, make, live_backend):
    batch = make(10, 20, input_tokens=70, output_tokens=500, warnings=[{"code": "c", "message": "Mind the gap."}])
    body = api.get(f"/v1/batches/{batch.pk}/progress").json()
    end = body.pop("estimated_end")
    assert end == pytest.approx(time.time() + 40, abs=2)
    assert body == {
        "id": batch.pk,
        "object": "batch.progress",
        "status": "in_progress",
        "request_counts": {"total": 30, "completed": 10, "failed": 0},
        "lines_open": 20,
        "waiting_for": None,
        "warnings": [{"code": "c", "message": "Mind the gap."}],
        "contexts": [],
        "usage": {
            "input_tokens": 70,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 500,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 570,
        },
        "lines_per_minute": 30.0,
        "tokens_per_second": 25.0,
        "estimated_from": "The speed of the last 9 lines.",
        "expires_at": int(batch.expires_at.timestamp()),
        # No line of these has an answer that could be measured.
        "disk_needed_bytes": None,
        "disk_free_bytes": body["disk_free_bytes"],
    }
    assert body["disk_free_bytes"] > 0
    assert api.get("/v1/batches/batch_nope/progress").status_code == 404


def test_before_a_batch_has_a_speed_that_of_another_with_its_model_counts(make, live_backend):
    make(50, 0, each=9.0, model="another")
    slower, faster = make(50, 0, each=3.0), make(50, 0, each=1.0)
    Batch.objects.update(status=Status.COMPLETED)
    for batch, hours in ((slower, 5), (faster, 4)):
        batch.parts.update(turn_at=timezone.now() - timedelta(hours=hours))
    told = progress.of(make(0, 1000))
    assert ends_in(told) == pytest.approx(1000, abs=2)
    assert told.estimated_from == (
        f"The speed of the last 49 lines, of {faster.pk} too: those may be longer or shorter."
    )
    assert (told.lines_per_minute, told.tokens_per_second) == (None, None)
    # From its own fifth line on nothing else counts.
    Batch.objects.update(status=Status.COMPLETED)
    assert ends_in(progress.of(make(5, 1000, each=2.0))) == pytest.approx(2000, abs=10)


def test_it_warns_of_a_window_by_an_earlier_batch_too(make, live_backend):
    make(50, 0, each=60.0)
    Batch.objects.update(status=Status.COMPLETED)
    told = progress.of(make(0, 3000))
    assert [each["code"] for each in told.warnings] == ["window_too_short"]
    assert "by the forecast the batch ends at" in told.warnings[0]["message"]


def test_another_endpoint_is_no_evidence(make, live_backend):
    make(50, 0)
    Batch.objects.update(endpoint="/v1/embeddings", status=Status.COMPLETED)
    told = progress.of(make(0, 10))
    assert told.estimated_from == f"Not known before 5 lines for {MODEL} are finished."


# Room on the disk


def answered(batch, size):
    """Give the finished lines answers of this length."""
    for place, each in enumerate(batch.lines.filter(state=LineState.SUCCEEDED).order_by("number"), start=1):
        batch.lines.filter(pk=each.pk).update(place=place)
        Response.objects.create(line=each, body="x" * size)
    return batch


def in_rows(count):
    """What rows of so many bytes take on the disk of DATA_DIR."""
    return max(0, count - disk.unused_bytes()) if connection.vendor == "sqlite" else 0


def test_what_the_rest_takes_is_told_by_the_answers_so_far(make, live_backend):
    told = progress.of(answered(make(10, 30), 1000)).disk
    # In a row and in the result file; of those that are answered, in the result file alone.
    assert told.needed_bytes == in_rows(1000 * 30) + 1000 * 40 + disk.ENVELOPE_BYTES * 40
    assert told.free_bytes > 0


def test_before_the_first_answer_it_is_told_by_the_result_file_of_another_batch(make, live_backend):
    earlier = make(10, 0)
    file = File.objects.create(
        id="file-out", bytes=10 * (500 + disk.ENVELOPE_BYTES), filename="o", purpose="batch_output"
    )
    Batch.objects.update(model=MODEL, output_file=file, status=Status.COMPLETED)
    earlier.refresh_from_db()
    batch = make(0, 100)
    assert disk.of(batch).needed_bytes is None  # it names no model yet
    batch.model = MODEL
    assert disk.of(batch).needed_bytes == in_rows(500 * 100) + 500 * 100 + disk.ENVELOPE_BYTES * 100
    of_another_owner = Owner.objects.create(name="Ann")
    Batch.objects.filter(pk=earlier.pk).update(owner=of_another_owner)
    assert disk.of(batch).needed_bytes is None
    batch.owner = of_another_owner
    assert disk.of(batch).needed_bytes is not None
    file.delete()
    assert disk.of(batch).needed_bytes is None
    assert disk.of(earlier).needed_bytes == 0


def test_a_disk_without_room_is_told_before_it_is_full(make, live_backend, settings, caplog, monkeypatch):
    monkeypatch.setattr(disk, "unused_bytes", lambda: 0)  # other tests may have left some
    batch = answered(make(10, 30), 1_000_000)  # far more than what else comes to this disk meanwhile
    assert progress.of(batch).warnings == []
    settings.MIN_FREE_BYTES = disk.of(batch).free_bytes - 20_000_000
    told = progress.of(batch).warnings
    assert [each["code"] for each in told] == ["disk_too_small"]
    needed = 1_000_000 * (2 * 30 + 10 if connection.vendor == "sqlite" else 40)
    assert f"takes about {needed // 10**6} MB on the disk of DATA_DIR" in told[0]["message"]
    for _ in range(2):
        forecasts.review()
    batch.refresh_from_db()
    assert [each["code"] for each in batch.warnings] == ["disk_too_small"]
    assert len([each for each in caplog.messages if "The rest of the batch takes" in each]) == 1
    settings.MIN_FREE_BYTES = 0
    forecasts.review()
    batch.refresh_from_db()
    assert batch.warnings == []


@pytest.mark.skipif(connection.vendor != "sqlite", reason="Postgres has its rows elsewhere")
def test_unused_pages_of_the_database_are_taken_first(make, live_backend):
    batch = answered(make(20, 1000), 10_000)
    before, unused = disk.of(batch).needed_bytes, disk.unused_bytes()
    Response.objects.filter(line__number__lt=10).delete()
    freed = disk.unused_bytes() - unused
    assert freed >= 9 * 10_000
    assert disk.of(batch).needed_bytes == before - freed


def test_rows_of_another_database_take_nothing_here(make, live_backend, monkeypatch):
    batch = answered(make(10, 30), 1000)
    monkeypatch.setattr(disk, "connection", SimpleNamespace(vendor="postgresql"))
    assert disk.of(batch).needed_bytes == 1000 * 40 + disk.ENVELOPE_BYTES * 40


def test_repeats_take_no_rows(make, live_backend, monkeypatch):
    monkeypatch.setattr(disk, "unused_bytes", lambda: 0)
    monkeypatch.setattr(disk, "connection", SimpleNamespace(vendor="sqlite"))
    batch = answered(make(10, 30, repeated=25, repeated_finished=5), 1000)
    assert disk.of(batch).needed_bytes == 1000 * (10 + 40) + disk.ENVELOPE_BYTES * 40


def test_open_batches_need_room_together(make, live_backend, settings, monkeypatch):
    monkeypatch.setattr(disk, "unused_bytes", lambda: 0)
    batches = [answered(make(10, 990), 10_000) for _ in range(3)]
    alone = disk.of(batches[0]).needed_bytes
    assert disk.of(batches[0]).needed_by_all_bytes == 3 * alone
    free = disk.of(batches[0]).free_bytes
    monkeypatch.setattr(disk.storage, "free_bytes", lambda: free)
    settings.MIN_FREE_BYTES = free - 2 * alone  # enough for each, and for two
    forecasts.review()
    for batch in batches:
        batch.refresh_from_db()
        assert [each["code"] for each in batch.warnings] == ["disk_too_small"]
        assert "The rest of the batch and of other open ones takes" in batch.warnings[0]["message"]
    # One of them is over.
    Batch.objects.filter(pk=batches[0].pk).update(status=Status.COMPLETED)
    forecasts.review()
    assert Batch.objects.get(pk=batches[1].pk).warnings == []


def test_the_last_lines_count_and_not_the_first(make, live_backend):
    batch = make(300, 10, each=1.0)
    # The first hundred were slow; they are over.
    batch.lines.filter(number__lt=100).update(duration_ms=60_000, finished_at=timezone.now() - timedelta(hours=3))
    assert progress.of(batch).lines_per_minute == 60.0


def test_several_calls_at_once_are_as_fast_as_their_answers_come(make, live_backend):
    # Four at a time: each takes 8 s, and one ends every 2 s.
    assert progress.of(make(50, 10, each=2.0, took=8.0)).lines_per_minute == 30.0


def test_answers_that_are_stored_in_groups_took_the_time_between_the_groups(make, live_backend):
    # 20 lines of 10 ms each share the moment in which they were stored, 200 ms after the group before: 100 in a second,
    # but for the first group, of which it is not known when it began.
    batch = make(200, 10)
    now = timezone.now()
    for done in batch.lines.exclude(finished_at=None):
        stored = now - second(0.2 * ((199 - done.number) // 20))
        Line.objects.filter(pk=done.pk).update(finished_at=stored, duration_ms=10)
    assert progress.of(batch).lines_per_minute == pytest.approx(6000, rel=0.12)


def test_a_pause_between_two_lines_is_no_time_of_theirs(make, live_backend):
    batch = make(100, 10, each=2.0)
    batch.lines.filter(number__lt=50).update(finished_at=timezone.now() - timedelta(hours=5))
    # Half of them are in one moment now, so that 99 lines took the 49 steps between the others, and one of them more.
    assert progress.of(batch).lines_per_minute == pytest.approx(60 * 99 / (49 * 2 + 2.5), rel=0.01)


def test_failed_lines_are_measured_as_well(make, live_backend):
    told = progress.of(make(50, 10, each=3.0, state=LineState.FAILED))
    assert told.lines_per_minute == 20.0
    assert told.lines_open == 10


def test_lines_that_failed_without_being_sent_are_not(make, live_backend):
    batch = make(50, 10, state=LineState.FAILED)
    batch.lines.update(duration_ms=None)
    assert progress.of(batch).lines_per_minute is None


def test_embeddings_write_no_tokens(make, live_backend):
    batch = make(50, 10)
    batch.lines.update(output_tokens=0)
    told = progress.of(batch)
    assert (told.lines_per_minute, told.tokens_per_second) == (30.0, None)


def test_lines_that_repeat_another_take_no_time(make, live_backend):
    # 100 lines and 9 repeats of each; 10 are sent, in 10 s each. That is also so where another model makes it count.
    batch = make(10, 90, each=10.0)
    Batch.objects.filter(pk=batch.pk).update(**folded(total=1000, completed=100, repeated=900, repeated_finished=90))
    batch.refresh_from_db()
    told = progress.of(batch)
    assert told.lines_open == 900
    assert ends_in(told) == pytest.approx(900, abs=3)
    other = make(50, 100, each=10.0)
    assert ends_in(progress.of(other)) == pytest.approx(1000 + 900, abs=3)
    switch.pause(other.pk)
    make(10, 1, each=10.0, model="large", batch=batch)
    assert ends_in(progress.of(batch)) == pytest.approx(900 + 10, abs=3)


# No end where none is known


@pytest.mark.slow
@pytest.mark.parametrize("done", [0, 4])
def test_nothing_is_made_up_before_lines_are_measured(make, live_backend, done):
    told = progress.of(make(done, 100))
    assert (told.lines_per_minute, told.tokens_per_second, told.estimated_end) == (None, None, None)
    assert told.estimated_from == f"Not known before 5 lines for {MODEL} are finished."


def test_a_batch_that_is_validated_or_over_has_no_end(api, create, make, live_backend):
    told = progress.of(Batch.objects.get(pk=create([line("a")])["id"]))
    assert (told.estimated_end, told.waiting_for) == (None, None)
    assert told.estimated_from == "Not known before the input file is validated."
    done = make(10)
    assert progress.of(done).estimated_from == "Every line is finished; the result files are next."
    for status in set(Status) - {Status.VALIDATING, Status.IN_PROGRESS}:
        Batch.objects.filter(pk=done.pk).update(status=status)
        told = progress.of(Batch.objects.get(pk=done.pk))
        assert (told.estimated_end, told.estimated_from, told.waiting_for) == (None, None, None)
        assert told.lines_per_minute == 30.0


def waits(batch):
    """What it waits for; then no end is known."""
    batch.refresh_from_db()
    told = progress.of(batch)
    assert progress.waiting_for(batch) == told.waiting_for
    assert (told.estimated_end is None) is (told.waiting_for is not None)
    if told.waiting_for:
        assert told.estimated_from == "Not known while the batch waits."
    return told.waiting_for


def test_it_waits_for_whoever_paused_it(make, live_backend):
    batch = make(10, 10)
    switch.pause(batch.pk)
    since = Batch.objects.get().paused_at
    assert waits(batch) == (
        f"A person paused this batch at {gate.clock(since)}. Resume it in the admin, by manage.py resume {batch.pk} "
        f"or by POST /v1/batches/{batch.pk}/resume."
    )
    switch.resume(batch.pk)
    assert waits(batch) is None
    switch.pause_all()
    assert waits(batch) == gate.look(live_backend).reason
    switch.resume_all()
    assert waits(batch) is None


def test_it_waits_for_the_end_of_quiet_hours(make, live_backend, settings):
    batch = make(10, 10)
    quiet_now(settings)
    assert waits(batch).startswith("Quiet hours until")


def test_it_waits_for_a_person_at_the_model_server(make, live_backend):
    batch = make(10, 10)
    Hold.objects.create(backend=live_backend, reason="person", until=timezone.now() + second(30))
    assert waits(batch).startswith("A person's request")
    # Another server is free.
    Backend.objects.create(name="there", url="http://127.0.0.1:8", worker_seen_at=timezone.now())
    assert waits(batch) is None


def test_it_waits_for_the_model_server_and_its_worker(make, live_backend):
    batch = make(10, 10)
    live_backend.pause("Ollama does not answer. Start it: ollama serve")
    assert waits(batch) == "Ollama does not answer. Start it: ollama serve"
    Backend.objects.update(worker_seen_at=timezone.now() - timedelta(hours=1))
    assert waits(batch) == "No inference worker has reported lately."


def test_it_waits_for_a_model_that_fails_everything(make, live_backend):
    batch = make(10, 10)
    PausedModel.pause(live_backend, "/v1/embeddings", MODEL, "Another endpoint.", at_least=second(60))
    PausedModel.pause(live_backend, CHAT, "other", "Another model.", at_least=second(60))
    assert waits(batch) is None
    PausedModel.pause(live_backend, CHAT, MODEL, "Ollama cannot load it.", at_least=second(60))
    assert waits(batch) == "Ollama cannot load it."
    # Its lines for another model go on.
    make(10, 10, model="third", batch=batch)
    assert waits(batch) is None


def test_it_waits_for_its_turn_and_its_end_is_known_all_the_same(make, live_backend):
    first, batch = make(10, 10), make(10, 10)
    lease = leases.acquire("drive")
    sent = Line.objects.get(batch=first, number=10)
    Line.objects.filter(pk=sent.pk).update(state=LineState.RUNNING, lease=lease)
    told = progress.of(batch)
    assert told.waiting_for == progress.waiting_for(batch)
    assert told.waiting_for == "The lines of another batch are being sent; the turn of this batch comes."
    assert told.estimated_end is not None
    assert progress.waiting_for(first) is None


# Several models, several batches, quiet hours


def test_each_model_has_its_own_speed(make, live_backend):
    batch = make(50, 100, each=1.0)
    make(50, 10, each=30.0, model="large", batch=batch)
    told = progress.of(batch)
    assert ends_in(told) == pytest.approx(100 + 300, abs=3)
    assert told.estimated_from == "The speed of the last 98 lines."
    make(0, 5, model="third", batch=batch)
    assert progress.of(batch).estimated_from == "Not known before 5 lines for third are finished."


def test_a_model_whose_lines_are_done_does_not_count(make, live_backend):
    batch = make(50, 0, each=30.0, model="large")
    make(50, 100, each=1.0, batch=batch)
    assert ends_in(progress.of(batch)) == pytest.approx(100, abs=2)


def test_too_many_lines_of_several_models_are_not_counted(make, live_backend, monkeypatch):
    monkeypatch.setattr(progress, "MOST_COUNTED", 50)
    batch = make(10, 49)
    make(10, 49, model="large", batch=batch)
    assert progress.of(batch).estimated_end is not None
    make(10, 50, model="larger", batch=batch)
    told = progress.of(batch)
    assert told.estimated_from == "Not known while 50 lines or more for one of several models are left."


@pytest.mark.slow
def test_the_turns_of_others_are_counted_in(make, live_backend):
    batch = make(50, 100, each=2.0)
    shorter, longer = make(50, 10, each=1.0), make(50, 10_000, each=1.0)
    make(50, 1000, priority=-1)
    paused = make(50, 1000)
    switch.pause(paused.pk)
    told = progress.of(batch)
    # 200 s of its own, all 10 s of the shorter one, and as much as its own of the longer one.
    assert ends_in(told) == pytest.approx(200 + 10 + 200, abs=3)
    assert told.estimated_from == ("The speed of the last 49 lines. The turns of 2 more batches are counted in.")
    assert ends_in(progress.of(shorter)) == pytest.approx(30, abs=3)
    # Before those of a high priority nobody has a turn.
    Batch.objects.filter(pk=longer.pk).update(priority=1)
    assert ends_in(progress.of(batch)) == pytest.approx(200 + 10 + 10_000, abs=3)
    longer.refresh_from_db()
    assert ends_in(progress.of(longer)) == pytest.approx(10_000, abs=3)


def test_each_other_owner_gets_as_much_time_as_this_one(make, live_backend):
    """Whatever its priority, and whether by one batch or by several; nothing is said of how many."""
    ann, bob = (Owner.objects.create(name=name) for name in ("Ann", "Bob"))
    batch = make(50, 100, each=2.0)
    for _ in range(3):
        make(50, 1000, each=1.0, owner=ann, priority=1)
    make(50, 10, each=1.0, owner=bob, priority=-1)
    told = progress.of(batch)
    assert ends_in(told) == pytest.approx(200 + 200 + 10, abs=3)
    assert told.estimated_from == "The speed of the last 49 lines. The turns of others are counted in."
    make(50, 20, each=1.0)
    told = progress.of(batch)
    assert ends_in(told) == pytest.approx(220 + 220 + 10, abs=3)
    assert told.estimated_from == (
        "The speed of the last 49 lines. The turns of 1 more batch are counted in. The turns of others are counted in."
    )


def test_more_than_can_be_told_is_not_told(make, live_backend):
    batch = make(50, 100)
    Backend.objects.create(name="there", url="http://127.0.0.1:8", worker_seen_at=timezone.now())
    assert progress.of(batch).estimated_end is not None
    make(0, 10)
    assert progress.of(batch).estimated_from == "Not known while several batches share several model servers."
    for _ in range(10):
        make(0, 10)
    assert progress.of(batch).estimated_from == "Not known while more than 10 other batches take turns."


def test_the_hours_to_come_in_which_it_is_quiet_are_counted_in(make, live_backend, settings):
    now = timezone.now()
    start, end = (now + timedelta(hours=hours) for hours in (1, 3))
    settings.QUIET_HOURS = QuietHours(f"{start:%H:%M}-{end:%H:%M}", ZoneInfo("UTC"))
    told = progress.of(make(50, 3600, each=2.0))
    assert ends_in(told) == pytest.approx(7200 + 7200, abs=3)
    assert told.estimated_from.endswith("Quiet hours are counted in.")


def test_it_says_that_the_window_ends_first(make, live_backend):
    batch = make(50, 100_000 // 50, each=60.0)
    told = progress.of(batch)
    assert told.estimated_end > batch.expires_at
    assert told.estimated_from.endswith(f"The completion window ends before that, at {gate.clock(batch.expires_at)}.")


# Cost and truth


def test_it_asks_little_of_the_database_whatever_the_size(make, live_backend):
    asked = []
    for size in (10, 3000):
        batch = make(size, size)
        with CaptureQueriesContext(connection) as queries:
            assert progress.of(batch).estimated_end is not None
        asked.append(len(queries))
        Batch.objects.filter(pk=batch.pk).update(status=Status.COMPLETED)
    assert asked[0] == asked[1] <= 14
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            for query in queries.captured_queries:
                cursor.execute(f"EXPLAIN QUERY PLAN {query['sql']}")
                for *_, plan in cursor.fetchall():
                    assert "SCAN batches_line" not in plan or plan.endswith("USING INDEX line_claimed"), plan
                    assert "TEMP B-TREE" not in plan or "batches_line" not in query["sql"], plan


@pytest.mark.slow
def test_a_batch_that_runs_ends_when_it_was_told(work, backend, create):
    backend.delay_s = 0.1
    batch = create([line(f"l{n}") for n in range(100)])["id"]
    work.validate(batch)
    told = SimpleNamespace(end=None)

    def look():
        """In the drive's own loop, once a second."""
        seen = progress.of(Batch.objects.get(pk=batch))
        if told.end is None and seen.estimated_end is not None and seen.lines_open > 10:
            told.end = seen.estimated_end
        return False

    work.drive(should_stop=look)
    assert Batch.objects.get().status == Status.FINALIZING
    assert told.end is not None
    assert (timezone.now() - told.end).total_seconds() == pytest.approx(0, abs=2.5)
