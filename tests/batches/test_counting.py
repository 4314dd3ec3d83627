"""Counters: each drive counts by itself, whoever reads adds up, and no reader passes over a place."""

import json
import threading
from datetime import timedelta
from itertools import pairwise

import pytest
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from batches import counting, creation, leases, lifecycle, registry
from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Usage, Verdict
from batches.dispatch import claims
from batches.models import Batch, Counts, Lease, Line, LineState, Status
from batches.scheduling import turns
from batches.status import progress, totals
from common.models import Owner
from tests.conftest import custom_ids, line, several_connections

KEYS = "abcdefgh"
USAGE = Usage(input_tokens=5, cached_tokens=1, output_tokens=3, reasoning_tokens=2)


@pytest.fixture
def batch(create, work):
    """A batch with eight lines to send, of which the last one repeats the first."""
    work.in_flight = 1
    lines = [line(key, body={"temperature": 0}) for key in KEYS[:-1]]
    made = create([*lines, lines[0] | {"custom_id": KEYS[-1]}])
    work.validate(made["id"])
    return made["id"]


def claimed(most, lease=None):
    """A drive's lease, and lines that it has claimed."""
    lease = lease or leases.acquire("drive", backend=registry.own_backend())
    turn = turns.next_turn(registry.own_backend(), None)
    return lease, claims.claim(lease, turn, most) if turn else []


def store(lease, lines, verdict=Verdict.ANSWERED):
    body = '{"choices":[]}'
    replies = Reply(verdict, 200 if verdict is Verdict.ANSWERED else 400, body, usage=USAGE)
    claims.store(lease, [Call(each, "", {}, 1.0, reply=replies) for each in lines])


def told(work, batch):
    body = work.batch(batch)
    counts = body["request_counts"]
    return counts["completed"], counts["failed"], body["usage"]["input_tokens"], body["usage"]["output_tokens"]


def test_what_drives_count_is_added_up_and_never_falls(batch, work, api):
    seen = [told(work, batch)]

    def look():
        seen.append(told(work, batch))
        # All who read counts say the same.
        done = seen[-1][0] + seen[-1][1]
        row = Batch.objects.get(pk=batch)
        assert creation.open_lines(Owner.objects.first_one()) == progress.of(row).lines_open == 8 - done
        [listed] = api.get("/v1/batches").json()["data"]
        assert listed["request_counts"]["completed"] == seen[-1][0]
        lines = totals.of(Batch.objects.all())["lines"]
        assert (sum(lines.values()), row.repeated_finished) == (done, 1 if done else 0)

    first, second = claimed(2), claimed(2)
    store(*first)
    look()
    store(*second, verdict=Verdict.REFUSED)
    look()
    assert seen[-1] == (3, 2, 10, 6)  # the first has a repeat
    assert Counts.objects.count() == 2
    store(*claimed(1, first[0]))
    look()
    assert Counts.objects.count() == 2
    leases.release(first[0])
    look()
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))  # the second drive is killed
    leases.reap()
    look()
    assert not Counts.objects.exists()
    third = claimed(8)
    store(*third)
    look()
    lifecycle.close_finished(lambda batch_id: None)
    work.finalize(batch)
    look()
    leases.release(third[0])
    look()
    assert seen[-1] == (6, 2, 25, 15)
    for before, after in pairwise(seen):
        assert all(now >= then for then, now in zip(before, after, strict=True)), seen
    assert sorted(Line.objects.exclude(place=None).values_list("place", flat=True)) == list(range(1, 8))


def test_a_drive_of_an_earlier_version_counts_in_the_batch_row(batch, work):
    """It adds to the columns, and takes the next place under the row's lock."""
    ours = claimed(2)
    theirs = claimed(1)
    store(*ours)
    Line.objects.filter(pk=theirs[1][0].pk).update(state=LineState.SUCCEEDED, lease=None, place=3)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE batches_batch SET completed = completed + 1, last_place = 3")
    assert told(work, batch)[0] == 4
    store(*claimed(1, ours[0]))
    assert Line.objects.get(custom_id="d").place == 4
    assert told(work, batch)[0] == 5


