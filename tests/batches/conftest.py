"""What tests of batches/ have beside the fixtures of all tests."""

from typing import Any

import pytest
from django.utils import timezone

from batches.models import Backend, Pulse
from batches.models.counts import FOLDED
from tests.conftest import Work
from tests.fake_backend import FakeBackend


@pytest.fixture
def live_backend(db: None, settings: Any) -> Backend:
    """A backend whose worker has just reported, beside a control worker that ticks."""
    Pulse.stamp("ticked")
    now = timezone.now()
    listed = [{"id": settings.MODEL_NAME}]
    return Backend.objects.create(
        name="here", url="http://127.0.0.1:9", kind="ollama", listed=listed, worker_seen_at=now, seen_at=now
    )


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The messages that go out, at the broker's edge: (task, arguments)."""
    messages: list[tuple[str, ...]] = []

    def publish(self: Any, args: tuple[str, ...] = (), **options: Any) -> None:
        messages.append((self.name.rpartition(".")[2], *args))

    monkeypatch.setattr("celery.app.task.Task.apply_async", publish)
    return messages


def results(work: Work, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """custom_id -> line of the output file, and of the error file; both in input order."""
    output, errors = (work.content(batch[name]) for name in ("output_file_id", "error_file_id"))
    return {each["custom_id"]: each for each in output}, {each["custom_id"]: each for each in errors}


@pytest.fixture(autouse=True)
def _slots_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that count slots say so; to all others the requests that count them would be lines too many."""
    monkeypatch.setattr("batches.dispatch.readiness.WORTH_COUNTING", 10**9)


def folded(**fields: Any) -> dict[str, Any]:
    """Fields of a batch, with the counters under the names that they have in its own row."""
    return {FOLDED.get(name, name): value for name, value in fields.items()}


def reported(server: FakeBackend, **changes: Any) -> Backend:
    """The row of a server whose worker has just reported."""
    now = timezone.now()
    listed = [{"id": name, "created": 1, "owned_by": "library"} for name in server.models]
    row = {"url": server.url, "kind": "ollama", "listed": listed, "worker_seen_at": now, "seen_at": now}
    return Backend.objects.create(**{"name": server.url} | row | changes)
