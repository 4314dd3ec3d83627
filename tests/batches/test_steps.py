"""A step of a batch that cannot be done now: it waits with a growing pause, says why, and goes on by itself."""

import errno
import io
import logging
import math
import os
import shutil
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.contrib.admin.utils import quote
from django.core.files.base import File as Content
from django.utils import timezone

from batches import leases, lifecycle, results, tasks
from batches.lifecycle import Outcome
from batches.models import Batch, Lease, Line, Response, Status
from batches.status import health, progress
from common import ids
from files_api import storage
from files_api.models import File, FileHold, stored_name
from tests.conftest import custom_ids, line
from tests.disk import files_end_at, stored
from tests.ticks import next_tick, tick

NO_ROOM = (
    "The result files cannot be written: File too large. "
    "Make room on the disk of DATA_DIR; it is tried again by itself."
)


@contextmanager
def a_directory_in_the_place(path):
    """There is a directory where the file should be, which it replaces."""
    aside = path.with_name("aside")
    if path.exists():
        path.rename(aside)
    (path / "something").mkdir(parents=True)
    yield
    shutil.rmtree(path)
    if aside.exists():
        aside.rename(path)


@contextmanager
def directories_in_the_places_of_results(settings, batch_id):
    """Directories where the output file would be put, under any of the next names."""
    name = stored_name(File(id=ids.derived_file_id(batch_id, "output")), "")
    next_token = leases.acquire("test").pk + 1
    taken = [settings.FILES_DIR / f"{name}.{token}" for token in range(next_token, next_token + 50)]
    for path in taken:
        (path / "something").mkdir(parents=True)
    yield
    for path in taken:
        shutil.rmtree(path)


def is_over():
    """The pause of whatever is stalled is over."""
    Batch.objects.exclude(retry_at=None).update(retry_at=timezone.now() - timedelta(seconds=1))


def pause_s():
    return math.ceil((Batch.objects.get().retry_at - timezone.now()).total_seconds())


def errors_of(caplog):
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.fixture
def answered(create, work, backend, sent):
    """The id of a batch of 40 lines that were all answered: its result files are next. The tick has just run."""
    batch_id = create([line(f"id-{number}") for number in range(40)])["id"]
    work.validate(batch_id)
    work.drive()
    assert Batch.objects.get().status == Status.FINALIZING
    tick()
    sent.clear()
    return batch_id


def is_delivered(work, batch_id):
    """Every step that is due is done; the batch is completed, and nothing holds it up."""
    tasks.finalize(batch_id)
    tasks.tidy(batch_id)
    done = work.batch(batch_id)
    assert done["status"] == "completed"
    assert len(custom_ids(work.content(done["output_file_id"]))) == 40
    assert (Batch.objects.get().stalls, Batch.objects.get().stall_reason) == (0, "")
    assert progress.waiting_for(Batch.objects.get()) is None
    return True


# Result files


def test_result_files_on_a_full_disk_wake_nobody_and_are_told_everywhere(api, answered, work, sent, settings, caplog):
    before = stored(settings)
    with files_end_at(4096):
        tasks.finalize(answered)
    assert sent == []
    assert stored(settings) == before
    assert Batch.objects.get().status == Status.FINALIZING
    assert [record.getMessage() for record in errors_of(caplog)] == [f"{answered}: stalled: {NO_ROOM}"]
    assert api.get(f"/v1/batches/{answered}/progress").json()["waiting_for"] == NO_ROOM
    told = health.summary()
    assert (told["status"], told["reason"]) == ("waiting", f"1 batch is stalled: {NO_ROOM}")


def test_the_pause_doubles_and_is_logged_once_and_ends_with_the_cause(answered, work, sent, caplog):
    pauses = []
    for _ in range(10):
        with files_end_at(4096):
            tasks.finalize(answered)
        pauses.append(pause_s())
        is_over()
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert len(errors_of(caplog)) == 1
    assert is_delivered(work, answered)


def test_the_tick_asks_once_the_pause_is_over_and_not_before(answered, work, sent):
    with files_end_at(4096):
        tasks.finalize(answered)
    next_tick()
    assert sent == []
    is_over()
    next_tick()
    assert sent == [("finalize", answered)]
    next_tick()
    assert sent == [("finalize", answered)]  # it is on its way
    assert is_delivered(work, answered)


def test_a_step_that_is_asked_for_during_the_pause_is_not_done(answered, work, sent):
    with files_end_at(4096):
        tasks.finalize(answered)
    tasks.finalize(answered)  # there would be room
    assert (Batch.objects.get().status, sent) == (Status.FINALIZING, [])
    assert Batch.objects.get().stalls == 1


