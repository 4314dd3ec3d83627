import subprocess
import sys
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from batches import leases, lifecycle
from batches.models import Batch, Lease, Line, LineState
from tests.conftest import line, several_connections


@pytest.fixture
def claimed(create, work):
    """A lease that holds one running line and its batch."""
    batch = create([line("a")])
    work.validate(batch["id"])
    lease = leases.acquire("drive")
    Line.objects.update(state=LineState.RUNNING, lease=lease)
    Batch.objects.update(lease=lease)
    return lease


def held():
    return Line.objects.filter(state=LineState.RUNNING).count(), Batch.objects.exclude(lease=None).count()


def test_a_live_lease_is_renewed_and_kept(claimed):
    before = Lease.objects.get().expires_at
    assert leases.renew(claimed)
    assert Lease.objects.get().expires_at >= before
    assert leases.reap() == 0
    assert held() == (1, 1)


def test_releasing_hands_everything_back_uncharged(claimed):
    leases.release(claimed)
    assert held() == (0, 0)
    assert Line.objects.get().lost_claims == 0
    assert not Lease.objects.exists()
    leases.release(claimed)


def test_an_expired_lease_cannot_be_renewed_and_is_reaped(claimed):
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert not leases.renew(claimed)
    assert leases.reap() == 1
    assert held() == (0, 0)
    assert (Line.objects.get().lost_claims, Line.objects.get().attempts) == (1, 0)
    assert leases.reap() == 0


def test_a_lease_from_before_the_clock_went_back_is_reaped(claimed):
    Lease.objects.update(expires_at=timezone.now() + leases.LIFETIME * 3)
    assert leases.reap() == 1


@pytest.mark.usefixtures("processes")
def test_the_lease_of_a_dead_process_of_this_host_is_reaped_at_once(claimed):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    Lease.objects.update(pid=process.pid)
    assert leases.reap() == 1
    assert held() == (0, 0)


def test_a_new_process_with_the_old_ones_id_is_not_taken_for_it(claimed):
    Lease.objects.update(pid=1)
    assert leases.reap() == 1


def test_the_lease_of_another_host_is_left_alone_until_it_expires(claimed):
    Lease.objects.update(host="elsewhere", pid=2**22 + 1)
    assert leases.reap() == 0


def test_tokens_are_never_used_twice(db):
    first = leases.acquire("drive")
    leases.release(first)
    assert leases.acquire("drive").pk > first.pk


def test_how_often_a_line_was_lost_is_counted_to_an_end(claimed):
    Line.objects.update(lost_claims=leases.MOST_LOST_CLAIMS)
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert leases.reap() == 1
    assert Line.objects.filter(state=LineState.PENDING).get().lost_claims == leases.MOST_LOST_CLAIMS


def test_a_token_that_was_written_after_its_lease_was_reaped_is_taken_back(claimed):
    """The process stood still for 30 s, went on for a moment and was killed."""
    Lease.objects.all().delete()
    assert leases.reap() == 0
    assert held() == (0, 0)
    assert Line.objects.get().lost_claims == 1


@pytest.fixture
def frozen(transactional_db):
    """Begins a transaction of another process, which stands still in it: its locks last until the end of the test."""
    other = connection.copy()

    def begin(*statements):
        with other.cursor() as cursor:
            cursor.execute("BEGIN")
            for each in statements:
                cursor.execute(each)

    yield begin
    other.close()


@several_connections
@pytest.mark.parametrize("table", ["batches_line", "batches_batch", "batches_lease"])
def test_a_process_that_stands_still_in_mid_store_holds_up_its_own_lines_alone(table, frozen, create, work):
    for name in ("a", "b"):
        work.validate(create([line(name)])["id"])
    first, second = leases.acquire("drive"), leases.acquire("drive")
    for name, lease in (("a", first), ("b", second)):
        Line.objects.filter(custom_id=name).update(state=LineState.RUNNING, lease=lease)
        Batch.objects.filter(lines__custom_id=name).update(lease=lease)
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    column = "id" if table == "batches_lease" else "lease_id"
    frozen(f"SELECT * FROM {table} WHERE {column} = {first.pk} FOR UPDATE")

    assert leases.reap() == 1

    # The lease goes last of all.
    state = LineState.PENDING if table == "batches_lease" else LineState.RUNNING
    assert set(Line.objects.values_list("custom_id", "state")) == {("a", state), ("b", LineState.PENDING)}
    assert set(Lease.objects.values_list("pk", flat=True)) == {first.pk}


@several_connections
def test_what_another_has_locked_keeps_no_other_batch_from_its_end(frozen, create, work):
    ids = [create([line(name)])["id"] for name in ("a", "b", "c")]
    for batch_id in ids:
        work.validate(batch_id)
    Line.objects.update(state=LineState.SUCCEEDED)
    frozen(f"SELECT * FROM batches_batch WHERE id = '{ids[0]}' FOR UPDATE")
    closed = []
    lifecycle.close_finished(closed.append)
    assert sorted(closed) == sorted(ids[1:])
