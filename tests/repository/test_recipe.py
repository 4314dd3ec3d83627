"""docs/recipe-170000.md: its files and its commands, as they stand there, on six rows and the embedded model."""

import csv
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.stack import ROOT, eventually

PAGE = (ROOT / "docs" / "recipe-170000.md").read_text()
PEOPLE = (
    "Ada,Wrote the first program.",
    "Grace,Made the compiler.",
    "Edsger,Found the shortest way.",
    "Ann,Bakes bread.",
)


def commands(heading):
    """What is typed in the section under a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```console\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def files():
    """The files that the page shows, by name."""
    return dict(re.findall(r"`(\w+\.\w+)`:\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture
def type_(stack, tmp_path):
    """Start a command of the page in a directory with its files, beside a server that is the user's own."""
    server = stack(BACKEND_URL="embedded")
    environment = os.environ | server.environment | {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path / "xdg")}

    def type_(command):
        script, name, *arguments = shlex.split(command)
        assert (script, "20" in arguments) == ("script/batch", name == "csv")
        arguments = ["2" if each == "20" else each for each in arguments]  # of the six rows here
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "client", name, *arguments],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return type_


def test_the_evening_the_days_and_the_morning(type_, tmp_path):
    def run(command, status=0):
        process = type_(command)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == status, said
        return said

    for name, content in files().items():
        (tmp_path / name).write_text(content)
    rows = [f"p-{number},{person}" for number, person in enumerate(PEOPLE, start=1)]
    # The last two are longer than the context of the embedded model.
    rows += [f"p-{number},Long,{'word ' * 6000}" for number in (5, 6)]
    (tmp_path / "profiles.csv").write_text("\n".join(["id,name,bio", *rows]) + "\n")

    (evening,) = commands("The evening")
    pause, *while_it_runs = sorted(commands("While it runs"), key=lambda command: "pause" not in command)
    resume = next(command for command in while_it_runs if "resume" in command)
    while_it_runs.remove(resume)
    started = type_(evening)
    said = ""
    while "Go on with the other 4 rows?" not in said:
        part = started.stdout.read(1)
        assert part, said
        said += part
    assert "6 rows are asked; 0 with an empty prompt are skipped." in said
    assert re.search(r"p-1 → fit: \d+, sure: (yes|no), finish_reason: stop", said), said
    # The batch of all other rows waits while the commands look at it.
    run(pause)
    started.stdin.write("y\n")
    started.stdin.flush()
    show = next(command for command in while_it_runs if "show" in command)
    eventually(lambda: "0/4 lines" in (told := run(show)) and "in_progress" in told, what="the batch")
    told = {command.split()[1]: run(command) for command in while_it_runs}
    assert set(told) == {"show", "list", "priority", "extend"}
    assert "paused" in told["show"]
    assert len(told["list"].splitlines()) == 3
    run(resume)
    said, _ = started.communicate(timeout=120)
    assert started.returncode == 0, said
    assert "6 rows asked, 2 without an answer" in said

    errors, retry, again = commands("The morning after")
    assert "2 × context_length_exceeded" in run(errors)
    assert "is completed: 0 of 2 lines answered." in run(retry)
    assert "6 rows asked, 2 without an answer" in run(again)
    with (tmp_path / "scored.csv").open(newline="") as table:
        scored = list(csv.DictReader(table))
    assert list(scored[0]) == ["id", "name", "bio", "fit", "sure", "error", "finish_reason"]
    assert [row["id"] for row in scored] == [f"p-{number}" for number in range(1, 7)]
    for row in scored[:4]:
        assert (0 <= int(row["fit"]) <= 10, row["sure"] in ("yes", "no"), row["error"]) == (True, True, "")
    for row in scored[4:]:
        assert row["error"].startswith("context_length_exceeded: ")
    assert not (tmp_path / "scored.csv.part").exists()
