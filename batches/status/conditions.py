"""What has to be true so that the server does its work, as `/readyz` tells a monitor every few seconds.

That the model server is away is none of these conditions: batches are accepted and wait for it, `/health` says so, and
`/metrics` has it. Each condition is asked within a time, so that a database that hangs does not hang the page.
"""

from collections.abc import Callable
from dataclasses import dataclass

from django.db import DatabaseError

from batches import hosts, registry
from batches.status import health
from common import schema
from common.bounded import Bounded
from files_api import storage, storage_id

WITHIN_S = 3.0


@dataclass(frozen=True)
class Failed:
    """A condition that does not hold. `reason` is for a person, and has no path and no secret. A warning is of what
    others make up for."""

    check: str
    reason: str
    is_warning: bool = False


class Conditions:
    """All conditions. `ask_broker` raises an error if the broker does not answer."""

    def __init__(self, ask_broker: Callable[[], object], *, within_s: float = WITHIN_S) -> None:
        checks: dict[str, Callable[[], list[Failed]]] = {
            "database": by_rows,
            "broker": lambda: by_broker(ask_broker),
            "disk": by_disk,
            "storage": by_storage,
        }
        self._checks = {name: Bounded(check, within_s=within_s) for name, check in checks.items()}

    def failed(self) -> list[Failed]:
        """The conditions that do not hold; none if the server does its work. Takes `within_s` at most."""
        asked = {name: check.begin() for name, check in self._checks.items()}
        found: list[Failed] = []
        for name, answer in asked.items():
            try:
                found += answer()
            except TimeoutError:
                found.append(Failed(name, f"The {name} does not answer in time."))
        return found


def by_rows() -> list[Failed]:
    """What the database says: of itself, of the tick, and of inference workers."""
    try:
        if reason := schema.trouble():
            return [Failed("database", reason)]
        failed = [Failed("control worker", reason) for reason in health.tick_trouble()]
        if not registry.live_backends():
            failed.append(Failed("inference worker", registry.NO_WORKER))
    except DatabaseError as error:
        return [Failed("database", schema.explain(error) or "The database does not answer.")]
    return failed


def by_broker(ask: Callable[[], object]) -> list[Failed]:
    try:
        ask()
    except Exception as error:  # noqa: BLE001  (each transport has errors of its own; a text may hold a password)
        return [Failed("broker", f"The broker does not answer ({type(error).__name__}).")]
    return []


def by_disk() -> list[Failed]:
    reason = storage.why_not_writable()
    return [Failed("disk", reason)] if reason else []


def by_storage() -> list[Failed]:
    """Whether the storage is the one of the database, here and where workers are. That a worker of another host takes
    no work is a warning while others do: an orchestrator that asks web servers must not stop them all for that."""
    try:
        own = storage_id.trouble()
        held = set(hosts.held().values()) - {own}
        is_alone = bool(held) and bool(health.tick_trouble() or not registry.live_backends())
    except DatabaseError:
        return []  # `by_rows` says so
    failed = [Failed("storage", own)] if own else []
    return failed + [Failed("storage", reason, is_warning=not is_alone) for reason in sorted(held)]
