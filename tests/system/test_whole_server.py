"""The official client against a whole server: real gunicorn, workers and broker; the model server is the fake one."""

import http.client
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import openai
import pytest
import redis
import requests
from kombu import Connection

from batchserver.celery import app
from common.ids import derived_file_id
from files_api.models import File, stored_name
from tests.conftest import CHAT, custom_ids, jsonl, line
from tests.fake_backend import Action, FakeBackend
from tests.stack import eventually, free_port
from tests.whole_server import client_of, finish, lines_of, submit


def check(client, batch, wanted):
    """Every custom_id exactly once over both files, in input order, and counts that add up."""
    output, errors = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    assert sorted(custom_ids(output) + custom_ids(errors)) == sorted(wanted)
    order = {custom_id: number for number, custom_id in enumerate(wanted)}
    for each in (output, errors):
        assert custom_ids(each) == sorted(custom_ids(each), key=order.__getitem__)
    counts = batch.request_counts
    assert (counts.total, counts.completed) == (len(wanted), len(output))


def test_a_batch_from_upload_to_download(stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url)
    client = client_of(server)
    fake.always("b", Action(400, {"error": {"message": "no", "type": "x", "param": None, "code": None}}))

    batch = submit(client, [line(each) for each in "abc"], metadata={"k": "v"})
    assert (batch.status, batch.metadata) == ("validating", {"k": "v"})
    done = finish(client, batch.id)

    assert done.status == "completed"
    check(client, done, ["a", "b", "c"])
    assert done.request_counts.failed == 1
    assert (done.usage.input_tokens, done.usage.output_tokens) == (14, 6)
    assert [each.id for each in client.batches.list(limit=1)] == [batch.id]
    assert {each.purpose for each in client.files.list()} == {"batch", "batch_output"}
    assert client.files.delete(done.input_file_id).deleted


def test_a_worker_takes_one_message_at_a_time_and_then_asks_the_broker_nothing_about_it(stack, fake):
    """An acknowledgement not answered, since the broker hangs at that moment, would stop the worker for good."""
    fake.delay_s = 6.0
    server = stack(OLLAMA_BASE_URL=fake.url, MAX_CONCURRENT_BATCHES="1")
    client = client_of(server)
    batch = submit(client, [line("a")])
    eventually(lambda: fake.seen, what="a worker that is busy")
    with (
        closing(redis.Redis(unix_socket_path=str(server.broker_socket))) as broker,
        Connection(f"redis+socket://{server.broker_socket}") as connection,
    ):
        sent = [app.send_task("batches.tasks.drive", queue="inference", connection=connection).id for _ in range(3)]
        time.sleep(2.5)
        waiting = [json.loads(each)["headers"]["id"] for each in broker.lrange("inference", 0, -1)]
        assert set(sent) <= set(waiting)  # for a worker that is free
        assert finish(client, batch.id).status == "completed"
        eventually(lambda: not broker.llen("inference"), what="a worker that is free")
        asked = {name.removeprefix("cmdstat_") for name in broker.info("commandstats")}
    assert "brpop" in asked
    assert not asked & {"zrem", "hdel"}


def test_a_bad_file_fails_with_every_bad_line(stack, fake):
    client = client_of(stack(OLLAMA_BASE_URL=fake.url))
    done = finish(client, submit(client, [line("a"), line("a"), line("b", method="GET")]).id)
    assert done.status == "failed"
    assert [(error.line, error.code) for error in done.errors.data] == [
        (2, "duplicate_custom_id"),
        (3, "invalid_method"),
    ]
    assert fake.seen == []


def test_a_running_batch_is_cancelled_within_seconds(stack, fake):
    client = client_of(stack(OLLAMA_BASE_URL=fake.url))
    fake.always("b", Action(hang=True))
    batch = submit(client, [line(each) for each in "abc"])
    eventually(lambda: "b" in fake.arrived(), what="the second request")

    started = time.monotonic()
    assert client.batches.cancel(batch.id).status == "cancelling"
    done = finish(client, batch.id)

    assert time.monotonic() - started < 10
    assert done.status == "cancelled"
    check(client, done, ["a", "b", "c"])
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(_completed(client).id)


def _completed(client):
    return finish(client, submit(client, [line("z")]).id)


