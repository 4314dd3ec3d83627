"""What takes disk for a while: responses until the result files have them, and all that RETENTION_DAYS is over for."""

from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.utils import timezone

from batches import cleanup, results, tasks
from batches.models import Batch, Line, Response, WebhookDelivery
from common.models import Owner
from files_api import retention
from files_api.models import File, FileHold
from tests.conftest import custom_ids, line
from tests.fake_backend import Action, answer
from tests.ticks import tick

LONG = "x" * 20_000
NAMES = [f"id-{number}" for number in range(40)]


def long_answer(name):
    body = answer("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": name}]}, 4096)
    body["choices"][0]["message"]["content"] = LONG
    return Action(body=body)


def pages_of_the_database():
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA page_count")
        return cursor.fetchone()[0]


@pytest.mark.slow
@pytest.mark.skipif(connection.vendor != "sqlite", reason="Postgres frees rows by its own autovacuum")
def test_the_database_stops_growing_batch_after_batch(create, work, backend):
    for name in NAMES:
        backend.always(name, long_answer(name))
    sizes = []
    for _ in range(6):
        work.run(create([line(name) for name in NAMES])["id"])
        sizes.append(pages_of_the_database())
    assert not Response.objects.exists()
    answers = len(NAMES) * len(LONG) / 4096
    assert sizes[0] > answers
    # The rows of the lines themselves stay.
    assert sizes[-1] - sizes[1] < answers / 10


def test_failed_lines_keep_their_reasons_and_lose_their_responses(create, work, backend):
    backend.always("a", Action(400, {"error": {"message": "no", "type": "t", "code": "bad"}}))
    work.run(create([line("a"), line("b")])["id"])
    assert Line.objects.values_list("error_code", "http_status").get(custom_id="a") == ("bad", 400)
    assert not Response.objects.exists()


def test_result_files_that_a_worker_without_owners_stored_get_the_owner_of_their_batch(create, work, backend):
    ann = Owner.objects.create(name="ann")
    backend.always("b", Action(400, {"error": {"message": "no", "type": "t", "code": "bad"}}))
    hers, _ = (work.run(create([line("a"), line("b")])["id"]) for _ in range(2))
    Batch.objects.filter(pk=hers["id"]).update(owner=ann)  # the files as the old worker makes them: the first owner's
    cleanup.correct_owners()
    results_of_ann = {hers["output_file_id"], hers["error_file_id"]}
    assert set(File.objects.filter(owner=ann).values_list("pk", flat=True)) == results_of_ann
    assert File.objects.filter(owner=Owner.FIRST).count() == 4  # two input files, and what is the first owner's
    cleanup.correct_owners()
    assert File.objects.filter(owner=ann).count() == 2


# RETENTION_DAYS


@pytest.fixture
def kept_for_10_days(settings):
    settings.RETENTION_DAYS = 10


def age(days, **more):
    """All batches ended, and all files came, so many days ago."""
    then = timezone.now() - timedelta(days=days)
    Batch.objects.update(nudged_at=then)
    Batch.objects.exclude(completed_at=None).update(created_at=then - timedelta(days=1), completed_at=then)
    Batch.objects.filter(completed_at=None).update(created_at=then - timedelta(days=1))
    File.objects.update(created_at=then)


def sweep(sent):
    sent.clear()
    tick()
    for name, *arguments in sent:
        if name == "delete":
            tasks.delete(*arguments)
    return [name for name, *_ in sent if name == "delete"]


def test_batches_go_with_their_files_when_their_days_are_over(api, create, work, backend, sent, kept_for_10_days):
    batch = work.run(create([line("a")])["id"])
    age(9.9)
    assert sweep(sent) == []
    age(10.1)
    assert sweep(sent) == ["delete"]
    assert not Batch.objects.exists()
    assert not Line.objects.exists()
    sweep(sent)  # now no batch has the input file any more
    assert not FileHold.objects.exists()
    for kind in ("input", "output"):
        assert api.get(f"/v1/files/{batch[f'{kind}_file_id']}").status_code == 404
    retention.sweep()
    assert not File.objects.filter(deleted_at=None).exists()
    assert sweep(sent) == []


