"""Keep the database of a commit, as SQL: `python -m tests.schemas.make COMMIT` writes tests/schemas/COMMIT.sql.

The commit's own server runs input.jsonl from the upload on, with the fake model server. It is killed when the lines in
DONE are answered and others are in flight, so the database holds a batch in the middle of its work.
"""

import io
import os
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

import requests

from tests.fake_backend import Action, FakeBackend
from tests.stack import ROOT, Stack, eventually, kill

HERE = Path(__file__).resolve().parent
INPUT = HERE / "input.jsonl"
DONE = "abc"
HANGING = "defg"

# What the first start makes again, and what names the machine or would let the batch run out of its time.
CLEAN = """
DELETE FROM auth_user;
DELETE FROM auth_permission;
DELETE FROM django_content_type;
UPDATE batches_batch SET expires_at = '2126-01-01 00:00:00';
UPDATE files_api_file SET expires_at = NULL;
UPDATE batches_lease SET host = 'host';
"""


def make(commit: str) -> Path:
    """Write and return the file of `commit`, named by its first seven digits. Takes about 10 s."""
    name = _git("rev-parse", "--short=7", commit).decode().strip()
    with tempfile.TemporaryDirectory() as directory:
        root, data_dir = Path(directory, "code"), Path(directory, "data")
        with tarfile.open(fileobj=io.BytesIO(_git("archive", name))) as code:
            code.extractall(root, filter="data")
        _leave_a_batch_in_the_middle(root, data_dir)
        target = HERE / f"{name}.sql"
        target.write_text(_dump(data_dir / "db.sqlite3"))
    return target


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout


def _leave_a_batch_in_the_middle(root: Path, data_dir: Path) -> None:
    with FakeBackend() as fake:
        for key in HANGING:
            fake.always(key, Action(hang=True))
        server = Stack(
            data_dir, {"OLLAMA_BASE_URL": fake.url, "ENV_FILE": os.devnull, "MIN_FREE_BYTES": "0"}, root=root
        )
        try:
            server.start()
            batch_id = _submit(server)

            def is_in_the_middle() -> bool:
                batch = requests.get(f"{server.base}/v1/batches/{batch_id}", timeout=10).json()
                assert batch["status"] in ("validating", "in_progress"), batch
                return batch["request_counts"]["completed"] >= len(DONE) and bool(set(fake.arrived()) & set(HANGING))

            eventually(is_in_the_middle, what="the middle of the batch")
        finally:
            for pid in server.pids():
                kill(pid)


def _submit(server: Stack) -> str:
    with INPUT.open("rb") as content:
        file = requests.post(
            f"{server.base}/v1/files", data={"purpose": "batch"}, files={"file": content}, timeout=30
        ).json()
    request = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch_id: str = requests.post(f"{server.base}/v1/batches", json=request, timeout=30).json()["id"]
    return batch_id


def _dump(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(CLEAN)
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'files_api_storage'").fetchone():
            database.executescript("DELETE FROM files_api_storage")  # its other half lies beside the files
        return "\n".join(database.iterdump()).replace(socket.gethostname(), "host") + "\n"


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(make(each))
