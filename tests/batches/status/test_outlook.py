"""A batch whose forecast end lies beyond its completion window says so, until it does not any more."""

import logging
from datetime import timedelta

import pytest
from django.utils import timezone
from prometheus_client import REGISTRY

from batches import tasks
from batches.models import Batch, Pulse
from batches.status import outlook
from tests.batches.status.test_progress import make  # noqa: F401  # a fixture

OTHER = {"code": "model_on_cpu", "model": "gemma3:12b", "message": "from elsewhere"}


@pytest.fixture
def late(make, live_backend):  # noqa: F811
    """1,000 lines of 2 s are left, and the window ends in ten minutes."""
    batch = make(done=20, left=1000)
    Batch.objects.update(expires_at=timezone.now() + timedelta(minutes=10), warnings=[OTHER])
    batch.refresh_from_db()
    return batch


def told(batch):
    return [each for each in Batch.objects.get(pk=batch.pk).warnings if each["code"] == outlook.WINDOW_TOO_SHORT]


def test_it_is_told_once_in_the_log_and_where_the_batch_is_shown(late, api, caplog):
    with caplog.at_level(logging.WARNING, "batches.status.outlook"):
        outlook.watch()
        outlook.watch()
    assert len(caplog.records) == 1
    [warning] = told(late)
    assert f"POST /v1/batches/{late.pk}/extend" in warning["message"]
    shown = api.get(f"/v1/batches/{late.pk}/progress").json()["warnings"]
    assert [each["code"] for each in shown] == ["model_on_cpu", "window_too_short"]
    assert REGISTRY.get_sample_value("ollama_batch_server_batches_window_too_short") == 1


def test_a_longer_window_takes_it_back_at_once(late, api):
    outlook.watch()
    assert told(late)
    api.post(f"/v1/batches/{late.pk}/extend", {"completion_window": "2h"}, format="json")
    assert Batch.objects.get().warnings == [OTHER]
    assert REGISTRY.get_sample_value("ollama_batch_server_batches_window_too_short") == 0


def test_while_there_is_no_forecast_it_stays(late):
    outlook.watch()
    Batch.objects.update(paused_at=timezone.now())
    outlook.watch()
    assert told(late)


def test_a_batch_that_will_be_done_in_time_is_not_warned_about(late):
    Batch.objects.update(expires_at=timezone.now() + timedelta(hours=2))
    outlook.watch()
    assert not told(late)


def test_the_tick_looks_ahead_now_and_then(late):
    Pulse.objects.filter(pk="outlook").delete()
    tasks.tick()
    assert told(late)
    Batch.objects.update(warnings=[])
    Pulse.objects.filter(pk="tick").delete()
    tasks.tick()
    assert not told(late)  # not at every tick