def test_a_clock_that_went_back_does_not_prolong_the_pause(answered, work, sent):
    with files_end_at(4096):
        tasks.finalize(answered)
    Batch.objects.update(retry_at=timezone.now() + timedelta(days=1))
    assert is_delivered(work, answered)


def test_a_person_ends_the_pause(answered, work, sent, admin_client, client):
    with files_end_at(4096):
        tasks.finalize(answered)
    page = admin_client.get("/admin/batches/batch/").content.decode()
    assert NO_ROOM in page
    assert NO_ROOM in admin_client.get(f"/admin/batches/batch/{quote(answered)}/change/").content.decode()
    chosen = {"action": "try_again", "_selected_action": [answered]}
    answer = admin_client.post("/admin/batches/batch/", chosen, follow=True)
    assert f"Trying {answered} again." in answer.content.decode()
    assert ("finalize", answered) in sent
    assert is_delivered(work, answered)


def test_a_directory_in_the_place_of_a_result_file(answered, work, sent, settings, caplog):
    with directories_in_the_places_of_results(settings, answered):
        before = stored(settings)
        for _ in range(3):
            tasks.finalize(answered)
            is_over()
        assert sent == []
        assert stored(settings) == before
        assert progress.waiting_for(Batch.objects.get()) == (
            "The result files cannot be written: Is a directory. Something else lies in its place in DATA_DIR/files: "
            "move that away; it is tried again by itself."
        )
        assert len(errors_of(caplog)) == 1
    assert is_delivered(work, answered)


def test_what_was_put_in_place_is_removed_if_the_other_file_cannot_be(create, work, backend, sent, settings):
    """Or each attempt would leave an output file behind, on a disk that is full."""
    batch = create([line(each) for each in "ab"])["id"]
    work.validate(batch)
    work.drive()
    Line.objects.filter(custom_id="b").update(state=3, error_code="x", error_message="no")
    Response.objects.filter(line__custom_id="b").delete()
    errors = stored_name(File(id=ids.derived_file_id(batch, "error")), "")
    directory = (settings.FILES_DIR / errors).parent
    assert directory.name != stored_name(File(id=ids.derived_file_id(batch, "output")), "")[:2]
    directory.write_text("no directory")
    before = stored(settings)
    tasks.finalize(batch)
    assert Batch.objects.get().stall_reason.startswith("The result files cannot be written: File exists.")
    assert stored(settings) == before


def test_without_room_for_all_of_them_none_is_written_again(answered, work, sent, monkeypatch):
    with files_end_at(4096):
        tasks.finalize(answered)
    is_over()
    answers = sum(map(len, Response.objects.values_list("body", flat=True)))
    made = []
    monkeypatch.setattr(results, "result_line", lambda *row: made.append(row) or "")
    monkeypatch.setattr(results, "free_bytes", lambda: answers)  # and nothing for what stands around them
    tasks.finalize(answered)
    assert made == []
    assert "No space left on device" in Batch.objects.get().stall_reason
    monkeypatch.undo()
    is_over()
    assert is_delivered(work, answered)


def test_a_cancelled_batch_without_room_says_so_too(create, work, api, sent):
    batch = create([line(f"id-{number}") for number in range(40)])["id"]
    work.validate(batch)
    api.post(f"/v1/batches/{batch}/cancel")
    with files_end_at(4096):
        tasks.finalize(batch)
    told = progress.of(Batch.objects.get())
    assert (told.batch.status, told.waiting_for, told.estimated_end) == (Status.CANCELLING, NO_ROOM, None)
    is_over()
    tasks.finalize(batch)
    assert Batch.objects.get().status == Status.CANCELLED


# Another worker is at it


@pytest.mark.parametrize("step", ["validate", "finalize", "tidy"])
def test_a_batch_that_another_worker_holds_wakes_nobody(create, work, sent, step):
    batch = create([line("a")])["id"]
    due = {"validate": "validating", "finalize": "finalizing", "tidy": "completed"}
    lease = leases.acquire(step)
    Batch.objects.filter(pk=batch).update(**{"status": due[step]}, lease=lease)
    tick()
    sent.clear()
    getattr(tasks, step)(batch)
    assert sent == []
    assert Batch.objects.get().lease == lease
    assert list(Lease.objects.all()) == [lease]
    assert (Batch.objects.get().stalls, Line.objects.count()) == (0, 0)


# The input file


