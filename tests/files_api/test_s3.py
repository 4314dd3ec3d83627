"""Files in a real S3 server, over HTTP: what is stored and read, by how many requests, and what becomes of it while the
server is slow, busy, away, or refuses the key."""

import errno
import hashlib
import io
import shutil
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta

import pytest
import requests
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone
from rest_framework.test import APIClient
from urllib3.exceptions import HTTPError

from batches import results, tasks
from batches.models import Batch, Lease, Line, LineState
from batches.status import conditions, health
from batchserver import checks
from common import waits
from common.disk import RemoteError, trouble
from files_api import retention
from files_api.models import File
from files_api.s3 import bucket, errors, reading, spans, writing
from files_api.storage import file_storage, temporary_file
from tests import s3 as servers
from tests.conftest import at_once, custom_ids, jsonl, line, needs, several_connections, use_bucket
from tests.fake_backend import Action
from tests.s3 import BUCKET, BUSY, KEY, SECRET, Fault, Proxy

pytestmark = pytest.mark.slow  # together; a pass on Postgres would show nothing more
PART = writing.PART_BYTES


@pytest.fixture
def inside(s3, s3_server):
    """The bucket, seen from beside."""
    return Inside(servers.client(s3_server.url), default_storage.location)


class Inside:
    def __init__(self, client, prefix):
        self._client = client
        self._below = {"Bucket": BUCKET, "Prefix": f"{prefix}/"}

    def names(self):
        found = self._client.list_objects_v2(**self._below).get("Contents", ())
        return {each["Key"].removeprefix(self._below["Prefix"]) for each in found}

    def uploads(self):
        return [each["UploadId"] for each in self._client.list_multipart_uploads(**self._below).get("Uploads", ())]

    def put(self, name, content):
        self._client.put_object(Bucket=BUCKET, Key=self._below["Prefix"] + name, Body=content)

    def begin(self, name):
        self._client.create_multipart_upload(Bucket=BUCKET, Key=self._below["Prefix"] + name)


def send(api, content, **headers):
    return api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("a.jsonl", content)}, **headers)


