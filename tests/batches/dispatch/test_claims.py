"""Who may claim a line and write its answer."""

import logging
import re
import threading
import time
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from batches import leases, lifecycle, registry
from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Verdict
from batches.dispatch import claims
from batches.dispatch.lanes import Lane
from batches.models import Batch, Lease, Line, LineState, Response
from batches.scheduling import turns
from tests.conftest import line, several_connections
from tests.fake_backend import Action


def turn():
    return turns.next_turn(registry.own_backend(), None)


@pytest.mark.slow
def test_a_zombie_cannot_write(create, work, backend):
    """Its lease is taken away while the model answers; the line was given to another, who answers first."""
    backend.on("a", Action(delay_s=1.2))
    batch = create([line("a")])
    work.validate(batch["id"])
    winner = []

    def should_stop():
        if backend.arrived() and not winner:
            Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
            leases.reap()
            winner.append(leases.acquire("drive"))
            assert [each.custom_id for each in claims.claim(winner[0], turn(), 5)] == ["a"]
        return False

    work.drive(should_stop=should_stop)

    row = Line.objects.get()
    assert (row.state, row.lease_id) == (LineState.RUNNING, winner[0].pk)
    assert not Response.objects.exists()
    assert Batch.objects.get().completed == 0


def test_a_dead_lease_claims_nothing(create, work):
    batch = create([line("a")])
    work.validate(batch["id"])
    lease = leases.acquire("drive")
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert claims.claim(lease, turn(), 5) == []
    assert Line.objects.get().state == LineState.PENDING


def test_a_line_that_was_lost_with_its_worker_often_comes_last_of_all(create, work, backend):
    first, second = create([line("a"), line("b")])["id"], create([line("c")])["id"]
    for batch in (first, second):
        work.validate(batch)
    Line.objects.filter(custom_id="a").update(lost_claims=3)
    work.in_flight = 1
    work.drive()
    assert backend.arrived() == ["b", "c", "a"]


def test_two_claims_share_no_line(create, work):
    batch = create([line(f"id-{n}") for n in range(5)])
    work.validate(batch["id"])
    first, second = (claims.claim(leases.acquire("drive"), turn(), 3) for _ in range(2))
    assert [each.number for each in first + second] == [1, 2, 3, 4, 5]


@several_connections
def test_of_drives_that_claim_for_lanes_at_one_moment_none_gets_nothing(create, work):
    """They choose the same lines. Who comes second finds them locked, and others free."""
    batch = create([line(f"id-{n}") for n in range(12)])
    work.validate(batch["id"])
    now_its_turn = turn()
    now_its_turn.is_stamped = True  # or one claim waits for the other's stamp
    shares = []

    def claim():
        lease, lanes = leases.acquire("drive"), [Lane() for _ in range(4)]
        shares.append(claims.claim_for_lanes(lease, now_its_turn, lanes, 1)[0])

    def claim_beside():
        try:
            claim()
        finally:
            connection.close()

    with transaction.atomic():
        claim()
        thread = threading.Thread(target=claim_beside)
        thread.start()
        thread.join()
    first, second = shares
    assert [len(share) for share in first] == [len(share) for share in second] == [1, 1, 1, 1]
    numbers = [each.number for share in [*first, *second] for each in share]
    assert len(set(numbers)) == 8
    assert Line.objects.filter(state=LineState.RUNNING).count() == 8


def answered(lines):
    return [Call(each, "", {}, 1.0, reply=Reply(Verdict.ANSWERED, 200, "{}")) for each in lines]


def test_answers_that_come_after_a_cancel_are_dropped_without_a_warning(create, work, caplog):
    batch = create([line("a"), line("b"), line("c")])
    work.validate(batch["id"])
    lease = leases.acquire("drive")
    lines = claims.claim(lease, turn(), 3)
    lifecycle.cancel(batch["id"])
    work.finalize(batch["id"])
    noted = []

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        claims.store(lease, answered(lines), note=lambda call, state: noted.append(call))

    assert caplog.messages == []
    assert noted == []
    assert set(Line.objects.values_list("state", flat=True)) == {LineState.CANCELLED}


def test_answers_that_come_after_the_lease_was_lost_are_told_once(create, work, caplog):
    batch = create([line("a"), line("b"), line("c")])
    work.validate(batch["id"])
    lease = leases.acquire("drive")
    lines = claims.claim(lease, turn(), 3)
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    leases.reap()

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        claims.store(lease, answered(lines))

    assert caplog.messages == [f"3 results came too late and were dropped, the first of {batch['id']} line 1"]


def test_of_a_group_only_the_lines_that_are_still_claimed_are_stored(create, work, caplog):
    """One was declared lost and is another drive's, one was answered by that drive already."""
    batch = create([line(each) for each in "abcd"])
    work.validate(batch["id"])
    lease, other = leases.acquire("drive"), leases.acquire("drive")
    lines = claims.claim(lease, turn(), 4)
    Line.objects.filter(custom_id__in="bc").update(lease=other)
    claims.store(other, answered(Line.objects.filter(custom_id="c").select_related("batch", "part")))

    noted = []
    with caplog.at_level(logging.WARNING):
        claims.store(lease, answered(lines), note=lambda call, state: noted.append(call.subject.custom_id))

    assert noted == ["a", "d"]
    states = dict(Line.objects.values_list("custom_id", "state"))
    assert states == dict.fromkeys("acd", LineState.SUCCEEDED) | {"b": LineState.RUNNING}
    assert Line.objects.get(custom_id="b").lease_id == other.pk
    assert Batch.objects.get().completed == 3
    assert set(Response.objects.values_list("line__custom_id", flat=True)) == set("acd")
    assert f"2 results came too late and were dropped, the first of {batch['id']} line 2" in caplog.messages
    assert len(set(Line.objects.filter(place__gt=0).values_list("place", flat=True))) == 3


def test_each_line_of_a_group_is_finished_when_its_answer_came(create, work):
    """And not when the group was stored, or a forecast would take the lines of a group for answered in no time."""
    batch = create([line(each) for each in "abc"])
    work.validate(batch["id"])
    lease = leases.acquire("drive")
    calls = answered(claims.claim(lease, turn(), 3))
    for number, call in enumerate(calls):
        call.finished = time.monotonic() - 30 + 10 * number
    claims.store(lease, calls)
    stored_at = timezone.now()
    ages_s = [(stored_at - each.finished_at).total_seconds() for each in Line.objects.order_by("number")]
    assert ages_s == [pytest.approx(age_s, abs=5) for age_s in (30, 20, 10)]


def test_an_answer_is_fsynced_before_anybody_is_told_of_it(create, work, backend):
    """On SQLite, where a drive's own commits are not."""
    if connection.vendor != "sqlite":
        return  # it fsyncs each commit
    batch = create([line("a"), line("b")])["id"]
    work.validate(batch)
    levels, stored_at = ["FULL"], []

    def watch(execute, sql, parameters, many, context):
        if found := re.match(r"PRAGMA synchronous=(\w+)", sql):
            levels.append({"1": "NORMAL", "2": "FULL"}.get(found[1], found[1]))
        elif sql.startswith('INSERT INTO "batches_response"'):
            stored_at.append(levels[-1])
        return execute(sql, parameters, many, context)

    with connection.execute_wrapper(watch):
        work.drive()
    assert set(stored_at) == {"FULL"}
    assert "NORMAL" in levels
    assert levels[-1] == "FULL"
