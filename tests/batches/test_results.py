"""Result files: what they cost to write, and what becomes of a finalizer that is overtaken."""

import hashlib
import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from batches import cleanup, leases, lifecycle, results
from batches.models import Batch, Lease, Line, LineState, Response, Status
from files_api.models import File, stored_name
from tests.conftest import custom_ids, line
from tests.fake_backend import Action, error_body


def test_a_page_is_read_in_parts_of_bounded_size():
    chunk = results.CHUNK_BYTES
    assert list(results.chunks([(1, 10), (2, 10), (3, 10)])) == [(1, 3)]
    assert list(results.chunks([(1, chunk), (2, 1), (5, chunk), (6, chunk)])) == [(1, 1), (2, 5), (6, 6)]


def test_long_replies_are_all_delivered_in_order(create, work, backend, monkeypatch):
    monkeypatch.setattr(results, "CHUNK_BYTES", 300)
    monkeypatch.setattr(results, "PAGE", 4)
    names = [f"id-{number}" for number in range(10)]
    batch = work.run(create([line(name) for name in names])["id"])
    assert custom_ids(work.content(batch["output_file_id"])) == names


def test_a_finalizer_that_lost_its_lease_leaves_nothing(create, work, backend, settings):
    batch = create([line("a")])["id"]
    work.validate(batch)
    work.drive()

    def overtaken():
        """While the first writes, it is declared dead and another finishes."""
        if Batch.objects.get().lease is not None and not File.objects.filter(purpose="batch_output").exists():
            leases.release(Batch.objects.get().lease)
            results.finalize(batch, breathe=lambda: None)

    results.finalize(batch, breathe=overtaken)
    cleanup.tidy(batch, breathe=lambda: None)

    seen = work.batch(batch)
    assert seen["status"] == "completed"
    assert custom_ids(work.content(seen["output_file_id"])) == ["a"]
    # One result, the winner's; the input has no token in its name.
    assert len([path for path in settings.FILES_DIR.rglob("file-*.*") if path.is_file()]) == 1


def test_results_of_a_killed_finalizer_are_removed(create, work, backend, settings):
    batch = create([line("a")])["id"]
    work.validate(batch)
    work.drive()
    results.finalize(batch, breathe=lambda: None)
    delivered = File.objects.get(purpose="batch_output")
    orphan = settings.FILES_DIR / f"{stored_name(delivered, '')}.999999"
    orphan.write_text("left behind")
    cleanup.tidy(batch, breathe=lambda: None)
    assert not orphan.exists()
    assert Line.objects.get().state == LineState.SUCCEEDED
    assert not Response.objects.exists()
    assert custom_ids(work.content(delivered.pk)) == ["a"]


def test_both_files_are_written_in_one_pass_and_in_input_order(create, work, backend, monkeypatch):
    monkeypatch.setattr(results, "PAGE", 3)
    for name in ("id-2", "id-3", "id-9"):
        backend.always(name, Action(400, error_body("no")))
    names = [f"id-{number}" for number in range(10)]
    batch = work.run(create([line(name) for name in names])["id"])
    assert batch["request_counts"] == {"total": 10, "completed": 7, "failed": 3}
    refused = ["id-2", "id-3", "id-9"]
    assert custom_ids(work.content(batch["error_file_id"])) == refused
    good = work.content(batch["output_file_id"])
    assert custom_ids(good) == [name for name in names if name not in refused]
    assert batch["usage"]["input_tokens"] == sum(each["response"]["body"]["usage"]["prompt_tokens"] for each in good)


def test_a_long_write_keeps_its_lease_alive(create, work, backend, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_EVERY_S", -1.0)
    monkeypatch.setattr(results, "PAGE", 1)
    batch = create([line(name) for name in "abc"])["id"]
    work.validate(batch)
    work.drive()
    left = []

    def breathe():
        left.append(Lease.objects.get().expires_at)

    results.finalize(batch, breathe=breathe)
    assert len(set(left)) == len(left) == 3


def test_the_size_of_a_file_is_what_it_holds(create, work, backend):
    batch = work.run(create([line("ä"), line("b")])["id"])
    file = File.objects.get(pk=batch["output_file_id"])
    with file.content.open() as stream:
        content = stream.read()
    assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("end", [lifecycle.cancel, lambda batch: lifecycle.move(batch, Status.FINALIZING)])
def test_settling_passes_once_over_the_lines_and_leaves_none_open(create, work, backend, monkeypatch, end):
    monkeypatch.setattr(results, "PAGE", 10)
    batch = create([line(f"id-{number}") for number in range(100)])["id"]
    work.validate(batch)
    lease = leases.acquire("drive")
    Line.objects.filter(number__gt=50).update(state=LineState.RUNNING, lease=lease)
    end(batch)

    def hand_back():
        """What a drive does with its lines once it sees that their batch has stopped."""
        Line.objects.filter(state=LineState.RUNNING).update(state=LineState.PENDING, lease=None)

    with leases.Keeper("finalize") as keeper:
        finalizer = results._Finalizer(Batch.objects.get(), keeper, breathe=hand_back)
        with CaptureQueriesContext(connection) as queries:
            finalizer._settle_open_lines()
    assert not Line.objects.open().exists()
    assert Line.objects.values("state", "lease").distinct().count() == 1
    # Each range of numbers is looked up once, from where the last one ended: none begins at the start again.
    updates = [query["sql"] for query in queries if "BETWEEN" in query["sql"]]
    ranges = [re.search(r"BETWEEN (\d+) AND (\d+)", sql).groups() for sql in updates]
    assert [tuple(map(int, each)) for each in ranges] == [(n, n + 9) for n in range(1, 100, 10)]
    reads = [query["sql"] for query in queries if query["sql"].startswith("SELECT")]
    starts = [int(found[1]) for sql in reads if (found := re.search(r'"number" > (\d+)', sql))]
    assert starts == list(range(0, 101, 10))
    places = [sql for sql in reads if "last_place" in sql]
    assert len(places) == len(ranges)
    assert len(reads) == len(starts) + len(places) + 2  # and whether any is open: before, and after