def lines_of(size, count=2000):
    """JSON lines of about so many bytes."""
    return jsonl([line(f"id-{number}", body={"filler": "x" * (size // count)}) for number in range(count)])


def worded(custom_id):
    """A line of 2 kB; lines are sent in the order of their texts."""
    return line(custom_id, body={"messages": [{"role": "user", "content": custom_id + "x" * 2000}]})


def reads(proxy):
    return [each for each in proxy.asked if each.is_for_bytes]


def refusal(answer):
    assert answer.status_code >= 400, answer.content
    return answer.json()["error"]["message"]


def is_clear(text, proxy):
    """It names the endpoint and the bucket, and no key."""
    return proxy.url in text and BUCKET in text and KEY not in text and SECRET not in text


def only(method, fault):
    return lambda asked: fault if asked.method == method else None


# What both storages do alike


@pytest.fixture(params=["disk", "s3"])
def storage(request, processes):
    if request.param == "s3":
        request.getfixturevalue("s3")
    return file_storage()


def test_a_storage_keeps_what_it_is_given(storage):
    content = bytes(range(256)) * 4096
    assert default_storage.save("ab/name", ContentFile(content)) == "ab/name"
    with default_storage.open("ab/name", "rb") as stream:
        assert stream.read() == content
        stream.seek(1000)
        assert stream.read(24) == content[1000:1024]
        stream.seek(-3, io.SEEK_END)
        assert (stream.read(), stream.read(), stream.tell()) == (content[-3:], b"", len(content))
    assert (default_storage.exists("ab/name"), default_storage.exists("ab/none")) == (True, False)
    assert default_storage.size("ab/name") == len(content)
    assert default_storage.save("ab/name", ContentFile(b"other")) == "ab/name"  # replaced
    with default_storage.open("ab/name") as stream:
        assert stream.read() == b"other"
    default_storage.delete("ab/name")
    default_storage.delete("ab/name")
    assert not default_storage.exists("ab/name")


def test_a_storage_has_an_empty_file(storage):
    default_storage.save("ab/empty", ContentFile(b""))
    with default_storage.open("ab/empty") as stream:
        assert (stream.read(), stream.readline()) == (b"", b"")


def test_what_is_not_there_is_a_missing_file(storage):
    with pytest.raises(FileNotFoundError):
        default_storage.open("ab/none")


def test_a_storage_lists_what_it_has(storage):
    for name in ("root", "ab/one", "ab/two", "cd/three"):
        default_storage.save(name, ContentFile(b"x"))
    directories, files = default_storage.listdir("")
    assert ({*directories} - {".incoming"}, files) == ({"ab", "cd"}, ["root"])
    assert sorted(default_storage.listdir("ab")[1]) == ["one", "two"]
    assert storage.directories() == ["ab", "cd"]
    written_at = storage.written_at("ab")
    assert set(written_at) == {"ab/one", "ab/two"}
    assert all(abs(at - time.time()) < 60 for at in written_at.values())
    assert storage.written_at("none") == {}


def test_what_is_not_saved_is_not_there(storage):
    with temporary_file("ab/file") as file:
        file.write(b"x" * (PART + 5))
    assert not default_storage.exists("ab/file")


def test_a_file_is_measured_while_it_is_written(storage):
    content = b"0123456789" * (PART // 8)
    with temporary_file("ab/file") as file:
        for begin in range(0, len(content), 1_000_001):
            file.write(content[begin : begin + 1_000_001])
        file.sync()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        file.head.seek(0)
        assert file.head.read(PART) == content[:PART]
        default_storage.save("ab/file", file)
    with default_storage.open("ab/file") as stream:
        assert hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def test_spans_are_read_at_any_place(storage, monkeypatch):
    monkeypatch.setattr(spans, "BLOCK_BYTES", 1000)
    content = bytes(number % 251 for number in range(10_000))
    default_storage.save("ab/file", ContentFile(content))
    found = storage.spans("ab/file")
    for offset, length in [(0, 10), (9_990, 10), (9_990, 20), (995, 10), (0, 10_000), (500, 0)]:
        assert found.read(offset, length) == content[offset : offset + length]
        assert found.has(offset, length)
    found.close()


def test_the_sweep_removes_old_bytes_without_a_row_and_no_others(db, storage, api, monkeypatch):
    kept = send(api, b"{}\n").json()["id"]
    directory = kept[5:7]
    for name in (f"{directory}/file-orphan", f"{directory}/{kept}.99"):
        default_storage.save(name, ContentFile(b"x"))
    MigrationRecorder.Migration.objects.update(applied=timezone.now() - timedelta(days=9))
    retention.sweep()
    assert len(storage.written_at(directory)) == 3
    monkeypatch.setattr(retention, "LEFTOVER_AGE_S", -60)
    retention.sweep()
    assert set(storage.written_at(directory)) == {f"{directory}/{kept}"}


# Uploads


def test_an_upload_streams_into_parts(api, s3, inside, settings):
    content = lines_of(2 * PART + 1000)
    file = send(api, content).json()
    assert [each.method for each in s3.asked] == ["POST", "PUT", "PUT", "PUT", "POST"]
    assert inside.names() == {f"{file['id'][5:7]}/{file['id']}"}
    assert list(settings.UPLOAD_DIR.iterdir()) == []
    assert b"".join(api.get(f"/v1/files/{file['id']}/content").streaming_content) == content
    row = File.objects.get()
    assert (row.bytes, row.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_first_part_is_sent_before_the_last_byte_came(api, s3, inside):
    with temporary_file("ab/file") as file:
        file.write(b"x" * (PART + 1))
        assert [each.method for each in s3.asked] == ["POST", "PUT"]
        assert len(inside.uploads()) == 1
        assert inside.names() == set()
    assert inside.uploads() == []


def test_a_small_upload_is_one_request(api, s3):
    assert send(api, b"{}\n").status_code == 200
    assert [each.method for each in s3.asked] == ["PUT"]


@pytest.mark.parametrize("begin", [b"no json\n", b"PK\x03\x04"])
def test_a_refused_upload_leaves_nothing(api, s3, inside, begin):
    assert send(api, begin + b"x" * (PART + 5)).status_code == 400
    assert send(api, begin).status_code == 400
    assert (inside.names(), inside.uploads()) == (set(), [])


def test_a_first_line_that_is_longer_than_a_part_is_left_to_validation(api, s3, create, work):
    batch = create(b'{"custom_id": "' + b"x" * PART + b"\n")
    work.validate(batch["id"])
    assert work.batch(batch["id"])["status"] == "failed"


def test_an_upload_that_is_too_large_or_breaks_off_leaves_nothing(api, s3, inside, settings):
    settings.MAX_FILE_BYTES = PART + 1000
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + b"{}\n" * (PART // 2)
    chunked = {"content_type": "multipart/form-data; boundary=b", "HTTP_TRANSFER_ENCODING": "chunked"}
    answer = api.generic("POST", "/v1/files", body, **chunked, **{"wsgi.input": io.BytesIO(body)})
    assert answer.status_code == 413

    class BreakingOff(io.BytesIO):
        def read(self, *args):
            if self.tell() > PART + 500_000:
                raise OSError("gone")
            return super().read(*args)

    settings.MAX_FILE_BYTES = 10 * PART
    answer = api.generic("POST", "/v1/files", body, **chunked, **{"wsgi.input": BreakingOff(body)})
    assert answer.status_code == 400
    assert (inside.names(), inside.uploads()) == (set(), [])


def test_uploads_in_parts_are_joined(api, s3, inside, create, work, backend):
    content = lines_of(PART + 5000, 50)
    begun = {"filename": "in.jsonl", "purpose": "batch", "bytes": len(content), "mime_type": "text/jsonl"}
    upload = api.post("/v1/uploads", begun, format="json").json()["id"]
    parts = [
        api.post(f"/v1/uploads/{upload}/parts", {"data": SimpleUploadedFile("p", piece)}).json()["id"]
        for piece in (content[:1000], content[1000:])
    ]
    assert inside.names() == {f"parts/{part}" for part in parts}
    file = api.post(f"/v1/uploads/{upload}/complete", {"part_ids": parts}, format="json").json()["file"]
    assert inside.names() == {f"{file['id'][5:7]}/{file['id']}"}
    assert b"".join(api.get(f"/v1/files/{file['id']}/content").streaming_content) == content


def test_no_transaction_is_open_while_the_storage_works(work, create, backend, api, s3):
    """It may take minutes, and others would wait for what the transaction locks."""
    ours, was_open = connections["default"], []
    backend.always("a", Action(status=400, body={"error": {"message": "no", "code": "odd"}}))
    once = {"HTTP_IDEMPOTENCY_KEY": "k"}
    s3.rule = lambda asked: was_open.append(ours.in_atomic_block)
    assert send(api, b"{}\n", **once).status_code == 200
    assert send(api, lines_of(PART + 1000), HTTP_IDEMPOTENCY_KEY="other").status_code == 200
    begun = {"filename": "in.jsonl", "purpose": "batch", "bytes": 3, "mime_type": "text/jsonl"}
    upload = api.post("/v1/uploads", begun, format="json", **once).json()["id"]
    part = api.post(f"/v1/uploads/{upload}/parts", {"data": SimpleUploadedFile("p", b"{}\n")}).json()["id"]
    assert api.post(f"/v1/uploads/{upload}/complete", {"part_ids": [part]}, format="json").status_code == 200
    batch = work.run(create([line("a")])["id"])["id"]
    assert api.post(f"/v1/batches/{batch}/retry", {}, format="json", **once).status_code == 200
    assert api.delete(f"/v1/batches/{batch}").status_code == 200
    assert len(was_open) > 10
    assert not any(was_open)


@several_connections
def test_an_upload_that_the_storage_takes_its_time_for_holds_up_nobody(transactional_db, s3, inside):
    """Not even the same upload that is sent again under its key: one of the two is stored, and both are answered."""
    is_there, may_go_on = threading.Event(), threading.Event()

    def hold_the_first(asked):
        if not is_there.is_set():
            is_there.set()
            assert may_go_on.wait(20)

    s3.rule = hold_the_first
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(at_once, 1, lambda: send(APIClient(), b"{}\n", HTTP_IDEMPOTENCY_KEY="k").json())
        assert is_there.wait(20)
        second = send(APIClient(), b"{}\n", HTTP_IDEMPOTENCY_KEY="k").json()
        assert not first.done()
        may_go_on.set()
        assert first.result() == [second]
    assert File.objects.get().pk == second["id"]
    assert inside.names() == {f"{second['id'][5:7]}/{second['id']}"}


def test_an_answer_that_is_lost_is_no_failure(api, s3):
    """The object is made, and nobody says so: what is sent again finds it there."""
    lost = []

    def lose(asked):
        if asked.method == "POST" and "uploadId" in asked.path and not lost:
            return lost.append(1) or Fault(cut_after=0)
        return None

    s3.rule = lose
    assert send(api, lines_of(PART + 1000)).status_code == 200
    assert lost


def test_two_writers_of_one_name_do_not_replace_each_other(s3):
    with temporary_file("ab/file") as first, temporary_file("ab/file") as second:
        first.write(b"first")
        second.write(b"second")
        default_storage.save("ab/file", first)
        with pytest.raises(RemoteError, match="already"):
            default_storage.save("ab/file", second)
    with default_storage.open("ab/file") as stream:
        assert stream.read() == b"first"


# Batches


def test_a_batch_goes_through(create, work, backend, s3, inside):
    names = [f"id-{number}" for number in range(30)]
    batch = work.run(create([line(name) for name in names])["id"])
    assert batch["status"] == "completed"
    assert custom_ids(work.content(batch["output_file_id"])) == names
    assert len(inside.names()) == 2


def test_lines_cost_a_request_for_each_stretch_and_none_for_each_line(create, work, backend, s3, monkeypatch):
    """They are sent in another order than they stand in the file."""
    monkeypatch.setattr(spans, "BLOCK_BYTES", 2**16)
    monkeypatch.setattr(reading, "FIRST_BYTES", 2**16)
    batch = create([worded(f"{number * 7919 % 400:03}") for number in range(400)])["id"]
    size = File.objects.get().bytes
    work.validate(batch)
    s3.asked.clear()
    work.in_flight = 16
    work.drive()
    assert Line.objects.filter(state=LineState.SUCCEEDED).count() == 400
    asked = reads(s3)
    assert len(asked) <= size // 2**16 + 1
    assert sum(each.size for each in asked) == size


def test_one_line_does_not_read_the_whole_file(create, work, backend, s3, monkeypatch):
    monkeypatch.setattr(spans, "BLOCK_BYTES", 2**16)
    batch = create([worded(f"{number:03}") for number in range(400)])["id"]
    work.validate(batch)
    Line.objects.exclude(custom_id="200").update(state=LineState.SUCCEEDED, http_status=200)
    s3.asked.clear()
    work.drive()
    assert sum(each.size for each in reads(s3)) <= 2**17


def test_validation_reads_a_file_in_few_requests(create, work, s3):
    batch = create(lines_of(3 * PART))["id"]
    s3.asked.clear()
    work.validate(batch)
    assert Line.objects.count() == 2000
    assert len(reads(s3)) <= 8


def test_results_are_there_at_once_or_not_at_all(create, work, backend, s3, inside, monkeypatch):
    monkeypatch.setattr(results, "PAGE", 10)
    batch = create([line(f"id-{number}") for number in range(30)])["id"]
    work.validate(batch)
    work.drive()
    before = inside.names()
    s3.rule = only("PUT", Fault(status=403, code="AccessDenied"))
    work.finalize(batch)
    assert Batch.objects.get().stall_reason.startswith("The result files cannot be written: The S3 storage")
    assert inside.names() == before
    s3.rule = lambda asked: None
    work.finalize(batch)
    assert len(work.content(work.batch(batch)["output_file_id"])) == 30


# Faults

FAULTS = {
    "busy": BUSY,
    "the key is refused": Fault(status=403, code="InvalidAccessKeyId"),
    "silent": Fault(hang=True),
    "dropped": Fault(drop=True),
}


def said(status, code=""):
    return ClientError({"Error": {"Code": code or str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Any")


@pytest.mark.parametrize(
    ("error", "number", "what", "is_of_settings"),
    [
        (said(503, "SlowDown"), errno.EAGAIN, "is overloaded (SlowDown)", False),
        (said(503), errno.EAGAIN, "is overloaded (503)", False),
        (said(500, "InternalError"), errno.EIO, "fails (InternalError)", False),
        (said(502), errno.EIO, "fails (502)", False),
        (said(400, "BadDigest"), errno.EIO, "fails (BadDigest)", False),
        (said(403, "AccessDenied"), errno.EACCES, "forbids it to this key (AccessDenied)", True),
        (said(403), errno.EACCES, "forbids it to this key (403)", True),
        (said(403, "SignatureDoesNotMatch"), errno.EACCES, "refuses the key or the secret", True),
        (said(400, "ExpiredToken"), errno.EACCES, "refuses the session token", True),
        (said(403, "RequestTimeTooSkewed"), errno.EACCES, "has another time than this machine", True),
        (said(404, "NoSuchBucket"), errno.ENODEV, "has no such bucket", True),
        (said(404), errno.ENODEV, "does not know what it is asked for (404)", True),
        (said(301, "PermanentRedirect"), errno.ENODEV, "has the bucket in another region", True),
        (said(404, "NoSuchKey"), errno.ENOENT, "does not have the object", False),
        (said(507), errno.ENOSPC, "has no room", False),
        (said(403, "QuotaExceeded"), errno.ENOSPC, "has no room", False),
        (said(412, "PreconditionFailed"), errno.ESTALE, "has another object under this name by now", False),
        (NoCredentialsError(), errno.EACCES, "asks for a key, and none is set", True),
        (EndpointConnectionError(endpoint_url="http://s3"), errno.ENOTCONN, "is not reached", False),
        (ConnectTimeoutError(endpoint_url="http://s3"), errno.ETIMEDOUT, "does not answer", False),
        (ReadTimeoutError(endpoint_url="http://s3"), errno.ETIMEDOUT, "does not answer in time", False),
        (SSLError(endpoint_url="http://s3", error="x"), errno.ENOTCONN, "is not reached by TLS", False),
        (ResponseStreamingError(error="x"), errno.EIO, "broke the connection off", False),
        (TimeoutError(), errno.ETIMEDOUT, "does not answer in time", False),
        (HTTPError("x"), errno.EIO, "cannot be asked (HTTPError)", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_are_told_as_those_of_a_disk(error, number, what, is_of_settings):
    told = errors.translated(error, "The S3 storage")
    assert (told.errno, told.is_of_settings) == (number, is_of_settings)
    assert told.strerror.startswith(f"The S3 storage {what}")
    assert trouble(told) == f"{told.strerror}. {told.advice}; it is tried again by itself."
    assert isinstance(told, FileNotFoundError) == (number == errno.ENOENT)


class Faulty:
    """What S3 does to every request, between `begin` and `end`. What hangs is given up sooner meanwhile: not otherwise,
    since a busy machine takes its time."""

    def __init__(self, proxy, fault, monkeypatch):
        self._proxy, self._fault, self._patch = proxy, fault, monkeypatch

    def begin(self):
        short = {"read_timeout": 0.2, "connect_timeout": 0.2}
        self._patch.setattr(bucket, "CONFIG", bucket.CONFIG | short)
        self._patch.setattr(bucket, "PROBE", bucket.PROBE | short)
        self._patch.setattr(reading, "PATIENCE_S", 0.3)
        self._patch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *args: 0.01)
        default_storage._requests._clients.clear()
        self._proxy.rule = lambda asked: self._fault

    def end(self):
        self._patch.undo()
        default_storage._requests._clients.clear()
        self._proxy.rule = lambda asked: None
        Batch.objects.update(retry_at=None)


@pytest.fixture(params=FAULTS)
def faulty(request, s3):
    with pytest.MonkeyPatch.context() as patch:
        yield Faulty(s3, FAULTS[request.param], patch)


def test_an_upload_is_told_what_is_wrong(api, faulty, s3, inside, caplog):
    faulty.begin()
    for content in (b"{}\n", lines_of(PART + 1000)):
        answer = send(api, content)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
        assert is_clear(refusal(answer), s3)
    assert SECRET not in caplog.text
    assert KEY not in caplog.text
    assert not File.objects.exists()
    assert inside.names() == set()


def test_a_storage_that_is_full_is_a_507(api, s3):
    s3.rule = only("PUT", Fault(status=507, code="XMinioStorageFull"))
    answer = send(api, b"{}\n")
    assert (answer.status_code, answer.headers["Retry-After"]) == (507, "30")
    assert "has no room" in refusal(answer)


def test_batches_wait_and_nothing_fails(create, work, backend, api, faulty, s3):
    batch = create([line(each) for each in "abc"])["id"]

    def is_told():
        reason = Batch.objects.get().stall_reason
        assert is_clear(reason, s3), reason
        assert reason in health.summary()["reason"]
        assert api.get(f"/v1/batches/{batch}/progress").json()["waiting_for"] == reason
        assert is_clear(conditions.by_disk()[0].reason, s3)

    faulty.begin()
    work.validate(batch)
    is_told()
    assert work.batch(batch)["status"] == "validating"
    faulty.end()
    work.validate(batch)
    assert work.batch(batch)["status"] == "in_progress"

    faulty.begin()
    work.drive()
    is_told()
    assert backend.arrived() == []
    faulty.end()
    work.drive()
    assert len(backend.arrived()) == 3

    faulty.begin()
    tasks.finalize(batch)
    is_told()
    faulty.end()
    work.finalize(batch)
    done = work.batch(batch)
    assert (done["status"], done["request_counts"]) == ("completed", {"total": 3, "completed": 3, "failed": 0})
    assert custom_ids(work.content(done["output_file_id"])) == list("abc")
    assert set(Line.objects.values_list("attempts", "lost_claims")) == {(0, 0)}
    assert conditions.by_disk() == []


def test_a_download_goes_on_where_the_connection_broke(api, s3):
    content = lines_of(2 * PART)
    file = send(api, content).json()["id"]
    s3.asked.clear()
    s3.rule = lambda asked: Fault(cut_after=700_000) if asked.is_for_bytes and len(reads(s3)) % 2 else None
    assert b"".join(api.get(f"/v1/files/{file}/content").streaming_content) == content
    assert len(reads(s3)) > 4


def test_validation_goes_on_where_the_connection_broke(create, work, s3):
    batch = create(lines_of(PART))["id"]
    s3.rule = lambda asked: Fault(cut_after=700_000) if asked.is_for_bytes and len(reads(s3)) % 2 else None
    work.validate(batch)
    assert (Line.objects.count(), Batch.objects.get().stalls) == (2000, 0)


def test_lines_are_sent_though_connections_break(create, work, backend, s3):
    batch = create([line(each) for each in "abc"])["id"]
    work.validate(batch)
    s3.rule = lambda asked: Fault(cut_after=200) if asked.is_for_bytes and len(reads(s3)) % 2 else None
    work.drive()
    assert len(backend.arrived()) == 3


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed(s3, inside, monkeypatch):
    monkeypatch.setattr(reading, "FIRST_BYTES", 1000)
    default_storage.save("ab/file", ContentFile(b"a" * 200_000))
    with default_storage.open("ab/file") as stream:
        assert stream.read(10) == b"a" * 10
        default_storage.save("ab/file", ContentFile(b"b" * 200_000))
        with pytest.raises(RemoteError, match="another object"):
            stream.read()


def test_a_slow_server_is_waited_for_under_the_lease(create, work, backend, s3, monkeypatch):
    """Each wait is longer than the lease is renewed after, and the lease is renewed meanwhile."""
    monkeypatch.setattr("batches.leases.RENEW_EVERY_S", 0.0)
    monkeypatch.setattr(waits, "EVERY_S", 0.05)
    batch = create([line("a")])["id"]
    renewed = []
    real = tasks.validation.leases.renew
    monkeypatch.setattr("batches.leases.renew", lambda lease: renewed.append(lease.purpose) or real(lease))
    s3.rule = lambda asked: Fault(delay_s=0.2)
    work.validate(batch)
    work.drive()
    work.finalize(batch)
    assert work.batch(batch)["status"] == "completed"
    assert min(renewed.count("validate"), renewed.count("finalize")) >= 3


def test_a_lease_that_is_lost_ends_the_wait(create, work, s3, monkeypatch):
    monkeypatch.setattr("batches.leases.RENEW_EVERY_S", 0.0)
    monkeypatch.setattr(waits, "EVERY_S", 0.05)
    batch = create([line("a")])["id"]
    s3.rule = lambda asked: (Lease.objects.all().delete() and None) or Fault(hang=True)
    started = time.monotonic()
    work.validate(batch)
    assert time.monotonic() - started < 5
    assert Batch.objects.get().stalls == 0


def test_the_drive_does_not_wait_for_the_server(create, work, backend, s3, monkeypatch):
    """While it hangs, the drive looks around as always, and ends when it is told to."""
    batch = create([line("a")])["id"]
    work.validate(batch)
    s3.rule = lambda asked: Fault(hang=True)
    started = time.monotonic()
    work.drive(should_stop=lambda: True)
    assert time.monotonic() - started < 3
    assert Line.objects.get().state == LineState.PENDING


# Downloads


def test_a_download_is_a_redirect_if_that_is_set(api, s3, settings):
    content = lines_of(100_000)
    file = send(api, content).json()["id"]
    settings.DOWNLOADS_BY_REDIRECT = True
    s3.asked.clear()
    answer = api.get(f"/v1/files/{file}/content")
    assert (answer.status_code, answer.headers["Cache-Control"], s3.asked) == (302, "no-store", [])
    found = requests.get(answer.headers["Location"], timeout=10)
    assert (found.status_code, found.content) == (200, content)
    assert found.headers["Content-Disposition"] == 'attachment; filename="a.jsonl"'
    assert requests.get(answer.headers["Location"].replace(file, "file-other"), timeout=10).status_code in (403, 404)
    assert SECRET not in answer.headers["Location"]
    whole = api.head(f"/v1/files/{file}/content")
    assert (whole.status_code, whole.headers["Content-Length"]) == (200, str(len(content)))


def test_a_download_from_the_disk_is_no_redirect(api, settings):
    file = send(api, b"{}\n").json()["id"]
    settings.DOWNLOADS_BY_REDIRECT = True
    assert api.get(f"/v1/files/{file}/content").getvalue() == b"{}\n"


# What is left over


def test_old_multipart_uploads_are_given_up(db, s3, inside, monkeypatch):
    inside.begin("ab/file-1")
    retention.sweep()
    assert len(inside.uploads()) == 1
    monkeypatch.setattr(retention, "LEFTOVER_AGE_S", -60)
    use_bucket_again()
    retention.sweep()
    assert inside.uploads() == []


def use_bucket_again():
    """As another process does."""
    default_storage._looked_for_uploads_at = default_storage._listed_at = float("-inf")


def test_a_list_has_all_its_pages(s3, inside, monkeypatch):
    for number in range(12):
        inside.put(f"ab/{number}", b"")
    real = default_storage._requests.client().get_paginator

    class SmallPages:
        def __init__(self, operation):
            self._real = real(operation)

        def paginate(self, **parameters):
            return self._real.paginate(**parameters, PaginationConfig={"PageSize": 5})

    monkeypatch.setattr(default_storage._requests.client(), "get_paginator", SmallPages)
    assert len(file_storage().written_at("ab")) == 12
    assert len(default_storage.listdir("ab")[1]) == 12


@pytest.mark.parametrize("faulty", ["silent"], indirect=True)
def test_a_sweep_asks_a_server_that_is_away_once(api, s3, faulty):
    for _ in range(3):
        file = send(api, b"{}\n").json()["id"]
        File.objects.filter(pk=file).update(deleted_at=timezone.now())
    faulty.begin()
    s3.asked.clear()
    with pytest.raises(RemoteError):
        retention.sweep()
    assert len({each.path for each in s3.asked}) == 1
    faulty.end()
    retention.sweep()
    assert not File.objects.exclude(content="").exists()


# The start


def problems():
    return [(each.id, each.msg, each.hint) for each in checks.the_bucket_can_be_used()]


def test_a_bucket_that_is_in_order_has_no_problem(s3, inside):
    assert problems() == []
    assert inside.names() == set()


@pytest.mark.parametrize(
    ("options", "what", "advice"),
    [
        ({"secret_key": "wrong"}, "refuses the key or the secret", "AWS_SECRET_ACCESS_KEY"),
        ({"access_key": "unknown"}, "refuses the key or the secret", "AWS_ACCESS_KEY_ID"),
        ({"bucket_name": "none"}, "has no such bucket", "AWS_STORAGE_BUCKET_NAME"),
    ],
)
def test_a_wrong_setting_is_told_at_the_start(s3, settings, options, what, advice):
    use_bucket(settings, **settings.STORAGES["default"]["OPTIONS"] | options)
    [(name, message, hint)] = problems()
    assert name == "batchserver.E001"
    assert what in message
    assert advice in hint
    assert s3.url in message
    assert "wrong" not in message + hint


def test_a_key_that_may_not_write_is_told_at_the_start(s3):
    s3.rule = only("PUT", Fault(status=403, code="AccessDenied"))
    [(name, message, hint)] = problems()
    assert (name, "forbids it to this key" in message, "docs/s3.md" in hint) == ("batchserver.E001", True, True)


def test_a_server_that_is_away_is_a_warning_at_the_start(s3):
    s3.go_away()
    [(name, message, hint)] = problems()
    assert (name, "is not reached" in message, "wait" in hint) == ("batchserver.W003", True, True)


# HTTPS


@pytest.fixture(scope="module")
def certificates(processes, tmp_path_factory):
    """An authority, and what it signed: a certificate of this address, and one of another."""
    needs(shutil.which("openssl"), "openssl")
    directory = tmp_path_factory.mktemp("certificates")

    def make(name, *options):
        new = ["-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", *options]
        subprocess.run(["openssl", "req", *new, "-subj", f"/CN={name}"], cwd=directory, check=True, capture_output=True)

    make("authority", "-days", "2")
    signed = ["-CA", "authority.pem", "-CAkey", "authority.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    make("good", "-days", "1", "-addext", "subjectAltName=IP:127.0.0.1", *signed)
    make("elsewhere", "-days", "1", "-addext", "subjectAltName=DNS:minio.lan", *signed)
    return directory


@pytest.fixture
def by_tls(s3, s3_server, settings, certificates, monkeypatch):
    """The server is reached by TLS alone, and has the certificate of this name; `verify` is AWS_S3_VERIFY."""
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with ExitStack() as stack:

        def begin(name, **verify):
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
            proxy = stack.enter_context(Proxy(s3_server.port, tls))
            use_bucket(settings, **settings.STORAGES["default"]["OPTIONS"] | {"endpoint_url": proxy.url} | verify)
            return proxy

        yield begin


@pytest.mark.parametrize("how", ["AWS_S3_VERIFY", "AWS_CA_BUNDLE"])
def test_an_authority_of_ones_own_is_trusted_if_it_is_named(api, by_tls, certificates, monkeypatch, how):
    authority = str(certificates / "authority.pem")
    if how == "AWS_CA_BUNDLE":
        monkeypatch.setenv(how, authority)
    proxy = by_tls("good", **{"verify": authority} if how == "AWS_S3_VERIFY" else {})
    assert problems() == []
    content = lines_of(PART + 1000)
    file = send(api, content).json()["id"]
    assert b"".join(api.get(f"/v1/files/{file}/content").streaming_content) == content
    assert len(proxy.asked) > 5


@pytest.mark.parametrize(
    ("name", "is_named", "what", "advice"),
    [
        ("good", False, "certificate", "Let AWS_S3_VERIFY name a file with the authority that signed it"),
        ("elsewhere", True, "127.0.0.1", "Let AWS_S3_ENDPOINT_URL have a name that is in it"),
    ],
)
def test_a_certificate_that_is_not_trusted_is_told(api, by_tls, certificates, name, is_named, what, advice):
    """It does not pass by itself: the start ends, and a server that runs says so."""
    proxy = by_tls(name, **{"verify": str(certificates / "authority.pem")} if is_named else {})
    [(check, message, hint)] = problems()
    assert (check, hint) == ("batchserver.E001", f"{advice}.")
    assert "has no certificate that is trusted here (" in message
    assert what in message.partition("trusted here")[2]
    assert is_clear(message, proxy)
    assert message in conditions.by_disk()[0].reason
    answer = send(api, b"{}\n")
    assert (answer.status_code, message in refusal(answer)) == (503, True)
