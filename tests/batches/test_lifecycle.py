"""Every pair of statuses: allowed moves happen once and stamp; all others change nothing."""

from itertools import product

import pytest
from django.db import IntegrityError
from django.utils import timezone

from batches import leases, lifecycle
from batches.models import FINAL, Batch, Status

MOVES = {
    ("validating", "in_progress"),
    ("validating", "failed"),
    ("validating", "cancelling"),
    ("in_progress", "finalizing"),
    ("in_progress", "cancelling"),
    ("finalizing", "completed"),
    ("finalizing", "expired"),
    ("cancelling", "cancelled"),
}


@pytest.fixture
def batch(db):
    return Batch.objects.create(input_file_id="file-x", endpoint="/v1/embeddings", expires_at=timezone.now())


@pytest.mark.parametrize(("source", "target"), list(product(Status, Status)))
def test_each_pair(batch, source, target):
    Batch.objects.update(status=source)
    before = Batch.objects.values().get()

    moved = lifecycle.move(batch.pk, target) if lifecycle.SOURCES[target] else False

    after = Batch.objects.values().get()
    if (source, target) in MOVES:
        assert moved
        stamp = f"{target}_at"
        assert after[stamp] is not None
        assert after == before | {"status": target, stamp: after[stamp]}
    else:
        assert not moved
        assert after == before


def test_every_status_is_reachable_and_the_final_ones_are_ends():
    assert {target for _, target in MOVES} | {"validating"} == set(Status)
    assert set(Status) - set(lifecycle.ALLOWED) == set(FINAL)


def test_of_two_movers_one_wins(batch):
    assert lifecycle.move(batch.pk, Status.IN_PROGRESS)
    assert not lifecycle.move(batch.pk, Status.IN_PROGRESS)


def test_a_move_is_fenced_by_its_lease(batch):
    mine, other = leases.acquire("finalize"), leases.acquire("finalize")
    Batch.objects.update(status=Status.FINALIZING, lease=other)
    assert not lifecycle.move(batch.pk, Status.COMPLETED, lease=mine)
    assert lifecycle.move(batch.pk, Status.COMPLETED, lease=other)


def test_the_database_knows_the_statuses(batch):
    with pytest.raises(IntegrityError):
        Batch.objects.update(status="done")
