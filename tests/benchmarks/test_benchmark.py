"""Every scenario of `manage.py benchmark` for real, at a tiny scale: that it measures, not what."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import responses
from django.core.management import CommandError, call_command

from batchserver import embedded_backend
from batchserver.supervisor import Child
from benchmarks import networks, report, workbench
from benchmarks.effort import Effort
from benchmarks.networks import NotHere
from benchmarks.processes import all_running
from benchmarks.workbench import fixed_latency
from client.api import Server
from tests.stack import ROOT, eventually

TINY = ["--scale", "0.02", "--rounds", "1"]
needs_embedded_model = pytest.mark.skipif(not embedded_backend.is_installed(), reason="needs the embedded model")

Row = dict[str, str]
# The options of the command at their defaults.
USUAL = {name: value for name, value in vars(Effort()).items() if name != "tell"}


@pytest.fixture
def data_dir(processes: None) -> Iterator[Path]:
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


def measure(data_dir: Path, *arguments: str) -> tuple[list[list[Row]], str]:
    """The tables that were printed, a dict for each row, and all that was; nothing is left behind."""
    benchmark = start(data_dir, [*TINY, *arguments])
    printed, complaints = benchmark.communicate(timeout=200)
    assert benchmark.returncode == 0, complaints
    assert_nothing_is_left(data_dir)
    return tables(printed), printed


def assert_nothing_is_left(data_dir: Path) -> None:
    assert list(data_dir.glob("benchmark-*")) == []
    assert processes_of(data_dir) == []


def tables(printed: str) -> list[list[Row]]:
    lines = [re.split(r"  +", line.strip()) for line in printed.splitlines()]
    found = []
    for number, cells in enumerate(lines):
        if set("".join(cells)) == {"-"}:
            rows = []
            for row in lines[number + 1 :]:
                if row == [""]:
                    break
                rows.append(dict(zip(lines[number - 1], row, strict=True)))
            found.append(rows)
    return found


def number(text: str) -> float:
    return float(text.replace(",", ""))


def are_positive(row: Row, *columns: str) -> bool:
    return all(number(row[column]) > 0 for column in columns)


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


def test_overhead(data_dir: Path) -> None:
    (times, cpu), printed = measure(data_dir, "overhead", "--latency-ms", "1", "100")
    assert [(row["latency ms"], row["lines"]) for row in times] == [("1", "12"), ("100", "4")]
    for row in times:
        assert number(row["bare ms/line"]) > number(row["latency ms"])
        assert number(row["batch ms/line"]) >= number(row["latency ms"])
        assert are_positive(row, "bare gap ms", "batch gap ms", "wall ms/line", "batch/bare")
    assert [row["latency ms"] for row in cpu] == ["1", "100"]
    assert "Target: batch/bare at most 1.00 at 100 ms." in printed
    assert "Target: at most 1 ms of CPU a line at 1 ms." in printed
    assert "Machine: " in printed
    assert "Versions: Python " in printed


def test_throughput(data_dir: Path) -> None:
    (at_2_ms, at_20_ms), _ = measure(data_dir, "throughput", "--in-flight", "2")
    for latency_ms, rows in ((2, at_2_ms), (20, at_20_ms)):
        [row] = rows
        assert row[f"in flight, {latency_ms} ms"] == "2"
        for client in ("requests", "aiohttp", "httpx", "sockets", "batch"):
            assert 0 < number(row[f"{client} lines/s"]) <= 2 / latency_ms * 1000


def test_a_model_server_of_yours_with_several_slots(data_dir: Path) -> None:
    with fixed_latency() as server:
        yours = ["--backend-url", server.url, "--model", server.models[0], "--parallel", "4", "--in-flight", "1", "4"]
        (speeds, prompts, tokens, _), _ = measure(data_dir, "throughput", "prefixes", "money", *yours)
    assert [(row["in flight"], row["lines"]) for row in speeds] == [("1", "4"), ("4", "4")]
    for row in speeds:
        assert are_positive(row, "requests lines/s", "aiohttp lines/s", "httpx lines/s", "batch lines/s", "batch/best")
    assert [(row["slots"], row["bare at once"]) for row in prompts] == [("-", "1"), ("-", "4")]
    assert [(row["by"], row["at once"]) for row in tokens] == [("bare", "1"), ("bare", "4"), ("batch", "-")]


def test_the_batch_server_is_told_of_slots_by_parallel_alone() -> None:
    assert Effort.chosen(USUAL | {"parallel": 4}, print).told == {"BACKEND_PARALLEL": "4"}
    assert Effort.chosen(USUAL, print).told == {}


@pytest.mark.skipif(os.geteuid() != 0 or not find_spec("pgserver"), reason="needs root, for network namespaces")
def test_machines(data_dir: Path) -> None:
    networks = set(Path("/run/netns").glob("batch-*"))  # those of a run that was killed stay
    [[row]], printed = measure(data_dir, "machines", "--workers", "2")
    assert (row["workers"], row["lines"], row["ratio"]) == ("2", "16", "1.00")
    assert are_positive(row, "lines/s", "WAL bytes/line", "Postgres CPU ms/line", "transactions/line", "connections")
    assert "Target: 2 workers at least 0.9 times as fast each as one alone" in printed
    assert set(Path("/run/netns").glob("batch-*")) == networks


def test_a_scenario_that_cannot_be_measured_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NotHere, match="which need root and `ip`"), networks.machines(1):
        pass


def test_the_report_keeps_sections_that_are_no_scenarios(tmp_path: Path, settings: Any, processes: None) -> None:
    settings.BASE_DIR = tmp_path
    (tmp_path / "docs").mkdir()
    page = tmp_path / report.PATH
    page.write_text(f"{report.INTRODUCTION}\n## money\n\nold\n\n## card\n\nby hand\n")
    report.write("money", "new", ["overhead", "money"])
    report.write("overhead", "newer", ["overhead", "money"])
    assert re.findall(r"^## (\S+)\n\n(\S.*)", page.read_text(), re.M) == [
        ("overhead", "newer"),
        ("money", "new"),
        ("card", "by hand"),
    ]


def test_idle(data_dir: Path) -> None:
    [rows], printed = measure(data_dir, "idle")
    parts = ["web", "control worker", "inference worker", "broker", "supervisor", "all"]
    assert sorted(row["part"] for row in rows) == sorted(parts)
    for row in rows:
        assert number(row["MB"]) > 0
        assert number(row["idle CPU %"]) >= 0
    # A drive looks around; in two seconds that is some ticks of 10 ms.
    assert sum(number(row["CPU % at 1 s a call"]) for row in rows) > 0
    assert printed.count("Target: ") == 3


@needs_embedded_model
def test_prefixes(data_dir: Path) -> None:
    [rows], printed = measure(data_dir, "prefixes", "--slots", "4")
    servers = [(row["slots"], row["RAM cache"], row["bare at once"]) for row in rows]
    assert servers == [("4", "0", "4"), ("4", "8192", "4")]
    for row in rows:
        assert are_positive(row, "file order read", "sorted read", "batch read", "file order s", "sorted s", "batch s")
        assert number(row["lines"]) == 8
    assert "Target: at least 3 times as fast as the file's order, 4 slots." in printed
    assert "Target: best/batch at least 0.95 everywhere." in printed


@needs_embedded_model
def test_models(data_dir: Path) -> None:
    [rows], printed = measure(data_dir, "models")
    assert [row["model server"] for row in rows] == ["fixed", "llama.cpp"]
    for row in rows:
        assert row["bare swaps"] == row["lines"] == "6"
        assert 3 <= number(row["batch swaps"]) <= 6
        assert are_positive(row, "bare s", "batch s")
    assert "Target: a swap for each of the 3 models." in printed


def test_intake(data_dir: Path) -> None:
    (files, processes), _ = measure(data_dir, "intake", "--scale", "0.0004")
    assert [(row["file"], row["lines"]) for row in files] == [("large lines", "20"), ("random ids", "400")]
    assert all(are_positive(row, "lines/s") for row in files)
    names = {"large lines, web, main process", "random ids, control worker, child 1"}
    assert names <= {row["process"] for row in processes}
    assert all(are_positive(row, "peak MB") for row in processes)


def test_scale(data_dir: Path) -> None:
    (times, cpu, memory), _ = measure(data_dir, "scale", "--most-lines", "10000")
    assert [row["lines"] for row in times] == [row["lines"] for row in cpu] == ["20", "200"]
    for row in times:
        assert are_positive(row, "intake µs/line", "run µs/line", "finalize µs/line", "tidy µs/line", "cost")
    assert times[-1]["cost"] == cpu[-1]["cost"] == "1.00"
    assert all(are_positive(row, "inference worker CPU µs/line", "bytes/line") for row in cpu)
    assert all(are_positive(row, "web peak MB", "inference worker peak MB") for row in memory)


def test_disk(data_dir: Path) -> None:
    [rows], printed = measure(data_dir, "disk", "--scale", "0.002")
    assert [row["batch"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert are_positive(row, "input MB", "results MB", "database MB", "in use bytes/line")
        assert number(row["in use MB"]) <= number(row["database MB"])
    assert "Target: another batch adds at most 0.5 of what the first took." in printed


def test_drives(data_dir: Path) -> None:
    [rows], printed = measure(data_dir, "drives")
    assert [row["SQLite drives"] for row in rows] == ["8", "32"]
    assert all(are_positive(row, "one batch lines/s", "own batches lines/s", "ratio") for row in rows)
    assert "Target: drives on one batch store at least 0.9 of what they store on a batch each." in printed


@pytest.mark.usefixtures("processes")
def test_drives_that_die_end_the_measurement(tmp_path: Path) -> None:
    """What they stored was waited for without end."""
    command = [sys.executable, "-m", "benchmarks.drives_at_work", "0.2", "1", "[[2, 1]]"]
    ours = {"DATA_DIR": str(tmp_path), "DATABASE_URL": "", "ENV_FILE": os.devnull, "FAILPOINTS": "after_claim:kill9@1"}
    ours["DJANGO_SETTINGS_MODULE"] = "batchserver.settings"
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ours, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.endswith("A drive died.\n")


ENDS_WITH_THE_OTHER = """
import pathlib, signal, sys, time
own, other = map(pathlib.Path, sys.argv[1:])
def stop(number, frame):
    own.write_text(own.read_text() + "stop ")
    while "stop" not in other.read_text():
        time.sleep(0.01)
    time.sleep(0.2)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
