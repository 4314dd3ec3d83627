"""The lines of a model that will never answer: a drive marks them, the control worker fails them, page by page."""

import re
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from batches import failing, leases, lifecycle, tasks
from batches.backends.replies import Reply, Verdict
from batches.dispatch import claims
from batches.lifecycle import Outcome
from batches.models import Batch, Lease, Line, LineState, Part, Status
from batches.scheduling import turns
from batches.status import progress
from tests.conftest import CHAT, custom_ids, line
from tests.fake_backend import TRIAL, Action
from tests.ticks import tick

UNLOADABLE = Reply(Verdict.UNLOADABLE, 500, '{"error":"no room"}', code="no_room", message="No room.")


class Killed(BaseException):
    """The process is gone at this statement."""


def waiting_for_gone(create, work, backend):
    """A batch of 20 lines and a repeat of each for a model that is gone, and a line for another."""
    backend.models = ["gemma3:12b", "gone"]
    lines = []
    for n in range(40):
        say = [{"role": "user", "content": f"gone-{n % 20}"}]
        lines.append(line(f"gone-{n}", body={"model": "gone", "seed": 1, "messages": say}))
    batch = create([*lines, line("a")])["id"]
    work.validate(batch)
    return batch


def in_pages(monkeypatch, *, die_at):
    """Five lines a page; the process dies in page number `die_at`. Gives the sizes of those before."""
    monkeypatch.setattr(failing, "FAILED_AT_ONCE", 5)
    sizes = []

    def watch(execute, sql, params, many, context):
        if re.match(r'UPDATE "batches_line" SET .*"error_code" = .* WHERE "batches_line"."id" IN', sql):
            if len(sizes) + 1 == die_at:
                raise Killed
            sizes.append(sql.partition(" IN ")[2].count("%s"))
            assert connection.in_atomic_block
        return execute(sql, params, many, context)

    return sizes, connection.execute_wrapper(watch)


def failed_so_far():
    """By the batch's counts and by its rows, which are always the same: lines that failed, repeats among them."""
    batch = Batch.objects.get()
    repeats = Line.objects.filter(original__state=LineState.FAILED).count()
    assert batch.failed == Line.objects.filter(state=LineState.FAILED).count() + repeats
    assert batch.repeated_finished == repeats
    return batch.failed


@pytest.fixture
def marked(create, work, backend):
    """The id of a batch with 20 lines, and a repeat of each, for a model that will never answer, and a line for
    another."""
    batch_id = waiting_for_gone(create, work, backend)
    failing.mark_model(CHAT, "gone", UNLOADABLE)
    return batch_id


def pages(monkeypatch, *, lines=5):
    """Pages of so few lines, and a slice for each."""
    monkeypatch.setattr(failing, "FAILED_AT_ONCE", lines)
    monkeypatch.setattr(failing, "SLICE_S", -1.0)


def test_a_drive_marks_what_waits_for_a_missing_endpoint_and_asks_for_its_end(create, work, backend, sent):
    for key in (TRIAL, *(f"gone-{n}" for n in range(20))):
        backend.always(key, Action(404, b"404 page not found"))
    work.in_flight = 1
    batch = waiting_for_gone(create, work, backend)
    sent.clear()
    assert work.drive() == [batch]  # the control worker has a step to do
    assert failed_so_far() == 2  # the one that was sent, and its repeat
    assert len([name for name in backend.arrived() if name.startswith("gone")]) == 1
    assert work.drive() == []  # no other is sent
    tasks.wake_control(batch)
    assert sent == [("fail_lines", batch)]

    done = work.run(batch)
    assert done["request_counts"] == {"total": 41, "completed": 1, "failed": 40}
    failed = {each["response"]["status_code"] for each in work.content(done["error_file_id"])}
    assert (len(work.content(done["error_file_id"])), failed) == (40, {404})
    assert custom_ids(work.content(done["output_file_id"])) == ["a"]


def test_they_fail_in_slices_each_of_which_asks_for_the_next(marked, sent, monkeypatch):
    pages(monkeypatch)
    sent.clear()
    for failed in (10, 20, 30, 40):
        tasks.fail_lines(marked)
        assert failed_so_far() == failed
        assert ("fail_lines", marked) in sent
        sent.clear()
    tasks.fail_lines(marked)
    assert ("fail_lines", marked) not in sent
    assert set(
        Line.objects.filter(state=LineState.FAILED).values_list("http_status", "response__body", "error_code")
    ) == {(500, '{"error":"no room"}', "no_room")}


def test_a_batch_that_ends_with_them_is_finalized(create, work, backend, sent):
    backend.models = ["gone"]
    batch = create([line("a", body={"model": "gone"})])["id"]
    work.validate(batch)
    failing.mark_model(CHAT, "gone", UNLOADABLE)
    sent.clear()
    tasks.fail_lines(batch)
    assert Batch.objects.get().status == Status.FINALIZING
    assert ("finalize", batch) in sent


def test_a_lost_message_is_sent_again_once_in_a_while(marked, sent):
    sent.clear()
    tick()
    assert ("fail_lines", marked) not in sent  # its validation was a moment ago
    Batch.objects.update(nudged_at=timezone.now() - timedelta(minutes=1))
    tick()
    assert ("fail_lines", marked) in sent
    sent.clear()
    tick()
    assert ("fail_lines", marked) not in sent


