"""The zombie scenarios see what they are there for: without the guard, in a copy of the source, they fail."""

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import scenarios
from tests.faults.scenarios import Outcome
from tests.stack import ROOT


@dataclass(frozen=True)
class Mutation:
    """In the file at `path` each key of `changes` becomes its value; then the scenario has to end with `seen`."""

    name: str
    path: str
    changes: dict[str, str]
    scenario: str
    seen: str

    def play(self, root: Path) -> Outcome:
        for name in ("batches", "batchserver", "common", "files_api"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "manage.py", root)
        source = (root / self.path).read_text()
        for guarded, unguarded in self.changes.items():
            assert source.count(guarded) == 1, "the guard looks different now: mutate it as it is"
            source = source.replace(guarded, unguarded)
        (root / self.path).write_text(source)
        return scenarios.run(scenarios.BY_NAME[self.scenario], None, root=root)


MUTATIONS = [
    Mutation(
        "no lease check in the write",
        "batches/dispatch/claims.py",
        {
            "WHERE id = %s AND lease_id = %s AND state = %s": "WHERE id = %s AND %s IS NOT NULL AND %s IS NOT NULL",
            # The key of the responses would refuse a second one for the same line.
            "Response.store(self._responses)": "Response.objects.bulk_create("
            "[Response(line_id=pk, body=body) for pk, body in self._responses], ignore_conflicts=True)",
        },
        "zombie writes a line",
        "again: written again",
    ),
    Mutation(
        "no fence in the final move",
        "batches/results.py",
        {"self.batch.pk, final, lease=self.keeper.lease, output_file": "self.batch.pk, final, output_file"},
        "zombie finalizes",
        "declared dead moved the batch to completed",
    ),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, processes: None) -> Iterator[dict[str, Future[Outcome]]]:
    """Played beside each other: they mostly wait."""
    with ThreadPoolExecutor() as pool:
        yield {each.name: pool.submit(each.play, tmp_path_factory.mktemp("mutated") / "source") for each in MUTATIONS}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_scenario_fails_without_the_guard(mutation: Mutation, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[mutation.name].result()
    assert mutation.seen in str(outcome), f"{outcome}\n{outcome.log[-5000:]}"
