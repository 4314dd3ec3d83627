"""Every call of the official Python client against one whole server; answers must fit its types exactly."""

import asyncio
import hashlib
import os
import subprocess
import sys

import openai
import pytest

from tests.conftest import CHAT, custom_ids, jsonl, line
from tests.fake_backend import Action
from tests.stack import ROOT, eventually
from tests.whole_server import FINAL, finish, lines_of, submit

CONTENT = jsonl([line(name) for name in "abc"])
EXPIRES = {"anchor": "created_at", "seconds": 3600}


def test_every_call(stack, fake, tmp_path):
    fake.models = ["gemma3:12b", "hf.co/user/repo:Q4"]
    fake.always("hangs", Action(hang=True))
    server = stack(OLLAMA_BASE_URL=fake.url)
    options = {"base_url": f"{server.base}/v1", "api_key": "any", "_strict_response_validation": True}
    sent = []  # the client's own retries too
    http = openai.DefaultHttpx2Client(event_hooks={"request": [sent.append]})
    with openai.OpenAI(**options, http_client=http) as client:
        check_files(client, tmp_path)
        check_uploads(client, tmp_path)
        check_batches(client)
        check_models(client)
        check_refusals(client, sent)
        asyncio.run(check_async(options))
        check_keys(client, server)


def check_files(client, tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_bytes(CONTENT)
    made = [
        client.files.create(file=CONTENT, purpose="batch"),
        client.files.create(file=path, purpose="batch"),
        client.files.create(file=("tuple.jsonl", CONTENT, "application/jsonl"), purpose="batch", expires_after=EXPIRES),
    ]
    with path.open("rb") as stream:
        made.append(client.files.create(file=stream, purpose="user_data"))
    assert [file.filename for file in made] == ["upload", "requests.jsonl", "tuple.jsonl", "requests.jsonl"]
    assert [file.expires_at and file.expires_at - file.created_at for file in made] == [2592000, 2592000, 3600, None]
    assert all((file.bytes, file.status) == (len(CONTENT), "processed") for file in made)

    newest_first = [file.id for file in reversed(made)]
    assert [file.id for file in client.files.list()] == newest_first
    for limit in (1, 3, 4):
        assert [file.id for file in client.files.list(limit=limit)] == newest_first
    assert [file.id for file in client.files.list(limit=1, order="asc")] == newest_first[::-1]
    assert [file.id for file in client.files.list(limit=2, purpose="batch")] == newest_first[1:]
    page = client.files.list(limit=3)
    assert (page.has_next_page(), page.get_next_page().has_next_page()) == (True, False)

    file = made[1]
    assert client.files.retrieve(file.id) == file
    assert client.files.wait_for_processing(file.id) == file
    answer = client.files.content(file.id)
    assert (answer.content, answer.text, list(answer.iter_lines())) == (
        CONTENT,
        CONTENT.decode(),
        CONTENT.decode().splitlines(),
    )
    answer.write_to_file(tmp_path / "whole")
    with client.files.with_streaming_response.content(file.id) as answer:
        assert answer.headers["content-length"] == str(len(CONTENT))
        answer.stream_to_file(tmp_path / "streamed")
    with pytest.warns(DeprecationWarning, match="content"):
        assert client.files.retrieve_content(file.id) == CONTENT.decode()
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "streamed").read_bytes() == CONTENT

    for each in made:
        deleted = client.files.delete(each.id)
        assert (deleted.id, deleted.object, deleted.deleted) == (each.id, "file", True)
    assert client.files.list().data == []


def check_uploads(client, tmp_path):
    path = tmp_path / "chunked.jsonl"
    path.write_bytes(CONTENT)
    for arguments in ({"file": path}, {"file": CONTENT, "filename": "chunked.jsonl", "bytes": len(CONTENT)}):
        upload = client.uploads.upload_file_chunked(
            **arguments, mime_type="txt", purpose="batch", part_size=100, md5=hashlib.md5(CONTENT).hexdigest()
        )
        assert (upload.status, upload.file.filename, upload.file.bytes) == ("completed", "chunked.jsonl", len(CONTENT))
        assert client.files.retrieve(upload.file.id) == upload.file
        assert client.files.content(upload.file.id).content == CONTENT
        client.files.delete(upload.file.id)

    upload = client.uploads.create(
        filename="a.txt", purpose="user_data", bytes=2, mime_type="text/plain", expires_after=EXPIRES
    )
    assert (upload.status, upload.file) == ("pending", None)
    assert upload.expires_at - upload.created_at == 3600
    late, early = (client.uploads.parts.create(upload.id, data=data) for data in (b"b", b"a"))
    assert (late.object, late.upload_id) == ("upload.part", upload.id)
    upload = client.uploads.complete(upload.id, part_ids=[early.id, late.id])
    assert upload.file.expires_at - upload.file.created_at == 3600
    client.files.delete(upload.file.id)

    upload = client.uploads.create(filename="a.txt", purpose="user_data", bytes=2, mime_type="text/plain")
    assert client.uploads.cancel(upload.id).status == "cancelled"