def test_a_large_batch_goes_in_slices_that_ask_for_the_next(create, work, backend, sent, kept_for_10_days, monkeypatch):
    monkeypatch.setattr(results, "PAGE", 2)
    monkeypatch.setattr(cleanup, "SLICE_S", -1.0)
    batch = work.run(create([line(name) for name in "abcde"])["id"])["id"]
    age(11)
    sent.clear()
    tick()
    left = []
    while ("delete", batch) in sent:
        sent.clear()
        tasks.delete(batch)
        left.append(Line.objects.count())
        tick()  # the slices go on by themselves: it asks for none beside them
        assert sent.count(("delete", batch)) <= 1
    assert left == [3, 1, 0, 0]
    assert not Batch.objects.exists()


def test_two_deletes_at_once_count_the_batch_once(create, work, backend, monkeypatch):
    """The second begins while the first is about to end."""
    batch = work.run(create([line("a"), line("b")])["id"])["id"]
    keep = cleanup.totals.keep
    counted = []

    def overtaken(batches):
        counted.append(batches)
        keep(batches)

    monkeypatch.setattr(cleanup.totals, "keep", overtaken)
    ranges = results.ranges

    def second_meanwhile(found):
        monkeypatch.setattr(results, "ranges", ranges)
        cleanup.delete(batch)
        return iter(())

    monkeypatch.setattr(results, "ranges", second_meanwhile)
    cleanup.delete(batch)
    assert len(counted) == 1


def test_what_runs_or_waits_is_kept(create, work, sent, kept_for_10_days):
    create([line("a")])
    age(100)
    assert sweep(sent) == []
    assert Batch.objects.count() == File.objects.all().visible().count() == 1


def test_a_batch_that_ran_for_long_is_kept_from_its_end_on(create, work, backend, sent, kept_for_10_days):
    work.run(create([line("a")])["id"])
    Batch.objects.update(created_at=timezone.now() - timedelta(days=30))
    assert sweep(sent) == []


@pytest.mark.parametrize("ended", ["failed_at", "expired_at", "cancelled_at"])
def test_batches_go_however_they_ended(create, sent, kept_for_10_days, ended):
    create([line("a")])
    long_ago = timezone.now() - timedelta(days=11)
    status = ended.removesuffix("_at")
    stamps = {"created_at": long_ago, "tidied_at": long_ago, "nudged_at": long_ago, ended: long_ago}
    Batch.objects.update(status=status, **stamps)
    assert sweep(sent) == ["delete"]
    assert not Batch.objects.exists()


def test_a_file_that_another_batch_has_is_kept(api, create, upload, work, backend, sent, kept_for_10_days):
    batch = work.run(create([line("a")])["id"])
    age(11)
    again = {"input_file_id": batch["input_file_id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    second = api.post("/v1/batches", again, format="json").json()["id"]
    assert sweep(sent) == ["delete"]
    sweep(sent)
    assert custom_ids(work.content(work.run(second)["output_file_id"])) == ["a"]


def test_all_is_kept_for_ever_by_default(create, work, backend, sent):
    work.run(create([line("a")])["id"])
    age(10_000)
    assert sweep(sent) == []
    assert File.objects.all().visible().count() == 2


def test_a_late_message_to_delete_changes_nothing(create, work, backend):
    batch = work.run(create([line("a")])["id"])
    cleanup.delete(batch["id"])
    tasks.delete(batch["id"])
    tasks.finalize(batch["id"])


# Rows that nobody deletes by hand


def test_old_events_and_sessions_are_forgotten(create, admin_client):
    batch = Batch.objects.get(pk=create([line("a")])["id"])
    long_ago = timezone.now() - timedelta(days=31)
    for name, values in {
        "delivered": {"created_at": long_ago, "delivered_at": long_ago},
        "given up": {"created_at": long_ago},
        "waiting": {"created_at": long_ago, "next_at": timezone.now()},
        "new": {"created_at": timezone.now()},
    }.items():
        WebhookDelivery.objects.create(id=name, batch=batch, event="batch.completed", **values)
    Session.objects.create(session_key="old", session_data="", expire_date=timezone.now() - timedelta(seconds=1))
    tick()
    assert set(WebhookDelivery.objects.values_list("pk", flat=True)) == {"waiting", "new"}
    assert Session.objects.count() == 1
    assert admin_client.get("/admin/").status_code == 200