def test_an_earlier_version_that_finalizes_leaves_nothing_counted_twice(batch, work):
    """It writes what it has recounted to the columns, and knows nothing of the drive's row."""
    drive = claimed(8)
    store(*drive)
    lifecycle.move(batch, Status.FINALIZING)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE batches_batch SET status = 'completed', completed = 8, input_tokens = 35")
    counted = told(work, batch)
    assert counted[:3] == (8, 0, 35)
    assert totals.of(Batch.objects.all())["lines_repeated"] == {"gemma3:12b": 1}
    leases.release(drive[0])
    assert told(work, batch)[:3] == (8, 0, 35)
    assert totals.of(Batch.objects.all())["lines_repeated"] == {"gemma3:12b": 1}
    assert Batch.objects.get().repeated_finished == 1


def test_counts_that_were_left_behind_are_folded(batch, work):
    """A process that stood still until it was declared dead stored after that, and was killed."""
    drive = claimed(2)
    store(*drive)
    Lease.objects.all().delete()
    leases.reap()
    assert not Counts.objects.exists()
    assert told(work, batch)[0] == 3


def test_counts_of_a_batch_that_is_gone_are_forgotten(batch):
    drive = claimed(1)
    store(*drive)
    Batch.objects.filter(pk=batch).update(folded_completed=F("folded_completed"))
    with connection.cursor() as cursor:  # as an earlier version does, which knows nothing of them
        for table in ("batches_response", "batches_line", "batches_part", "batches_batch"):
            cursor.execute(f"DELETE FROM {table}")
    leases.release(drive[0])
    assert not Counts.objects.exists()


@pytest.mark.parametrize("verdict", [Verdict.CUT, Verdict.BUSY])
def test_lines_that_go_back_take_no_place(batch, verdict):
    drive = claimed(2)
    store(*drive, verdict=verdict)
    assert not Counts.objects.exists()
    assert Batch.objects.get().last_place == 0


def test_a_list_reads_the_counters_of_all_its_batches_at_once(create, work, api):
    def statements():
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert api.get("/v1/batches").status_code == 200
        return len(queries)

    work.validate(create([line("a")])["id"])
    once = statements()
    for _ in range(5):
        work.validate(create([line("a")])["id"])
    assert statements() == once


def read_on(api, batch, after):
    answer = api.get(f"/v1/batches/{batch}/output", {"after": after})
    lines = [json.loads(each) for each in answer.getvalue().decode().splitlines()]
    return custom_ids(lines), int(answer["X-Last-Line"])


def test_a_reader_stops_before_places_that_are_taken_and_not_stored(batch, api):
    first, second = claimed(1), claimed(2)
    store(*first)
    store(*second)
    Counts.objects.filter(lease=first[0]).update(open_after=1)
    assert read_on(api, batch, 0) == (["a", "h"], 1)
    Counts.objects.update(open_after=None)
    assert read_on(api, batch, 1) == (["b", "c"], 3)


@several_connections
def test_a_drive_that_commits_late_is_passed_over_by_no_reader(batch, api):
    """It took its places first, and another drive stored meanwhile, without waiting for it."""
    first, second = claimed(1), claimed(2)
    stands, goes_on = threading.Event(), threading.Event()
    write = claims._write

    def slow(lease, became):
        if lease == first[0]:
            stands.set()
            assert goes_on.wait(20)
        return write(lease, became)

    def late():
        try:
            store(*first)
        finally:
            connection.close()

    thread = threading.Thread(target=late)
    claims._write = slow
    try:
        thread.start()
        assert stands.wait(20)
        store(*second)
        assert Batch.objects.get().completed == 2
        assert read_on(api, batch, 0) == ([], 0)
    finally:
        claims._write = write
        goes_on.set()
        thread.join()
    assert read_on(api, batch, 0) == (["a", "h", "b", "c"], 3)
    assert Line.objects.get(custom_id="a").place == 1


def test_places_of_a_transaction_that_failed_hold_nobody_back(batch, api):
    lease, lines = claimed(2)
    with pytest.raises(ZeroDivisionError), counting.storing(lease, {batch: 2}):
        raise ZeroDivisionError
    store(lease, lines)  # the drive tries again
    after = Batch.objects.get().counted.settled_place
    assert read_on(api, batch, 0) == (["a", "h", "b"], after)
