"""What goes wrong: a table of scenarios, each a small function that hurts a running server. Submitting work is part of
it; when the function returns, the fault is over and the server has 60 s to put everything in order."""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import invariants
from tests.faults.world import Postgres, World
from tests.stack import ROOT


@dataclass(frozen=True)
class Scenario:
    """`act` is run in a world with these failpoints and this environment."""

    name: str
    act: Callable[[World], None]
    failpoints: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    quick: bool = False  # part of `script/test`
    only_on: str = ""  # the database, where the fault is its own


@dataclass
class Outcome:
    """By invariant, what is wrong; empty if all held. `error` is set if the scenario itself did not get through."""

    wrong: dict[str, str] = field(default_factory=dict)
    error: str = ""
    took_s: float = 0.0
    log: str = ""

    @property
    def is_good(self) -> bool:
        return not self.wrong and not self.error

    def __str__(self) -> str:
        problems = [f"{name}: {problem}" for name, problem in self.wrong.items()]
        return "; ".join([*filter(None, [self.error]), *problems]) or "all held"


def run(scenario: Scenario, postgres: Postgres | None, *, root: Path = ROOT) -> Outcome:
    """Play a scenario in a world of its own and check every invariant. `root` is the source tree that is run."""
    outcome = Outcome()
    started = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="fault-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        world = World(directory, postgres=postgres, failpoints=scenario.failpoints, root=root, **scenario.environment)
        try:
            stack.enter_context(world)
            scenario.act(world)
            world.fault_ended_at = time.monotonic()
            for name, invariant in invariants.ALL.items():
                if problem := invariant(world):
                    outcome.wrong[name] = problem
        except Exception as error:  # noqa: BLE001  (a scenario that breaks is a row of the table, not its end)
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.log = world.server.log.read_text() if world.server.log.exists() else ""
    outcome.took_s = time.monotonic() - started
    return outcome


# kill -9


def _killed_at_failpoints(world: World) -> None:
    world.submit(20)
    world.await_kills()


def _web_killed_at_failpoints(world: World) -> None:
    with world.outage():
        world.submit(5)
        world.await_kills()


# A process that is declared dead and comes back


def _zombie_writes(world: World) -> None:
    """A worker stops with an answer in hand, another finishes the batch, and the first one wakes."""
    world.start_worker("inference")
    batch = world.submit(8)
    stopped = world.await_failpoint("after_answer")
    world.let_leases_expire()
    world.await_lines(8, batch)
    world.wake(stopped)
    time.sleep(2.0)


def _zombie_finalizes(world: World) -> None:
    """A finalizer stops with its file written, another one begins, and the first one wakes while that is at it."""
    world.hold_back("before_finalize_write")
    world.start_worker("control")
    batch = world.submit(8)
    first = world.await_failpoint("after_result_file")
    world.arm("before_finalize_write")
    world.let_leases_expire()
    second = world.await_failpoint("before_finalize_write")
    world.wake(first)
    time.sleep(2.0)
    status = world.batch(batch)["status"]
    world.wake(second)
    assert status == "finalizing", f"the finalizer that was declared dead moved the batch to {status}"


INFERENCE_STEPS = (
    "after_claim:kill9@2,before_send:kill9_parent@3,after_answer:kill9@2,mid_store:kill9@3,after_store:kill9@4"
)
CONTROL_STEPS = (
    "mid_validation:kill9,before_finalize_write:kill9_parent,after_result_file:kill9,after_final_move:kill9,"
    "mid_tidy:kill9"
)
WEB_STEPS = "after_upload_received:kill9,after_upload_stored:kill9,after_create_committed:kill9"

ALL = [
    Scenario("inference worker, kill -9 at every step", _killed_at_failpoints, INFERENCE_STEPS, quick=True),
    Scenario("control worker, kill -9 at every step", _killed_at_failpoints, CONTROL_STEPS, quick=True),
    Scenario("web, kill -9 at every step", _web_killed_at_failpoints, WEB_STEPS, quick=True),
    Scenario("zombie writes a line", _zombie_writes, "after_answer:stop@3", quick=True),
    Scenario("zombie finalizes", _zombie_finalizes, "after_result_file:stop,before_finalize_write:stop", quick=True),
]
BY_NAME = {scenario.name: scenario for scenario in ALL}