def test_a_result_file_that_cannot_be_written_is_waited_for_quietly(stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url)
    client = client_of(server)
    fake.always("b", Action(hang=True))
    batch = submit(client, [line(each) for each in "ab"])
    eventually(lambda: "b" in fake.arrived(), what="the second request")
    name = stored_name(File(id=derived_file_id(batch.id, "output")), "")
    taken = [server.data_dir / "files" / f"{name}.{token}" for token in range(1, 300)]
    for path in taken:
        (path / "something").mkdir(parents=True)
    client.batches.cancel(batch.id)
    progress = f"{server.base}/v1/batches/{batch.id}/progress"
    reason = eventually(lambda: requests.get(progress, timeout=10).json()["waiting_for"], what="the stall")
    assert reason.startswith("The result files cannot be written: Is a directory.")
    said = len(server.log.read_text().splitlines())
    time.sleep(5)
    assert requests.get(progress, timeout=10).json()["waiting_for"] == reason
    health = server.health()
    assert (health["status"], health["reason"]) == ("waiting", f"1 batch is stalled: {reason}")
    written = server.log.read_text().splitlines()[said:]
    assert len([each for each in written if "/health" not in each and "/progress" not in each]) <= 1, written
    for path in taken:
        shutil.rmtree(path)
    done = finish(client, batch.id, within_s=20)
    assert done.status == "cancelled"
    check(client, done, ["a", "b"])
    eventually(lambda: server.health()["status"] == "ok", what="a server in order")


def test_a_batch_created_while_ollama_is_down_waits_and_says_why(stack):
    port = free_port()
    server = stack(OLLAMA_BASE_URL=f"http://127.0.0.1:{port}")
    client = client_of(server)
    batch = submit(client, [line("a")])
    eventually(lambda: client.batches.retrieve(batch.id).status == "in_progress", what="validation")
    time.sleep(1)
    assert client.batches.retrieve(batch.id).status == "in_progress"
    assert "Start it: systemctl start ollama" in server.health()["reason"]

    with FakeBackend(port) as fake:
        assert finish(client, batch.id).request_counts.completed == 1
        assert fake.arrived() == ["a"]


def test_a_batch_created_before_any_worker_reported_works(stack, fake, tmp_path):
    server = stack(OLLAMA_BASE_URL=fake.url)
    server.stop()
    server.start(ready=False)
    client = client_of(server)
    eventually(lambda: server.health() is not None, what="an answer")
    batch = submit(client, [line("a")])
    assert finish(client, batch.id).request_counts.completed == 1


def test_uploads_of_unknown_length_arrive_whole(stack, fake):
    """As Node's streams send them: chunked, without a Content-Length, the file before its purpose."""
    server = stack(OLLAMA_BASE_URL=fake.url, MAX_FILE_BYTES=str(2**20))
    content = jsonl([line(f"id-{n}") for n in range(500)])

    status, _, file = chunked(server, form(content, file_first=True))
    assert (status, file["bytes"]) == (200, len(content))
    assert requests.get(f"{server.base}/v1/files/{file['id']}/content", timeout=10).content == content

    for body, expected in (
        (form(b"x" * 2**21, file_first=False), 413),
        (form(b"", file_first=True), 400),
        (b"--b\r\nbroken", 400),
        (b"", 400),
    ):
        status, content_type, refusal = chunked(server, body)
        assert (status, content_type) == (expected, "application/json")
        assert set(refusal["error"]) == {"message", "type", "param", "code"}
    assert len(requests.get(f"{server.base}/v1/files", timeout=10).json()["data"]) == 1
    assert list((server.data_dir / "files" / ".incoming").iterdir()) == []

    body = json.dumps({"endpoint": CHAT}).encode()
    status, _, refusal = chunked(server, body, "/v1/batches", "application/json")
    assert (status, refusal["error"]["param"]) == (400, "input_file_id")


def form(content, *, file_first):
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + content + b"\r\n"
    purpose = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    return (file + purpose if file_first else purpose + file) + b"--b--\r\n"


def chunked(server, body, path="/v1/files", content_type="multipart/form-data; boundary=b"):
    pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request("POST", path, pieces, {"Content-Type": content_type}, encode_chunked=True)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], json.loads(answer.read())


def test_requests_are_served_while_an_upload_crawls(stack, fake):
    server = stack(OLLAMA_BASE_URL=fake.url)

    def crawl():
        def pieces():
            for piece in (form(jsonl([line("a")]), file_first=True)[start : start + 20] for start in range(0, 300, 20)):
                yield piece
                time.sleep(0.1)

        return requests.post(
            f"{server.base}/v1/files",
            data=pieces(),
            headers={"Content-Type": "multipart/form-data; boundary=b"},
            timeout=30,
        )

    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(crawl) for _ in range(4)]
        started = time.monotonic()
        for _ in range(10):
            assert requests.get(f"{server.base}/v1/files", timeout=10).status_code == 200
        assert time.monotonic() - started < 5
        for each in slow:
            each.result()
