"""The scenarios that a change breaks first, those of locks and fences on Postgres too. `--faults` plays all of them."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from tests.conftest import needs
from tests.faults import scenarios
from tests.faults.scenarios import Outcome, Scenario
from tests.faults.world import Postgres

# They mostly wait: for a worker to come back, for a tick.
AT_ONCE = 3
# Other tests take the processor beside them. A read that waits for a lock or a dead process still takes longer than
# this; `--faults`, which has the machine alone, holds reads to READ_S.
READS_WITHIN_S = 5.0
QUICK = [(scenario, database) for scenario in scenarios.ALL for database in scenario.quick]


@pytest.fixture(scope="module")
def outcomes(processes: None) -> Iterator[dict[tuple[str, str], Future[Outcome]]]:
    """All of them are played beside each other, from the first test on."""
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres()) if Postgres.is_installed() else None
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        played = {}
        play = partial(scenarios.run, reads_within_s=READS_WITHIN_S)
        for scenario, database in QUICK:
            if database == "sqlite":
                played[scenario.name, database] = pool.submit(play, scenario, None)
            elif postgres is not None:
                played[scenario.name, database] = pool.submit(play, scenario, postgres)
        yield played
        pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(900)  # its scenario waits its turn among all others
@pytest.mark.parametrize(("scenario", "database"), QUICK, ids=lambda each: getattr(each, "name", each))
def test_scenario(scenario: Scenario, database: str, outcomes: dict[tuple[str, str], Future[Outcome]]) -> None:
    if database == "postgres":
        needs(Postgres.is_installed(), "the Postgres wheel")
    outcome = outcomes[scenario.name, database].result()
    assert outcome.is_good, f"{outcome}\n{outcome.log[-5000:]}"