own.write_text("up ")
signal.pause()
"""


@pytest.mark.usefixtures("processes")
def test_processes_are_stopped_together_and_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is told twice kills its workers."""
    monkeypatch.setattr("benchmarks.processes.STOP_S", 20.0)
    one, two = tmp_path / "one", tmp_path / "two"
    command = [sys.executable, "-c", ENDS_WITH_THE_OTHER]
    children = [Child("child", [*command, *map(str, pair)]) for pair in ((one, two), (two, one))]
    with all_running(children):
        eventually(lambda: all(each.exists() and "up" in each.read_text() for each in (one, two)))
    assert [child.process and child.process.returncode for child in children] == [0, 0]
    assert [each.read_text() for each in (one, two)] == ["up stop ", "up stop "]


def test_a_batch_that_stands_still_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "STANDS_STILL_S", 0.05)
    counts = [{"completed": 1, "failed": 0, "total": 3}, {"completed": 2, "failed": 0, "total": 3}]
    with responses.RequestsMock() as played:
        for each in counts:
            told = {"id": "batch_1", "status": "in_progress", "request_counts": each}
            played.get("http://box/v1/batches/batch_1", json=told)
        played.get("http://box/health", json={"service": "ollama-batch-server", "reason": "The disk is full."})
        with pytest.raises(CommandError, match=r"stands still.*The disk is full"):
            workbench.await_end(Server("http://box"), "batch_1", ("completed",), lambda: None)


