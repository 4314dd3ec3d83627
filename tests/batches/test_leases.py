import subprocess
import sys
from datetime import timedelta

import pytest
from django.utils import timezone

from batches import leases
from batches.models import Batch, Lease, Line, LineState
from tests.conftest import line


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
