"""The gate: what holds back all lines of a backend, and what is said of it."""

from datetime import UTC, datetime, timedelta

from django.utils import timezone

from batches.models import Backend, Hold
from batches.scheduling import gate, switch
from batches.status import health
from tests.quiet import quiet_now


def test_a_request_of_a_person_closes_the_gate_of_its_backend_while_it_lasts(live_backend, settings):
    other = Backend.objects.create(name="there", url="http://127.0.0.1:8")
    hold = Hold.objects.create(backend=live_backend, reason="person", until=timezone.now() + timedelta(seconds=30))
    assert gate.look(live_backend).reason == (
        "A person's request is at the model server; the lines go on after it, and meanwhile have 25% of the time "
        "(BATCH_SHARE=0.25)."
    )
    settings.BATCH_SHARE = 0
    assert gate.look(live_backend).reason == "A person's request is at the model server; the lines go on after it."
    assert gate.look(other).reason == ""
    # It names no end: that of a web process which was killed is over by itself.
    Hold.objects.filter(pk=hold.pk).update(until=timezone.now() - timedelta(seconds=1))
    assert gate.look(live_backend).reason == ""


def test_quiet_hours_close_the_gate_and_say_until_when(live_backend, settings):
    settings.TIME_ZONE = "Asia/Tokyo"
    end = quiet_now(settings)
    assert gate.look(live_backend).reason == (
        f"Quiet hours until {end:%Y-%m-%d %H:%M} (Asia/Tokyo) (QUIET_HOURS={settings.QUIET_HOURS.text})."
    )
    assert health.summary()["status"] == "ok"
    assert "Quiet hours" in health.summary()["reason"]
    assert gate.clock(datetime(2026, 1, 1, 20, tzinfo=UTC)) == "2026-01-02 05:00 (Asia/Tokyo)"


def test_the_gate_asks_the_database_once_or_twice_while_there_is_a_hold(
    live_backend, settings, django_assert_num_queries
):
    quiet_now(settings)
    with django_assert_num_queries(1):
        assert "Quiet hours" in gate.look(live_backend).reason
    Hold.objects.create(backend=live_backend, reason="person", until=timezone.now() + timedelta(seconds=30))
    with django_assert_num_queries(2):
        gate.look(live_backend)
    switch.pause_all()
    with django_assert_num_queries(2):
        assert "A person paused" in gate.look(live_backend).reason


def test_health_waits_for_what_is_wrong_and_tells_of_the_gate_too(live_backend):
    live_backend.pause("The backend is away.")
    switch.pause_all()
    told = health.summary()
    assert told["status"] == "waiting"
    assert told["reason"].startswith("The backend is away. A person paused all batches")