def test_an_input_file_that_cannot_be_read_for_a_moment_is_waited_for(api, create, work, sent, settings, caplog):
    batch = create([line("a")])
    path = settings.FILES_DIR / File.objects.get().content.name
    tick()
    sent.clear()
    with a_directory_in_the_place(path):
        tasks.validate(batch["id"])
        assert sent == []
        assert work.batch(batch["id"])["status"] == "validating"
        told = api.get(f"/v1/batches/{batch['id']}/progress").json()
        assert told["waiting_for"] == (
            "The input file cannot be read: Is a directory. Something else lies in its place in DATA_DIR/files: move "
            "that away; it is tried again by itself."
        )
        assert told["estimated_from"] == "Not known while the batch waits."
        assert health.summary()["reason"].startswith("1 batch is stalled: The input file cannot be read")
    is_over()
    tasks.validate(batch["id"])
    assert work.batch(batch["id"])["status"] == "in_progress"
    assert health.summary()["status"] == "ok"
    assert len(errors_of(caplog)) == 1


def test_validation_goes_on_where_reading_failed(create, work, sent, monkeypatch):
    monkeypatch.setattr("batches.validation.LEAST_GROUP_LINES", 2)
    batch = create([line(each) for each in "abcde"])["id"]
    real_open = storage.DurableFileSystemStorage._open

    class BreakingOff(io.BytesIO):
        """A file on a server that goes away after three lines."""

        def readline(self, *args):
            if self.tell() >= 3 * len(self.getvalue()) // 5:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return super().readline(*args)

    def breaking_off(self, name, mode="rb"):
        with real_open(self, name, mode) as file:
            return Content(BreakingOff(file.read()))

    with monkeypatch.context() as patch:
        patch.setattr(storage.DurableFileSystemStorage, "_open", breaking_off)
        tasks.validate(batch)
    assert (Batch.objects.get().validated_lines, Line.objects.count()) == (2, 2)
    assert "Stale file handle. See that the disk" in Batch.objects.get().stall_reason
    is_over()
    tasks.validate(batch)
    assert list(Line.objects.order_by("number").values_list("custom_id", flat=True)) == list("abcde")


# A fault of our own


def test_a_bug_stalls_its_batch_and_its_traceback_is_logged_once(create, work, sent, monkeypatch, caplog):
    batch = create([line("a")])["id"]
    tick()
    sent.clear()
    with monkeypatch.context() as patch:
        patch.setattr("batches.validation.prompt.measure", lambda *args: {}["secret"])
        for _ in range(3):
            tasks.validate(batch)
            is_over()
    assert sent == []
    reason = "An error of the server's own (KeyError). See the log of the control worker."
    assert progress.waiting_for(Batch.objects.get()) == reason
    assert [bool(record.exc_info) for record in errors_of(caplog)] == [False, True]
    tasks.validate(batch)
    assert work.batch(batch)["status"] == "in_progress"


# What is let go of afterwards


def test_bytes_that_cannot_be_removed_are_told_of_a_batch_that_is_over(api, answered, work, sent, settings, caplog):
    tasks.finalize(answered)
    api.delete(f"/v1/files/{work.batch(answered)['input_file_id']}")  # held by the batch until it is tidied
    path = settings.FILES_DIR / File.objects.get(purpose="batch").content.name
    sent.clear()
    with a_directory_in_the_place(path):
        for _ in range(2):
            tasks.tidy(answered)
            is_over()
        assert sent == []
        told = api.get(f"/v1/batches/{answered}/progress").json()
        assert told["waiting_for"].startswith(
            "The bytes of files that the batch needs no more cannot be removed: Directory not empty"
        )
        assert (Batch.objects.get().stalls, FileHold.objects.count()) == (2, 1)
    tasks.tidy(answered)
    assert (Batch.objects.get().stall_reason, FileHold.objects.count()) == ("", 0)
    assert not path.exists()
    assert progress.waiting_for(Batch.objects.get()) is None


# /health


def test_health_counts_the_batches_by_their_reasons(create, work, sent):
    batches = [create([line("a")])["id"] for _ in range(6)]
    for batch, reason in zip(batches, ["Full.", "Full.", "A.", "B.", "C.", "D."], strict=True):
        lifecycle.stall(batch, reason)
    tick()
    assert health.summary()["reason"] == (
        "2 batches are stalled: Full. 1 batch is stalled: A. 1 batch is stalled: B. 2 more batches are stalled for "
        "other reasons; the admin has them."
    )


def test_another_reason_during_a_pause_changes_nothing(create, work, sent):
    batch = create([line("a")])["id"]
    assert lifecycle.stall(batch, "One.") is True
    assert lifecycle.stall(batch, "Two.") is False
    assert (Batch.objects.get().stalls, Batch.objects.get().stall_reason) == (1, "One.")
    is_over()
    assert lifecycle.stall(batch, "Two.") is True
    assert (Batch.objects.get().stalls, pause_s()) == (2, 4)
    lifecycle.unstall(batch)
    assert work.validate(batch) is Outcome.DONE
