"""`script/run`: from a file of requests to a file of results."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import jsonl, line
from tests.fake_backend import Action
from tests.stack import ROOT, Stack, free_port


@pytest.fixture
def run(tmp_path, processes):
    """Run the command in an empty directory with state and ports of its own; gives the finished process."""
    state = tmp_path / "state"
    environment = {"DATA_DIR": str(state), "PORT": str(free_port()), "EMBEDDED_BACKEND_PORT": str(free_port())}

    def run(*arguments, **settings):
        result = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), "run_batch", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | environment | {"CELERY_BROKER_URL": "", "COLUMNS": "100"} | settings,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert "Traceback" not in result.stderr
        return result

    yield run
    # Whatever state it used, it leaves no process behind.
    for directory in (state, state / "embedded"):
        assert Stack(directory, {}).pids() == []


def write(path, lines):
    path.write_bytes(jsonl(lines))
    return path


def test_without_ollama_it_goes_on_with_the_embedded_model_and_says_so(run, tmp_path):
    result = run(ROOT / "examples" / "requests.jsonl", OLLAMA_BASE_URL="http://127.0.0.1:9")

    assert result.returncode == 0, result.stderr
    said = result.stdout
    assert "Ollama does not answer at http://127.0.0.1:9. Start it: systemctl start ollama" in said
    assert "Then, once: ollama pull" in said
    assert "EVERY model name is answered by smollm2:135m" in said
    assert "10/10" in said
    assert "0 failed" in said
    assert "tokens/s" in said
    assert "What is the capital of France?\n  → The capital of France is Paris." in said
    assert "Results: results.jsonl (10 lines)" in said
    results = [json.loads(each) for each in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(results) == 10
    # Nothing that waits for the real model shares a directory with the stand-in.
    assert not (tmp_path / "state" / "db.sqlite3").exists()
    assert (tmp_path / "state" / "embedded" / "db.sqlite3").exists()


def test_the_stand_in_keeps_away_from_the_real_database_and_broker(run, tmp_path):
    """Settings of a deployment are inherited; with Ollama down its batches must stay where they are."""
    real = tmp_path / "real.sqlite3"
    path = write(tmp_path / "in.jsonl", [line("a")])
    elsewhere = {"DATABASE_URL": f"sqlite:///{real}", "CELERY_BROKER_URL": "redis://127.0.0.1:9/0"}
    result = run(path, OLLAMA_BASE_URL="http://127.0.0.1:9", **elsewhere)
    assert result.returncode == 0, result.stderr
    assert not real.exists()


def test_with_ollama_it_uses_it(run, tmp_path, fake):
    path = write(tmp_path / "in.jsonl", [line("a"), line("b")])
    result = run(path, "-o", tmp_path / "out.jsonl", OLLAMA_BASE_URL=fake.url)
    assert result.returncode == 0, result.stderr
    assert "embedded" not in result.stdout
    assert sorted(fake.arrived()) == ["a", "b"]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_lines_without_an_answer_are_written_beside_and_the_exit_says_so(run, tmp_path, fake):
    fake.always("b", Action(400, {"error": {"message": "no", "type": "x", "param": None, "code": None}}))
    path = write(tmp_path / "in.jsonl", [line("a"), line("b")])
    result = run(path, OLLAMA_BASE_URL=fake.url)
    assert result.returncode == 1
    assert "results.errors.jsonl" in result.stderr
    assert "b" in (tmp_path / "results.errors.jsonl").read_text()
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_it_uses_the_server_that_is_running_and_leaves_it(run, tmp_path, stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url)
    path = write(tmp_path / "in.jsonl", [line("a")])
    result = run(path, PORT=str(server.port))
    assert result.returncode == 0, result.stderr
    assert f"Using the server at {server.base}." in result.stdout
    assert server.health()["status"] == "ok"


def test_a_file_with_mistakes_is_explained_line_by_line(run, tmp_path, fake):
    path = write(tmp_path / "in.jsonl", [line("a"), line("a"), line("c", method="GET")])
    result = run(path, OLLAMA_BASE_URL=fake.url)
    assert result.returncode == 1
    assert "line 2: The custom_id 'a' for this request is a duplicate" in result.stderr
    assert "line 3: The method of a request must be POST." in result.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory."),
        ("{broken", "is not JSON."),
        ("{}", "has no url, such as /v1/chat/completions."),
    ],
)
def test_a_file_that_is_none_is_refused_before_anything_starts(run, tmp_path, content, said):
    path = tmp_path / "in.jsonl"
    if content is not None:
        path.write_text(content)
    result = run(path)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Starting" not in result.stdout
