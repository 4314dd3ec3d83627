"""The zombie scenarios see what they are there for: without the guard, in a copy of the source, they fail."""

import shutil
from pathlib import Path

import pytest

from tests.faults import scenarios
from tests.stack import ROOT

MUTATIONS = [
    pytest.param(
        "zombie writes a line",
        "batches/claims.py",
        "Line.objects.all().held_by(lease).filter(pk=line.pk).update(lease=None, **values)",
        "Line.objects.filter(pk=line.pk).update(lease=None, **values)",
        "again: written again",
        id="no lease check in the write",
    ),
    pytest.param(
        "zombie finalizes",
        "batches/output.py",
        "self.batch.pk, final, lease=self.lease, output_file",
        "self.batch.pk, final, output_file",
        "declared dead moved the batch to completed",
        id="no fence in the final move",
    ),
]


@pytest.mark.parametrize(("scenario", "path", "guarded", "unguarded", "seen"), MUTATIONS)
def test_the_scenario_fails_without_the_guard(
    tmp_path: Path, scenario: str, path: str, guarded: str, unguarded: str, seen: str
) -> None:
    root = tmp_path / "source"
    for name in ("batches", "batchserver", "files_api"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "manage.py", root)
    source = (root / path).read_text()
    assert source.count(guarded) == 1, "the guard looks different now: mutate it as it is"
    (root / path).write_text(source.replace(guarded, unguarded))

    outcome = scenarios.run(scenarios.BY_NAME[scenario], None, root=root)

    assert seen in str(outcome), f"{outcome}\n{outcome.log[-5000:]}"
