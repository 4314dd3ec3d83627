"""Every command of the README, as it stands there, and its Python."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest

from tests.conftest import line, needs
from tests.stack import ROOT, Stack, eventually, free_port
from tests.whole_server import client_of, finish, submit

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands():
    """What the README types at a prompt, continuation lines joined."""
    typed = "\n".join(blocks("console")).replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in typed.splitlines() if line.startswith("$ ")]


def shell(command, **environment):
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_command_is_known_here():
    """A command that is new in the README needs its run below."""
    programs = {re.split(r"[ /]", command)[0] for command in commands()}
    assert programs == {"script", "curl", ".venv"}
    assert [command for command in commands() if not command.startswith("curl")] == [
        "script/run examples/requests.jsonl",
        "script/server",
        ".venv/bin/python manage.py create_api_key laptop",
    ]


@pytest.mark.usefixtures("processes")
def test_the_first_command(tmp_path):
    (command,) = (each for each in commands() if each.startswith("script/run"))
    state = tmp_path / "state"
    said = shell(
        f"{command} -o {tmp_path}/results.jsonl",
        DATA_DIR=str(state),
        PORT=str(free_port()),
        EMBEDDED_BACKEND_PORT=str(free_port()),
        CELERY_BROKER_URL="",
    )
    assert "10/10" in said
    assert "→ The capital of France is Paris." in said
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 10
    assert Stack(state / "embedded", {}).pids() == []


@pytest.mark.usefixtures("processes")
def test_the_server_and_the_curl_commands(tmp_path, fake):
    needs(shutil.which("curl"), "curl")
    # Its options win over the environment.
    server = Stack(tmp_path / "data", {"OLLAMA_BASE_URL": fake.url, "PORT": "1"})
    server.start(command=["script/server", "--port", str(server.port)])
    try:
        ids = {"file": "", "batch": "", "output": ""}
        for typed in (each for each in commands() if each.startswith("curl")):
            file_id = ids["output"] if "/content" in typed else ids["file"]
            command = typed.replace("file-…", file_id).replace("batch_…", ids["batch"])
            command = command.replace("localhost:4080", f"127.0.0.1:{server.port}")
            answer = shell(command.replace("results.jsonl", f"{tmp_path}/results.jsonl"))
            if "/content" in typed:
                assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 10
            elif typed.endswith("/metrics"):
                assert "ollama_batch_server_batches" in answer
            elif typed.endswith("/cancel"):
                assert "Cannot cancel a batch with status 'completed'." in answer
            else:
                body = json.loads(answer)
                assert "error" not in body, answer
                if "-F" in typed:
                    ids["file"] = body["id"]
                elif "-d" in typed:
                    ids["batch"] = body["id"]
                    ids["output"] = output_of(server, body["id"])

        (command,) = (each for each in commands() if "create_api_key" in each)
        secret = shell(command.replace(".venv/bin/python", sys.executable), **server.environment).strip()
        assert secret.startswith("sk-")
        assert "Missing bearer" in shell(f"curl -s {server.base}/v1/files")
        assert ids["file"] in shell(f"curl -s {server.base}/v1/files -H 'Authorization: Bearer {secret}'")
        assert '"status": "ok"' in shell(f"curl -s {server.base}/health")
    finally:
        assert server.stop() == 0


def output_of(server, batch_id):
    """The output file's id, once the batch is done."""

    def look():
        batch = json.loads(shell(f"curl -s {server.base}/v1/batches/{batch_id}"))
        return batch["status"] == "completed" and batch["output_file_id"]

    return eventually(look, what="the end of the batch")


@pytest.mark.parametrize("source", ["README", "examples/client.py"])
def test_the_python(stack, fake, source):
    server = stack(OLLAMA_BASE_URL=fake.url)
    code = blocks("python")[0] if source == "README" else (ROOT / source).read_text()
    code = code.replace("http://localhost:4080", server.base)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('"custom_id"') == 10


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_webhook_receiver(stack, fake, tmp_path):
    port, secret = free_port(), "whsec_" + "A" * 44
    server = stack(OLLAMA_BASE_URL=fake.url, WEBHOOK_URL=f"http://127.0.0.1:{port}/", WEBHOOK_SECRET=secret)
    _, code = blocks("python")
    for written, here in (("localhost:4080", f"127.0.0.1:{server.port}"), ("whsec_…", secret), ("5000", str(port))):
        assert written in code
        code = code.replace(written, here)
    with (tmp_path / "said").open("w") as said:
        receiver = subprocess.Popen([sys.executable, "-c", code], stdout=said)
    try:
        eventually(lambda: listens(port), what="a receiver")
        client = client_of(server)
        batch = finish(client, submit(client, [line("a")]).id)
        wanted = f"batch.completed {batch.output_file_id}\n"
        eventually(lambda: (tmp_path / "said").read_text() == wanted, what="the event")
    finally:
        receiver.kill()
        receiver.wait()