def test_a_kill_between_two_pages_loses_none_and_counts_none_twice(marked, work, monkeypatch):
    sizes, watched = in_pages(monkeypatch, die_at=3)
    with watched, pytest.raises(Killed):
        failing.fail_lines(marked)
    assert (sizes, failed_so_far()) == ([5, 5], 20)
    assert failing.fail_lines(marked) is Outcome.DONE
    assert failed_so_far() == 40
    assert failing.fail_lines(marked) is Outcome.DONE
    assert work.run(marked)["request_counts"] == {"total": 41, "completed": 1, "failed": 40}


def test_the_lease_is_kept_while_they_fail(marked, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_EVERY_S", -1.0)
    _, watched = in_pages(monkeypatch, die_at=None)
    ends = []

    def look(execute, sql, params, many, context):
        if sql.startswith('UPDATE "batches_lease"'):
            ends.append(Lease.objects.get().expires_at)
        return execute(sql, params, many, context)

    with watched, connection.execute_wrapper(look):
        assert failing.fail_lines(marked) is Outcome.DONE
    assert len(set(ends)) == len(ends) == 4
    assert not Lease.objects.exists()


@contextmanager
def after_pages(count, do):
    """Once so many pages have failed `do` happens, before the next one."""
    seen = []

    def watch(execute, sql, params, many, context):
        if sql.startswith('UPDATE "batches_lease"'):  # between two pages, and in no transaction of theirs
            seen.append(sql)
            if len(seen) == count:
                do()
        return execute(sql, params, many, context)

    with pytest.MonkeyPatch.context() as patch, connection.execute_wrapper(watch):
        patch.setattr(leases, "RENEW_EVERY_S", -1.0)
        yield
    assert len(seen) == count


def test_a_lease_that_is_lost_stops_it(marked, sent, monkeypatch):
    """Declared dead after two pages: another worker has the batch, and this one wakes nobody."""
    monkeypatch.setattr(failing, "FAILED_AT_ONCE", 5)
    other = leases.acquire("fail_lines")
    sent.clear()
    with after_pages(2, lambda: Batch.objects.update(lease=other)):
        tasks.fail_lines(marked)
    assert failed_so_far() == 20
    assert ("fail_lines", marked) not in sent


@pytest.mark.parametrize("end", [lifecycle.cancel, lambda batch: lifecycle.move(batch, Status.FINALIZING)])
def test_a_cancel_or_the_end_of_the_window_stops_it(marked, work, sent, monkeypatch, end):
    monkeypatch.setattr(failing, "FAILED_AT_ONCE", 5)
    sent.clear()
    with after_pages(2, lambda: end(marked)):
        tasks.fail_lines(marked)
    assert failed_so_far() == 20
    assert ("finalize", marked) in sent
    assert ("fail_lines", marked) not in sent
    work.finalize(marked)
    assert work.batch(marked)["request_counts"]["failed"] == 20


def test_another_worker_is_at_it(marked, sent):
    Batch.objects.update(lease=leases.acquire("fail_lines"))
    sent.clear()
    tasks.fail_lines(marked)
    assert failed_so_far() == 0
    assert ("fail_lines", marked) not in sent


def test_a_line_that_was_in_flight_finishes_by_itself_and_one_that_is_handed_back_fails(create, work, backend, sent):
    batch = waiting_for_gone(create, work, backend)
    lease = leases.acquire("drive")
    held = Line.objects.filter(custom_id__in=["gone-0", "gone-1"])
    held.update(state=LineState.RUNNING, lease=lease)
    failing.mark_model(CHAT, "gone", UNLOADABLE)
    tasks.fail_lines(batch)
    assert failed_so_far() == 36
    assert held.filter(state=LineState.RUNNING).count() == 2
    leases.release(lease)
    Batch.objects.update(nudged_at=None)
    sent.clear()
    tick()
    assert ("fail_lines", batch) in sent
    tasks.fail_lines(batch)
    assert failed_so_far() == 40


def test_nobody_waits_for_a_model_that_is_given_up(marked, live_backend):
    assert not turns.is_wanted(CHAT, "gone")
    assert not turns.is_wanted(CHAT, "gone", now=False)
    lease = leases.acquire("drive", backend=live_backend)
    part = Part.objects.get(model="gone")
    assert claims.claim(lease, turns.Turn(part), 5) == []
    assert progress.waiting_for(Batch.objects.get()) is None


def test_the_first_word_of_the_model_server_stays(marked):
    failing.mark_model(CHAT, "gone", Reply(Verdict.MODEL_MISSING, 404, "{}"))
    assert Part.objects.get(model="gone").failure["status"] == 500
    assert Part.objects.get(model="gemma3:12b").failure is None


def test_a_busy_database_is_asked_again(marked, monkeypatch):
    monkeypatch.setattr("common.database.time.sleep", lambda seconds: None)
    refused = []

    def busy(execute, sql, params, many, context):
        if sql.startswith('UPDATE "batches_line"') and not refused:
            refused.append(sql)
            raise OperationalError("database is locked")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(busy):
        assert failing.fail_lines(marked) is Outcome.DONE
    assert failed_so_far() == 40
