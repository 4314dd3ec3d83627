"""A pytest plugin inside openai-python's own tests: the objects that they name are there before each of them.

The rows and bytes go straight into the state of a live server (DATA_DIR in the environment names it), which does all
the rest. `--outcomes` names a file for what became of each test.
"""

import hashlib
import json
import secrets
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import django
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind the suite's own root: both have a `tests`
django.setup()

from django.core.files.base import ContentFile  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from django.utils import timezone  # noqa: E402

from batches.models import Batch, Status  # noqa: E402
from files_api.models import File, Upload, UploadPart  # noqa: E402

CONTENT = b'{"custom_id": "a"}\n'

outcomes: dict[str, list[str]] = {}


def seed() -> None:
    for file_id in ("file_id", "after"):
        seed_file(file_id)
    seed_batch("batch_id")
    seed_batch("after")
    seed_upload("upload_abc123", "string")


def seed_file(file_id: str) -> None:
    if File.objects.visible().filter(pk=file_id).exists():
        return
    File.objects.filter(pk=file_id).delete()
    file = File(pk=file_id, filename="a.jsonl", purpose="batch", bytes=len(CONTENT))
    file.sha256 = hashlib.sha256(CONTENT).hexdigest()
    store(file)
    file.save(force_insert=True)


def store(row: Any) -> None:
    """The bytes of a file or a part under a new name: those that are made from ids expect longer ids, and what was
    seeded before under this id may just be removed."""
    row.content.name = row.content.storage.save(f"seeded/{secrets.token_hex(8)}", ContentFile(CONTENT))


def seed_batch(batch_id: str) -> None:
    """A batch in progress whose one line waits for long. One that was cancelled is made anew once the server is done
    with it."""
    batch = Batch.objects.filter(pk=batch_id).first()
    if batch is not None and batch.status == Status.IN_PROGRESS:
        return
    ends_at = time.monotonic() + 30
    while batch is not None and batch.tidied_at is None:
        assert time.monotonic() < ends_at, f"{batch} stayed {batch.status}"
        time.sleep(0.01)
        batch.refresh_from_db()
    now = timezone.now()
    with transaction.atomic():
        if batch is not None:
            File.objects.filter(pk=batch.error_file_id).delete()
            batch.delete()
        batch = Batch.objects.create(
            pk=batch_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            status=Status.IN_PROGRESS,
            model="gpt-6-astra",
            metadata={"foo": "string"},
            input_file_id="file_id",
            expires_at=now + timedelta(days=1),
            in_progress_at=now,
            paused_at=now,  # nothing of it is to be sent
            total=1,
        )
        part = batch.parts.create(model=batch.model)
        batch.lines.create(part=part, number=1, custom_id="a", offset=0, length=len(CONTENT) - 1)


def seed_upload(upload_id: str, part_id: str) -> None:
    """A pending upload with one part, which is all of it."""
    upload = Upload.objects.filter(pk=upload_id).first()
    if upload is not None and upload.status == "pending":
        return
    with transaction.atomic():
        if upload is not None:
            upload.delete()
        upload = Upload.objects.create(
            pk=upload_id,
            filename="filename",
            purpose="assistants",
            bytes=len(CONTENT),
            expires_at=timezone.now() + timedelta(hours=1),
        )
        part = UploadPart(pk=part_id, upload=upload, bytes=len(CONTENT))
        store(part)
        part.save(force_insert=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, required=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    seed()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or not report.passed:
        outcomes[report.nodeid] = [report.outcome, report.longreprtext]


def pytest_sessionfinish(session: pytest.Session) -> None:
    connection.close()
    session.config.getoption("--outcomes").write_text(json.dumps(outcomes))
