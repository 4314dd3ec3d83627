import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import ROOT, eventually

TINY = ["overhead", "--scale", "0.02", "--rounds", "1", "--latency-ms", "1"]


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not tmp_path, which is too long to hold the broker's socket.
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def start(data_dir: Path, arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "manage.py", "benchmark", *arguments],
        cwd=ROOT,
        env=os.environ | {"DATA_DIR": str(data_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(data_dir: Path) -> list[str]:
    """The commands of whatever runs with this state directory in its environment."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(data_dir) in (process / "environ").read_text(errors="replace"):
                commands.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it ended meanwhile
    return commands


def test_it_prints_a_table_of_positive_figures_and_leaves_nothing_behind(data_dir: Path) -> None:
    benchmark = start(data_dir, TINY)
    printed, complaints = benchmark.communicate(timeout=120)
    assert benchmark.returncode == 0, complaints
    table = [re.split(r"  +", line.strip()) for line in printed.splitlines() if "  " in line]
    columns, _, figures = table
    assert columns == [
        "latency ms",
        "lines",
        "bare ms/line",
        "batch ms/line",
        "overhead ms/line",
        "spread",
        "batch/bare",
        "wall ms/line",
    ]
    row = dict(zip(columns, figures, strict=True))
    assert (row["latency ms"], row["lines"]) == ("1", "12")
    assert all(float(row[column]) > 0 for column in ("bare ms/line", "batch ms/line", "batch/bare", "wall ms/line"))
    assert "Target: an overhead under 5 ms a line." in printed
    assert "Machine: " in printed
    assert "Versions: Python " in printed
    assert list(data_dir.glob("benchmark-*")) == []
    assert processes_of(data_dir) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_leaves_nothing_behind_when_it_is_interrupted(data_dir: Path, number: signal.Signals) -> None:
    benchmark = start(data_dir, TINY)
    eventually(lambda: list(data_dir.glob("benchmark-*/data/broker/valkey.sock")), what="a broker")
    benchmark.send_signal(number)
    _, complaints = benchmark.communicate(timeout=60)
    assert benchmark.returncode == 130
    assert "Interrupted" in complaints
    assert list(data_dir.glob("benchmark-*")) == []
    assert processes_of(data_dir) == []


def test_it_names_the_scenarios_when_it_is_asked_for_another(data_dir: Path) -> None:
    benchmark = start(data_dir, ["throughput"])
    _, complaints = benchmark.communicate(timeout=60)
    assert benchmark.returncode == 1
    assert "There is no scenario 'throughput'; there are overhead, intake." in complaints
