"""`manage.py serve`: real processes, started, broken and stopped."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from batchserver import program, serve_options
from batchserver.version import read_version
from tests.fake_backend import MODEL, FakeBackend
from tests.stack import ROOT, Stack, command_line, eventually, kill


def test_it_starts_with_nothing_and_stops_in_order(stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url, is_first_start=True)

    said = server.log.read_text()
    assert f"API      {server.base}/v1" in said
    assert re.search(r"Made user admin, password \S+ \(shown only this once\)", said)
    assert f"ollama 0.33.0 at {fake.url}, default model {MODEL}" in said
    assert stat.S_IMODE(server.data_dir.joinpath("secret_key").stat().st_mode) == 0o600
    assert stat.S_IMODE(server.data_dir.joinpath("files").stat().st_mode) == 0o700

    health = server.health()
    assert (health["status"], health["reason"]) == ("ok", None)
    ready = requests.get(f"{server.base}/readyz", timeout=10)
    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "failed": []})
    metrics = requests.get(f"{server.base}/metrics", timeout=10)
    assert 'ollama_batch_server_batches{status="in_progress"} 0.0' in metrics.text
    assert "django_http_responses_total_by_status_total" in metrics.text
    page = requests.get(f"{server.base}/", headers={"Accept": "text/html"}, timeout=10)
    assert page.url.endswith("/admin/login/?next=/admin/")
    assert requests.get(f"{server.base}/static/admin/css/base.css", timeout=10).status_code == 200

    known = server.pids()
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 20
    assert not [pid for pid in known if command_line(pid)]
    assert "Traceback" not in server.log.read_text()

    server.start()
    assert server.log.read_text().count("shown only this once") == 1


def test_a_second_server_on_the_same_state_is_refused(stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url)
    second = subprocess.run(
        [sys.executable, "manage.py", "serve"],
        cwd=ROOT,
        env=os.environ | server.environment | {"PORT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert "A server is running already" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prot", "4090"], "unrecognized arguments: --prot 4090"),
        (["4090"], "unrecognized arguments: 4090"),
        (["--port", "http"], "argument --port: 'http': expected a whole number from 1 to 65535"),
        (["--port", "65536"], "argument --port: '65536': expected a whole number from 1 to 65535"),
        (["--port", "\uff18\uff10"], "argument --port: '\uff18\uff10': expected a whole number from 1 to 65535"),
        (["--port", "٨٠٨٠"], "expected a whole number from 1 to 65535"),
        (["--port", "-1"], "argument --port"),
        (["--port"], "argument --port: expected one argument"),
        (["--data-dir", " "], "argument --data-dir: expected the path of a directory"),
    ],
)
def test_an_option_that_is_none_is_refused_with_those_that_are(arguments, said, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="2"):
        program.manage(["manage.py", "serve", *arguments])
    told = capsys.readouterr().err
    assert said in told
    assert told.startswith("usage: manage.py serve [")
    for option in ("--host ADDRESS", "--port NUMBER", "--data-dir PATH"):
        assert option in told


def test_the_options_are_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = {"PORT": "1", "HOST": "localhost"}
    serve_options.apply(["--port=4090", "--no-admin", "--data-dir", "mine", "--other"], environment, program="serve")
    assert environment == {"PORT": "4090", "HOST": "localhost", "DATA_DIR": str(tmp_path / "mine")}


@pytest.mark.parametrize("typed", [["manage.py", "serve", "--version"], ["/bin/ollama-batch-server", "--version"]])
def test_it_tells_its_version_and_not_that_of_django(typed, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", typed)
    with pytest.raises(SystemExit, match="0"):
        program.main()
    assert capsys.readouterr().out == f"ollama-batch-server {read_version()}\n"


def test_without_its_packages_it_says_what_to_type_in_the_checkout(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "django", None)
    monkeypatch.setattr("sys.argv", ["ollama-batch-server"])
    assert program.main() == 1
    assert "In the checkout: pip install '.[server]'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_the_help_helps_and_has_nothing_of_django(option, capsys):
    with pytest.raises(SystemExit, match="0"):
        program.manage(["manage.py", "serve", "--port", "4090", option])
    told = capsys.readouterr().out
    assert "TCP port to listen at (PORT), 4080 unless set" in " ".join(told.split())
    for what in ("create_api_key NAME", ".env.example", "base_url", "OLLAMA_BASE_URL", "--host 0.0.0.0"):
        assert what in told
    assert "--settings" not in told


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_script_tells_it_where_nothing_is_installed_and_a_setting_is_wrong(option, tmp_path):
    """By a Python without packages (-S), as on a fresh machine; nothing is made there."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done = subprocess.run(
        [ROOT / "script" / "server", option],
        env=os.environ | {"PYTHON": str(bare), "PORT": "no port"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: " if option == "--help" else "ollama-batch-server ")


WITH_ITS_PARENT = """
import os, subprocess, sys, time
from batchserver.supervisor import Supervisor
if sys.argv[1:]:
    supervisor = Supervisor()
    supervisor.listen()
    print(supervisor.stop_with(int(sys.argv[1])), flush=True)
    while not supervisor.is_stopping:
        time.sleep(0.01)
    print("stopped", flush=True)
else:
    subprocess.run([sys.executable, "-c", os.environ["PROGRAM"], str(os.getpid())])
"""


@pytest.mark.usefixtures("processes")
def test_a_server_stops_when_the_process_that_started_it_is_killed():
    environment = os.environ | {"PROGRAM": WITH_ITS_PARENT}
    parent = subprocess.Popen(
        [sys.executable, "-c", WITH_ITS_PARENT], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout.readline() == "True\n"
        parent.kill()
        assert parent.stdout.read() == "stopped\n"
    # One that is gone already leaves no time to ask the kernel.
    result = subprocess.run(
        [sys.executable, "manage.py", "serve", "--parent", str(parent.pid)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "The process that started this server has ended." in result.stderr


def test_a_child_that_dies_is_started_again(stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url)
    for part in ("gunicorn", "-Q control", "-Q inference", "valkey"):
        killed = server.kill(part)
        assert killed, part
        eventually(lambda part=part: server.find(part), what=f"a new {part}")
    eventually(server._is_ready, what="a ready server")
    assert server.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each process imports for itself")
def test_what_the_processes_import_is_in_memory_once(stack, fake):
    """Of one of them that was started again too. A process that imports Django for itself has 50 MB of its own."""
    server = stack(OLLAMA_BASE_URL=fake.url)
    [first, *_] = server.kill("-Q control")
    eventually(lambda: set(server.find("-Q control")) - {first}, what="a new worker")
    eventually(server._is_ready, what="a ready server")
    for part in ("gunicorn", "-Q control", "-Q inference"):
        for pid in server.find(part):
            assert own_mb(pid) < 45, f"{part}: {own_mb(pid)} MB"


def own_mb(pid):
    """The memory that no other process has."""
    found = dict(each.split()[:2] for each in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return (int(found["Private_Dirty:"]) + int(found["Private_Clean:"])) * 1024 / 1e6


def test_a_server_that_was_killed_leaves_nothing_that_stops_the_next(stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url)
    children = server.pids()
    kill(server.process.pid)
    server.process.wait()

    # Until its port is free the children of the first server may still answer on it: ask for the second one's own word.
    server.start(ready=False)
    eventually(lambda: server.log.read_text().count("is up.") == 2, what="a second start")
    eventually(server._is_ready, what="a ready server")
    assert server.health()["status"] == "ok"
    eventually(lambda: not set(children) & set(server.pids()), what="the end of the first server's children")


def test_it_says_what_to_type_when_ollama_is_down(stack):
    server = stack(OLLAMA_BASE_URL="http://127.0.0.1:9")
    assert "Ollama does not answer at http://127.0.0.1:9. Start it: systemctl start ollama" in server.log.read_text()
    health = eventually(lambda: (seen := server.health()) and seen["reason"] and seen, what="a reason")
    assert health["status"] == "waiting"
    assert "Start it: systemctl start ollama" in health["reason"]


def test_it_says_what_to_type_when_the_model_is_missing(stack, fake):
    fake.models = ["llama3.2:3b", "qwen3:8b"]  # one alone would be the default
    server = stack(OLLAMA_BASE_URL=fake.url)
    assert f"It does not have {MODEL}. Install it: ollama pull {MODEL}" in server.log.read_text()
    assert "ollama pull" in server.health()["reason"]


@pytest.mark.usefixtures("processes")
def test_a_foreign_program_on_the_port_is_named(tmp_path, fake):
    with FakeBackend() as foreign:
        server = Stack(tmp_path / "data", {"OLLAMA_BASE_URL": fake.url, "PORT": foreign.url.rpartition(":")[2]})
        server.start(ready=False)
        try:
            assert server.process.wait(60) == 1
        finally:
            server.stop()
        assert "is in use by another program. Set PORT to a free one." in server.log.read_text()


@pytest.mark.usefixtures("processes")
def test_a_directory_with_odd_characters_in_its_name_will_do(tmp_path, fake):
    server = Stack(tmp_path / "C# 100%20 ?x", {"OLLAMA_BASE_URL": fake.url})
    server.start()
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HOST": "192.0.2.1"}, "Cannot listen on 192.0.2.1:"),
        ({"DATABASE_URL": "postgres://nobody@127.0.0.1:9/x"}, "The database cannot be used: "),
    ],
)
@pytest.mark.usefixtures("processes")
def test_what_keeps_it_from_starting_is_said_in_a_line(tmp_path, environment, said):
    server = Stack(tmp_path / "data", environment)
    server.start(ready=False)
    try:
        assert server.process.wait(60) == 1
    finally:
        server.stop()
    assert said in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DATA_DIR", "/proc/nowhere", "DATA_DIR='/proc/nowhere' cannot be used: "),
        ("PORT", "abc", "PORT='abc': expected a whole number from 1 to 65535."),
        ("OLLAMA_BASE_URL", "localhost:11434", "OLLAMA_BASE_URL='localhost:11434': expected an address"),
        ("BEHIND_TLS", "yes", "BEHIND_TLS='yes': expected True or False."),
        ("LINE_TIMEOUT_S", "-1", "LINE_TIMEOUT_S='-1': expected a number of seconds above 0."),
        ("MODEL_ALIASES", "gpt-4o", "MODEL_ALIASES: 'gpt-4o' is not of the form alias=model."),
        ("DATABASE_URL", "nonsense", "DATABASE_URL: expected"),
        ("WEBHOOK_URL", "x.org/h?key=k", "WEBHOOK_URL (not shown, it may hold a key): expected an address like https:"),
        ("WEBHOOK_URL", "https://x.org", "WEBHOOK_SECRET is not set, and WEBHOOK_URL needs it; make one with: echo"),
    ],
)
@pytest.mark.usefixtures("processes")
def test_a_bad_setting_is_named_with_what_is_allowed(name, value, said):
    command = [sys.executable, "manage.py", "serve"]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | {name: value}, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"Configuration: {said}")
    assert "Traceback" not in result.stderr


def test_two_interrupts_stop_at_once(stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url)
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0
    eventually(lambda: not server.pids(), within_s=10, what="the end of all processes")
