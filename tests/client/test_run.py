"""`script/run` and `script/batch run`: from a file of requests to a file of answers, with real processes."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios

import pytest

from tests.conftest import jsonl, line
from tests.fake_backend import Action
from tests.stack import ROOT, Stack, eventually, free_port


@pytest.fixture
def client(tmp_path, processes):
    """Run `python -m client` in an empty directory with state and ports of its own; gives the finished process."""
    state = tmp_path / "state"
    environment = {
        "DATA_DIR": str(state),
        "PORT": str(free_port()),
        "EMBEDDED_BACKEND_PORT": str(free_port()),
        "XDG_STATE_HOME": str(tmp_path / "xdg"),
        "CELERY_BROKER_URL": "",
        "COLUMNS": "100",
        "PYTHONPATH": str(ROOT),
    }

    def client(*arguments, **settings):
        result = subprocess.run(
            [sys.executable, "-P", "-m", "client", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | environment | settings,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert "Traceback" not in result.stderr, result.stderr
        return result

    client.environment = environment
    client.directory = tmp_path
    yield client
    # Whatever state it used, it leaves no process behind.
    for directory in (state, state / "embedded"):
        assert Stack(directory, {}).pids() == []


def write(path, lines):
    path.write_bytes(jsonl(lines))
    return path


def test_without_ollama_it_goes_on_with_the_embedded_model_and_says_so(client, tmp_path):
    requests = write(tmp_path / "requests.jsonl", [])
    requests.write_bytes((ROOT / "examples" / "requests.jsonl").read_bytes())
    # Settings of a deployment are inherited; with Ollama down its batches must stay where they are.
    real = tmp_path / "real.sqlite3"
    elsewhere = {"DATABASE_URL": f"sqlite:///{real}", "CELERY_BROKER_URL": "redis://127.0.0.1:9/0"}
    result = client("run", requests, OLLAMA_BASE_URL="http://127.0.0.1:9", **elsewhere)

    assert result.returncode == 0, result.stderr
    said = result.stdout
    assert "Ollama does not answer at http://127.0.0.1:9. Start it: systemctl start ollama" in said
    assert "Then, once: ollama pull" in said
    assert "EVERY model name is answered by smollm2:135m" in said
    assert "completed: 10/10 lines, 0 failed" in said
    assert "tokens/s" in said
    assert "What is the capital of France?\n  → The capital of France is Paris." in said
    assert f"Results: {tmp_path}/requests.results.jsonl (10 lines)" in said
    assert len((tmp_path / "requests.results.jsonl").read_text().splitlines()) == 10
    # Nothing that waits for the real model shares a directory with the stand-in.
    assert not (tmp_path / "state" / "db.sqlite3").exists()
    assert (tmp_path / "state" / "embedded" / "db.sqlite3").exists()
    assert not real.exists()


def test_the_same_command_again_asks_nothing_twice(client, tmp_path, fake):
    """With Ollama; the server of the first run has ended, and what is known is on disk alone."""
    path = write(tmp_path / "in.jsonl", [line("a"), line("b")])
    first = client("run", path, "-o", tmp_path / "out.jsonl", OLLAMA_BASE_URL=fake.url)
    assert first.returncode == 0, first.stderr
    assert "embedded" not in first.stdout
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    for arguments in (["-o", tmp_path / "out.jsonl"], []):
        again = client("run", path, *arguments, OLLAMA_BASE_URL=fake.url)
        assert again.returncode == 0, again.stderr
        assert "made for this file before, is completed. Nothing is asked twice" in again.stdout
    assert (tmp_path / "in.results.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    assert sorted(fake.arrived()) == ["a", "b"]


def test_a_file_with_mistakes_is_explained_line_by_line(client, tmp_path, fake):
    path = write(tmp_path / "in.jsonl", [line("a"), line("a"), line("c", method="GET")])
    result = client("run", path, OLLAMA_BASE_URL=fake.url)
    assert result.returncode == 1
    assert "line 2: The custom_id 'a' for this request is a duplicate" in result.stderr
    assert "line 3: The method of a request must be POST." in result.stderr


def test_a_server_that_cannot_start_shows_why(client, tmp_path):
    path = write(tmp_path / "in.jsonl", [line("a")])
    result = client("run", path, DATABASE_URL="sqlite:////proc/none/db.sqlite3", BACKEND_URL="embedded")
    assert result.returncode == 1
    assert "The server ended. The end of" in result.stderr


def test_ctrl_c_stops_the_server_that_was_started_and_the_same_command_goes_on(client, tmp_path, fake):
    """In a terminal, as a person types it. The line that was answered is not asked again."""
    fake.always("slow", Action(delay_s=60))
    path = write(tmp_path / "in.jsonl", [line("a"), line("slow")])
    with Terminal(client, "run", path, OLLAMA_BASE_URL=fake.url, SHUTDOWN_GRACE_S="0.1") as terminal:
        terminal.read("1/2 lines")
        terminal.type("\x03")
        terminal.read("type the same command again")
        assert terminal.process.wait(60) == 130
    fake.always("slow", Action())
    result = client("run", path, OLLAMA_BASE_URL=fake.url)
    assert result.returncode == 0, result.stderr
    assert sorted(fake.arrived()) == ["a", "slow", "slow"]


class Terminal:
    """A command in a terminal, in front of which somebody sits."""

    def __init__(self, client, *arguments, **settings):
        self.ours, theirs = pty.openpty()
        self.said = ""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "client", *map(str, arguments)],
            cwd=client.directory,
            env=os.environ | client.environment | {"TERM": "xterm"} | settings,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=self._own,
        )
        os.close(theirs)

    @staticmethod
    def _own():
        """Make the pty the controlling terminal, so that Ctrl-C in it is a signal."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # A shell that started the tests in the background has had them ignore it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def read(self, until=None):
        """What was said up to these words, or to the end of the command."""
        while until is None or until not in self.said:
            try:
                part = os.read(self.ours, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                part = ""
            if not part:
                break
            self.said += part
        assert until is None or until in self.said, self.said
        return self.said

    def type(self, text):
        os.write(self.ours, text.encode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


def test_what_a_running_server_and_the_commands_tell_each_other(client, tmp_path, stack, fake):
    """One server for all of it: its truth against what tests/client/test_commands.py plays."""
    fake.always("b", Action(400, {"error": {"message": "no", "type": "x", "param": None, "code": None}}))
    fake.always("slow", Action(delay_s=120))
    server = stack(OLLAMA_BASE_URL=fake.url)
    path = write(tmp_path / "in.jsonl", [line("a"), line("b")])

    # The server is another's: its data is not in our directory.
    refused = client("run", path, PORT=str(server.port))
    assert refused.returncode == 1
    assert "is not your own" in refused.stderr
    assert fake.arrived() == []

    named = {"OLLAMA_BATCH_SERVER": server.base}
    result = client("run", path, **named)
    assert result.returncode == 1
    assert f"Using the server at {server.base} (version" in result.stdout
    assert "1 × " in result.stderr
    assert "in.results.errors.jsonl" in result.stderr
    assert "b" in (tmp_path / "in.results.errors.jsonl").read_text()
    assert len((tmp_path / "in.results.jsonl").read_text().splitlines()) == 1

    # It is our own where its data is in our DATA_DIR.
    own = client("run", path, PORT=str(server.port), DATA_DIR=str(server.data_dir))
    assert f"data in {server.data_dir}" in own.stdout
    assert "Nothing is asked twice" in own.stdout
    # Another machine, which remembers nothing, finds the batch by what it carries.
    elsewhere = client("run", path, "-o", "o.jsonl", XDG_STATE_HOME=str(tmp_path / "other"), **named)
    assert "Nothing is asked twice" in elsewhere.stdout
    assert sorted(fake.arrived()) == ["a", "b"]

    listed = json.loads(client("list", "--json", **named).stdout)["data"]
    assert [batch["status"] for batch in listed] == ["completed"]
    assert "in.jsonl" in client("list", **named).stdout

    # The line that failed is asked again, and the answers are given as one.
    fake.always("b", Action())
    first = listed[0]["id"]
    retried = client("retry", first, "--watch", **named)
    assert "is completed: 1 of 1 lines answered." in retried.stdout
    merged = client("results", "last", "--merged", **named).stdout.splitlines()
    assert [json.loads(each)["custom_id"] for each in merged] == ["a", "b"]
    assert sorted(fake.arrived()) == ["a", "b", "b"]

    slow = write(tmp_path / "slow.jsonl", [line("quick"), line("slow")])
    batch = json.loads(client("run", slow, "--detach", "--json", **named).stdout)
    assert batch["expires_at"] - batch["created_at"] == 7 * 86400
    # What is finished is there while the rest runs.
    partial = eventually(lambda: (told := client("results", "last", **named)).stdout and told, what="the quick line")
    assert [json.loads(each)["custom_id"] for each in partial.stdout.splitlines()] == ["quick"]
    assert "Incomplete" in partial.stderr
    assert re.search(r"Status: +in_progress", client("show", **named).stdout)
    assert client("extend", "last", "14d", **named).stdout.startswith(f"The window of {batch['id']} ends ")
    later = json.loads(client("show", "--json", **named).stdout)
    assert later["batch"]["expires_at"] - batch["created_at"] >= 14 * 86400
    assert later["progress"]["expires_at"] == later["batch"]["expires_at"]
    assert client("priority", "last", "low", **named).stdout == f"The priority of {batch['id']} is low.\n"
    with Terminal(client, "list", **named) as terminal:
        assert "\x1b[1mid" in terminal.read()
        assert batch["id"] in terminal.said
    with Terminal(client, "watch", **named) as terminal:
        terminal.read("1/2 lines, 0 failed")
        assert "━" in terminal.said
        terminal.type("\x03")
        terminal.read(f"{batch['id']} goes on at {server.base}.")
        assert terminal.process.wait(60) == 130
    with Terminal(client, "cancel", "last", **named) as terminal:
        terminal.read(f"Cancel {batch['id']} (1/2 lines, 0 failed)?")
        terminal.type("n\n")
        terminal.read("Aborted!")
        assert terminal.process.wait(60) == 1
    assert client("pause", batch["id"], **named).stdout == f"Paused {batch['id']}.\n"
    assert client("resume", "last", **named).stdout == f"Resumed {batch['id']}.\n"
    assert batch["id"] in client("cancel", "last", **named).stdout
    watched = client("watch", "--exit-status", **named)
    assert watched.returncode == 1
    assert f"{batch['id']} is cancelled: 1 of 2 lines answered." in watched.stdout
    eventually(lambda: server.health()["status"] == "ok")
    assert client("results", first, **named).stdout == (tmp_path / "in.results.jsonl").read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory."),
        ("", "is empty."),
        ("{broken", "is not JSON."),
        ("{}", "has no url, such as /v1/chat/completions."),
    ],
)
def test_a_file_that_is_none_is_refused_before_anything_starts(client, tmp_path, content, said):
    path = tmp_path / "in.jsonl"
    if content is not None:
        path.write_text(content)
    result = client("run", path)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Starting" not in result.stdout