def test_load(data_dir: Path) -> None:
    (answers, [batch]), printed = measure(data_dir, "load", "--load-s", "6", "--load-clients", "10")
    assert {row["SQLite"] for row in answers} >= {"poll", "list"}
    assert all(are_positive(row, "requests", "p50 s", "p99 s", "max s") or number(row["max s"]) < 1 for row in answers)
    assert are_positive(batch, "lines/s alone", "lines/s beside the clients", "share")
    assert "no 5xx, no broken connection" in printed
    assert ": no fault, p99 " in printed


def test_latency(data_dir: Path) -> None:
    [rows], printed = measure(data_dir, "latency")
    assert [row["GET"] for row in rows] == ["batch", "batches", "health"]
    for row in rows:
        assert 0 < number(row["idle p50 ms"]) <= number(row["idle p99 ms"])
        assert 0 < number(row["busy p50 ms"]) <= number(row["busy p99 ms"])
    [speed] = re.findall(r"The batch did (\S+) lines/s meanwhile\.", printed)
    assert number(speed) > 0


@needs_embedded_model
def test_person(data_dir: Path) -> None:
    [[row]], printed = measure(data_dir, "person")
    assert are_positive(row, "line s", "bare s", "idle p50 s", "busy p50 s", "busy/idle p50")
    assert number(row["busy p50 s"]) <= number(row["busy max s"])
    assert "Target: the first byte within one line and 0.5 s more than alone." in printed


