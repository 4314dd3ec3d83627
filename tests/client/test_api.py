"""The client of the API at what goes wrong between it and the server, played by `responses`."""

import hashlib
import io

import pytest
import requests
import responses

from client.api import Server, normalized
from client.trouble import Away, Refused, Trouble

BASE = "http://box:4080"
BATCH = f"{BASE}/v1/batches/batch_1"


@pytest.fixture
def server():
    with responses.RequestsMock() as played:
        server = Server(BASE, "sk-key", patience_s=0)
        server.played = played
        yield server


@pytest.fixture
def patient(server, monkeypatch):
    """One that tries again; it waits for nothing."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    server.patience_s = 60
    server.waited = waited
    return server


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://box:4080", BASE),
        ("box:4080", BASE),
        ("http://box:4080/", BASE),
        ("http://box:4080/v1/", BASE),
        (" https://box/ollama/v1", "https://box/ollama"),
        ("http://[::1]:4080", "http://[::1]:4080"),
    ],
)
def test_an_address_is_taken_as_people_write_it(given, base):
    assert normalized(given) == base


@pytest.mark.parametrize("given", ["", "http://", "ftp://box", "http://box:port", "http://box:99999", "http://box?a=b"])
def test_what_is_no_address_is_refused(given):
    with pytest.raises(Trouble, match="expected an address such as"):
        normalized(given)


CONTENT = f"{BASE}/v1/files/file-1/content"


def test_a_download_that_leads_elsewhere_is_followed_without_the_key(server):
    there = "http://minio:9000/batches/ab/file-1?X-Amz-Signature=abc"
    server.played.get(CONTENT, status=302, headers={"Location": there})
    server.played.get(there, body=b"a\nb\n")
    assert list(server.lines("file-1")) == [b"a", b"b"]
    first, second = (call.request.headers for call in server.played.calls)
    assert first["Authorization"] == "Bearer sk-key"
    assert "Authorization" not in second


def test_a_download_that_leads_to_the_same_path_is_a_proxy_that_is_named(server):
    server.played.get(CONTENT, status=301, headers={"Location": CONTENT.replace("http:", "https:")})
    with pytest.raises(Trouble, match="Name that address with --server"):
        list(server.lines("file-1"))


def test_the_key_is_sent(server):
    server.played.get(BATCH, json={"id": "batch_1"})
    assert server.batch("batch_1") == {"id": "batch_1"}
    assert server.played.calls[0].request.headers["Authorization"] == "Bearer sk-key"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": 404, "json": {"error": {"message": "No batch.", "code": "gone"}}}, "No batch."),
        ({"status": 401, "json": {"error": {"message": "Bad key."}}}, "Bad key. (the key is read from OPENAI_API_KEY)"),
        ({"status": 500, "body": "<html>"}, "answered with status 500."),
        ({"status": 500, "json": {"error": "text"}}, "answered with status 500."),
        ({"status": 502, "body": "Bad gateway"}, "answered with status 502."),
        ({"status": 200, "body": "<html>"}, "answered with something else than JSON"),
        ({"status": 200, "json": []}, "answered with something else than JSON"),
        ({"status": 301, "headers": {"Location": "https://box/v1"}}, "redirects to https://box/v1"),
        ({"body": requests.ConnectionError()}, "does not answer."),
        ({"body": requests.ReadTimeout()}, "does not answer."),
    ],
)
def test_an_answer_that_is_none_is_explained(server, answer, said):
    server.played.get(BATCH, **answer)
    with pytest.raises(Trouble) as caught:
        server.batch("batch_1")
    assert said in caught.value.message


def test_a_refusal_keeps_its_status_and_code(server):
    server.played.get(BATCH, status=404, json={"error": {"message": "No batch.", "code": "gone"}})
    with pytest.raises(Refused) as caught:
        server.batch("batch_1")
    assert (caught.value.status, caught.value.code) == (404, "gone")


@pytest.mark.parametrize(
    "fault",
    [
        {"body": requests.ConnectionError()},
        {"status": 502, "body": "away"},
        {"status": 503, "headers": {"Retry-After": "3"}},
    ],
)
def test_a_server_that_restarts_is_asked_again(patient, fault):
    patient.played.get(BATCH, **fault)
    patient.played.get(BATCH, **fault)
    patient.played.get(BATCH, json={"id": "batch_1"})
    assert patient.batch("batch_1")["id"] == "batch_1"
    assert patient.waited == ([3.0, 3.0] if "headers" in fault else [1.0, 1.0])


def test_a_post_is_sent_again_under_one_key(patient):
    """So that the server knows the second for the first, whose answer was lost."""
    patient.played.post(f"{BASE}/v1/batches", body=requests.ConnectionError())
    patient.played.post(f"{BASE}/v1/batches", json={"id": "batch_1"})
    patient.post("batches", {})
    patient.played.post(f"{BASE}/v1/batches", json={"id": "batch_2"})
    patient.post("batches", {})
    first, again, another = (call.request.headers["Idempotency-Key"] for call in patient.played.calls)
    assert first == again != another


def test_what_the_server_refuses_for_good_is_not_sent_again(patient):
    """Its 503 says in its own envelope that it will not change in a moment."""
    patient.played.get(BATCH, status=503, json={"error": {"message": "The disk is full."}})
    with pytest.raises(Refused, match="The disk is full"):
        patient.batch("batch_1")
    assert patient.waited == []


def test_an_upload_is_not_sent_again_by_itself(patient, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("{}\n")
    patient.played.post(f"{BASE}/v1/files", body=requests.ConnectionError())
    with pytest.raises(Away, match="during the upload"):
        patient.upload(path)
    assert len(patient.played.calls) == 1


@pytest.mark.parametrize("name", ["in.jsonl", 'a"b.jsonl', "a\nb.jsonl", "größe.jsonl"])
def test_an_upload_is_a_form_with_the_file_in_it(server, tmp_path, name):
    from werkzeug.formparser import parse_form_data

    path = tmp_path / name
    path.write_bytes(b"{}\n" * 1000)
    received = []

    def receive(request):
        body = b"".join(request.body)
        environ = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), "REQUEST_METHOD": "POST"}
        _, fields, files = parse_form_data(environ | {"CONTENT_TYPE": request.headers["Content-Type"]})
        with files["file"].stream as content:
            received.append((fields["purpose"], content.read()))
        return 200, {}, '{"id": "file-1"}'

    server.played.add_callback(responses.POST, f"{BASE}/v1/files", receive)
    assert server.upload(path, digest=hashlib.sha256(path.read_bytes()).hexdigest()) == {"id": "file-1"}
    assert received == [("batch", path.read_bytes())]


def test_a_file_that_changes_while_it_is_sent_makes_no_batch(server, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("{}\n")

    def receive(request):
        b"".join(request.body)
        return 200, {}, '{"id": "file-1"}'

    server.played.add_callback(responses.POST, f"{BASE}/v1/files", receive)
    server.played.delete(f"{BASE}/v1/files/file-1", json={"deleted": True})
    with pytest.raises(Trouble, match="changed while it was sent"):
        server.upload(path, digest="0" * 64)


def test_a_list_is_read_page_by_page(server):
    url = f"{BASE}/v1/batches"
    page = {"data": [{"id": "a"}, {"id": "b"}], "has_more": True, "last_id": "b"}
    server.played.get(url, json=page)
    server.played.get(url, json={"data": [{"id": "c"}], "has_more": False, "last_id": "c"})
    assert [each["id"] for each in server.objects("batches")] == ["a", "b", "c"]
    assert "after=b" in server.played.calls[1].request.url


def test_a_list_ends_where_no_more_was_wanted(server):
    server.played.get(f"{BASE}/v1/batches", json={"data": [{"id": "a"}], "has_more": True, "last_id": "a"})
    assert [each["id"] for each in server.objects("batches", most=1)] == ["a"]
    assert "limit=1" in server.played.calls[0].request.url


def test_finished_lines_come_with_where_to_go_on(server):
    headers = {"X-Incomplete": "true", "X-Last-Line": "7"}
    server.played.get(f"{BATCH}/output", body=b'{"a": "\xe2\x80\xa8"}\n{}\n', headers=headers)
    chunk = server.finished_lines("batch_1", after=5)
    assert (list(chunk.lines), chunk.last_line, chunk.is_incomplete) == ([b'{"a": "\xe2\x80\xa8"}', b"{}"], 7, True)


@pytest.mark.parametrize("body", ["<html>", "[]", '{"service": "other"}', '"ollama-batch-server"'])
def test_another_program_at_that_port_is_no_batch_server(server, body):
    server.played.get(f"{BASE}/health", body=body)
    assert server.health() is None