def check_batches(client):
    batch = submit(client, [line("a"), line("b")], metadata={"job": "night"}, output_expires_after=EXPIRES)
    assert (batch.status, batch.metadata) == ("validating", {"job": "night"})
    assert batch.expires_at - batch.created_at == 86400
    done = finish(client, batch.id)
    assert (done.status, done.request_counts.completed, done.usage.total_tokens) == ("completed", 2, 20)
    output = client.files.retrieve(done.output_file_id)
    assert (output.purpose, output.expires_at - output.created_at) == ("batch_output", 3600)
    assert custom_ids(lines_of(client, output.id)) == ["a", "b"]
    raw = client.batches.with_raw_response.retrieve(done.id)
    assert (raw.parse(), raw.parse()._request_id) == (done, raw.headers["x-request-id"])

    running = submit(client, [line("c"), line("hangs")])
    eventually(lambda: client.batches.retrieve(running.id).status == "in_progress", what="its run")
    assert client.batches.cancel(running.id).status == "cancelling"
    cancelled = finish(client, running.id)
    assert (cancelled.status, bool(cancelled.error_file_id)) == ("cancelled", True)
    assert client.batches.cancel(running.id) == cancelled

    missing = client.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h")
    failed = finish(client, missing.id)
    assert (failed.status, failed.errors.object, failed.errors.data[0].line) == ("failed", "list", None)

    newest_first = [failed, cancelled, done]
    for limit in (1, 2, 3):
        assert list(client.batches.list(limit=limit)) == newest_first
    assert list(client.batches.list(after=cancelled.id)) == [done]


def check_models(client):
    models = list(client.models.list())
    assert [model.id for model in models] == ["gemma3:12b", "hf.co/user/repo:Q4"]
    assert [client.models.retrieve(model.id) for model in models] == models


ZIP = b"PK\x03\x04" + bytes(26)


def check_refusals(client, sent):
    completed = next(batch for batch in client.batches.list() if batch.status == "completed")
    calls = [
        (openai.NotFoundError, "id", None, lambda: client.files.retrieve("file-none")),
        (openai.NotFoundError, "id", None, lambda: client.files.content("file-none")),
        (openai.NotFoundError, "id", None, lambda: client.files.delete("file-none")),
        (openai.NotFoundError, "id", None, lambda: client.uploads.cancel("upload_none")),
        (openai.NotFoundError, None, None, lambda: client.batches.retrieve("batch_none")),
        (openai.NotFoundError, "model", "model_not_found", lambda: client.models.retrieve("nope:1b")),
        (openai.BadRequestError, "batch_id", "invalid_value", lambda: client.batches.cancel("nope")),
        (openai.BadRequestError, "after", "invalid_value", lambda: client.files.list(after="file-none")),
        (openai.BadRequestError, "limit", "integer_above_max_value", lambda: client.batches.list(limit=101)),
        (openai.BadRequestError, "purpose", "invalid_value", lambda: client.files.create(file=b"a", purpose="fun")),
        (openai.BadRequestError, None, None, lambda: client.files.create(file=("a.jsonl", ZIP), purpose="batch")),
        (
            openai.BadRequestError,
            "endpoint",
            "invalid_value",
            lambda: client.batches.create(input_file_id="file-none", endpoint="/v1/fun", completion_window="24h"),
        ),
        # The client would send this one three times, were it not told that it is for good.
        (openai.ConflictError, None, None, lambda: client.batches.cancel(completed.id)),
    ]
    for kind, param, code, call in calls:
        sent.clear()
        with pytest.raises(kind) as caught:
            call()
        error = caught.value
        assert (error.param, error.code, error.type) == (param, code, "invalid_request_error"), error
        assert error.request_id.startswith("req_")
        assert error.body["message"] in error.message
        assert len(sent) == 1, error


async def check_async(options):
    async with openai.AsyncOpenAI(**options) as client:
        assert len([model async for model in client.models.list()]) == 2
        upload = await client.uploads.upload_file_chunked(
            file=CONTENT, filename="a.jsonl", bytes=len(CONTENT), mime_type="txt", purpose="batch", part_size=200
        )
        file = await client.files.create(file=("a.jsonl", CONTENT), purpose="batch")
        for input_file in (file, upload.file):
            batch = await client.batches.create(input_file_id=input_file.id, endpoint=CHAT, completion_window="24h")
            async with asyncio.timeout(60):
                while batch.status not in FINAL:
                    await asyncio.sleep(0.05)
                    batch = await client.batches.retrieve(batch.id)
            assert batch.request_counts.completed == 3
            assert len((await client.files.content(batch.output_file_id)).text.splitlines()) == 3
        assert (await client.files.wait_for_processing(file.id)).status == "processed"
        listed = [each.id async for each in client.batches.list(limit=2)]
        assert (len(listed), listed[0]) == (5, batch.id)
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(batch.id)


def check_keys(client, server):
    made = subprocess.run(
        [sys.executable, "manage.py", "create_api_key", "laptop"],
        cwd=ROOT,
        env=os.environ | server.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    with pytest.raises(openai.AuthenticationError) as caught:
        client.files.list()
    error = caught.value
    assert (error.code, error.param, error.type) == ("invalid_api_key", None, "invalid_request_error")
    assert error.request_id.startswith("req_")
    assert list(client.with_options(api_key=made.stdout.strip()).files.list())
