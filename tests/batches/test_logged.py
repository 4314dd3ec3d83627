"""What the log tells of a batch that runs and ends: how far it is, and why lines failed, summed up."""

import logging
import re

import pytest

from batches import forecasts, lifecycle, tasks
from batches.models import Batch
from tests.conftest import line
from tests.fake_backend import Action


@pytest.fixture
def told(caplog, monkeypatch):
    """The messages that contain a text."""
    monkeypatch.setattr(forecasts, "_told", {})
    caplog.set_level(logging.INFO)
    return lambda text: [each for each in caplog.messages if text in each]


def test_failed_lines_are_summed_up_by_reason(create, work, backend, told, sent):
    names = [f"secret prompt {n}" for n in range(8)]
    for name in names[:3]:
        backend.on(name, Action(status=400))
    backend.on(names[3], Action(status=413))
    batch = create([line(name) for name in names])["id"]
    work.validate(batch)

    work.drive()

    assert told("lines failed") == ["4 lines failed: 3 × http_400, 1 × http_413"]
    assert told("loaded ") == []  # it was loaded already
    lifecycle.close_finished(lambda _: None)
    tasks.finalize(batch)
    assert told("answered") == [f"{batch}: 4 of 8 lines answered; 3 × http_400, 1 × http_413"]
    assert told("secret") == []


def test_a_batch_without_a_failure_is_told_in_one_line(create, work, backend, told, sent):
    batch = create([line("a"), line("b")])["id"]
    work.validate(batch)
    work.drive()
    tasks.finalize(batch)
    tasks.finalize(batch)  # a message may come twice
    assert set(told("answered")) == {f"{batch}: 2 of 2 lines answered"}
    assert told("lines failed") == []


def test_a_load_is_told_with_its_time(create, work, backend, told):
    backend.on_load.append(Action(delay_s=0.2))
    work.run(create([line("a")])["id"])
    [message] = told("loaded ")
    assert re.fullmatch(r"loaded gemma3:12b in \d+\.\d s", message)


def test_how_far_a_batch_is_is_told_every_few_minutes(create, work, told, monkeypatch):
    batch = create([line("a"), line("b"), line("c")])["id"]
    work.validate(batch)
    forecasts.review()
    assert told("lines finished") == []  # none has
    Batch.objects.filter(pk=batch).update(folded_completed=1, folded_failed=1)
    for _ in range(3):
        forecasts.review()
    [message] = told("lines finished")
    assert message.startswith(f"{batch}: 2 of 3 lines finished, 1 of them failed, speed not known yet, ends: ")

    Batch.objects.filter(pk=batch).update(folded_completed=2)
    forecasts.review()
    assert len(told("lines finished")) == 1  # the last line was told a moment ago
    monkeypatch.setattr(forecasts, "TELL_EVERY_S", 0.0)
    forecasts.review()
    forecasts.review()
    assert len(told("lines finished")) == 2  # and nothing has changed since the second