def test_pages(data_dir: Path) -> None:
    ([first, *others],), printed = measure(data_dir, "pages")
    assert first["page"] == "first page"
    assert all(are_positive(row, "first ms", "ms", "queries") for row in [first, *others])
    assert "Target: each page in less than 300 ms." in printed


@needs_embedded_model
def test_money_has_no_price_of_its_own(data_dir: Path) -> None:
    (speeds, worth), printed = measure(data_dir, "money")
    assert [(row["by"], row["at once"]) for row in speeds] == [("bare", "1"), ("batch", "-")]
    assert all(are_positive(row, "input tokens", "output tokens", "output tokens/s") for row in speeds)
    assert [row["of the batch"] for row in worth] == ["input tokens in an hour", "output tokens in an hour"]
    assert "No price: give --price-in and --price-out. No energy: " in printed


@pytest.mark.parametrize(
    ("scenario", "number"),
    [("overhead", signal.SIGINT), pytest.param("prefixes", signal.SIGTERM, marks=needs_embedded_model)],
)
def test_it_leaves_nothing_behind_when_it_is_interrupted(data_dir: Path, scenario: str, number: signal.Signals) -> None:
    benchmark = start(data_dir, [scenario, *TINY])
    eventually(lambda: list(data_dir.glob("benchmark-*/data/broker/valkey.sock")), what="a broker")
    benchmark.send_signal(number)
    _, complaints = benchmark.communicate(timeout=60)
    assert benchmark.returncode == 130
    assert "Interrupted" in complaints
    assert_nothing_is_left(data_dir)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["speed"], "There is no scenario 'speed'; there are overhead, throughput, "),
        (["overhead", "--scale", "0"], "--scale has to be above 0"),
        (["money", "--price-in", "1"], "--price-in and --price-out belong together"),
        (["money", "--parallel", "0"], "--parallel has to be 1 or more"),
        (["prefixes", "--slots", "4", "0"], "--slots has to be 1 or more"),
        (["throughput", "--run-batch", "vllm run-batch"], "give --backend-url too"),
        (["money", "--model", "gemma3:12b"], "--backend-url and --model belong together"),
    ],
)
def test_it_says_what_is_wrong_with_its_arguments(arguments: list[str], complaint: str) -> None:
    with pytest.raises(CommandError, match=f"^.*{re.escape(complaint)}"):
        call_command("benchmark", *arguments)
