"""Bodies of unknown length, as gunicorn's own reader gives them, and charsets that Django does not take."""

import hashlib
import io
import json
import sys

import pytest
from django.core import signals
from django.db import close_old_connections
from gunicorn.config import Config
from gunicorn.http.message import Request as GunicornRequest
from gunicorn.http.unreader import IterUnreader

from batchserver import wsgi

BATCH = b'{"input_file_id": "file-a", "endpoint": "/v1/embeddings", "completion_window": "24h"}'
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{"a": 1}\r\n--b--\r\n'
)
KINDS = {
    "json": ("/v1/batches", "application/json", BATCH),
    "form": ("/v1/files", "multipart/form-data; boundary=b", FORM),
}
LOGIN = ("/admin/login/", "application/x-www-form-urlencoded", b"username=a&password=b")
WEIGHTS = b"weights" * 1000
BLOB = (f"/api/blobs/sha256:{hashlib.sha256(WEIGHTS).hexdigest()}", "application/json", WEIGHTS)
# How a body goes on that is never whole.
BREAKS = [
    b"",  # the client is gone
    b"zz\r\n",
    b"-5\r\n",
    b"0x5\r\nabcde\r\n",
    b"\r\n",
    b"5;\x00\r\nabcde\r\n",
    b"5\r\nabcdeXX",
    b"5\r\nabc",
    b"f" * 9000,
    b"0\r\nno trailer\r\n\r\n",
    b"0\r\n",
]


@pytest.fixture(autouse=True)
def _one_connection():
    """As Django's own test client: a request ends no connection, which holds the transaction of the test."""
    for signal in (signals.request_started, signals.request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (signals.request_started, signals.request_finished):
        signal.connect(close_old_connections)


def chunk(content):
    return b"%x\r\n%s\r\n" % (len(content), content)


def post(kind, sent):
    """Status and body of the answer to a chunked request whose body is `sent`, byte for byte."""
    status, content = post_to(*(KINDS.get(kind) or BLOB)[:2], sent)
    return status, json.loads(content or b"null")


def post_to(path, content_type, sent):
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    request = GunicornRequest(Config(), IterUnreader(iter([head.encode(), sent])), ("127.0.0.1", 1))
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "CONTENT_TYPE": content_type,
        "HTTP_TRANSFER_ENCODING": "chunked",
        "wsgi.input": request.body,
        "wsgi.input_terminated": True,
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
    }
    begun = []
    answer = wsgi.application(environ, lambda status, headers: begun.append(status))
    content = b"".join(answer)
    answer.close()
    return int(begun[0][:3]), content


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunked_body_is_read(db, kind):
    content = KINDS[kind][2]
    status, _ = post(kind, chunk(content[:20]) + chunk(content[20:]) + b"0\r\n\r\n")
    assert status == 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", BREAKS)
def test_a_malformed_chunk_is_a_400_that_says_so(db, caplog, kind, end):
    status, body = post(kind, chunk(KINDS[kind][2]) + end)
    assert (status, body["error"]["message"]) == (400, "The request body broke off, or one of its chunks is malformed.")
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("end", [*BREAKS, b"5\nabcde\n", b" 5\r\nabcde\r\n", b"+5\r\nabcde\r\n", b"5_0\r\n"])
@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        LOGIN[:2],
        ("/admin/login/", "multipart/form-data; boundary=b"),
        ("/admin/batches/batch/", LOGIN[1]),
        ("/v1/chat/completions", "application/json"),
        ("/v1/batches/batch_1/cancel", "application/json"),
        ("/api/chat", "application/json"),
        ("/v1/uploads/upload_1/parts", "multipart/form-data; boundary=b"),
        ("/health", "application/json"),
        ("/v1/nope", "application/json"),
    ],
)
def test_a_malformed_chunk_is_no_fault_of_the_server_anywhere(db, caplog, path, content_type, end):
    status, _ = post_to(path, content_type, chunk(b"a=1") + end)
    assert 400 <= status < 500
    assert not [record for record in caplog.records if record.exc_info]


def test_a_models_file_is_handed_on_in_pieces(transactional_db, backend, settings):
    settings.MAX_LINE_BYTES = settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1024  # no limit of a body that is read whole
    assert post("blob", chunk(WEIGHTS[:20]) + chunk(WEIGHTS[20:]) + b"0\r\n\r\n") == (201, None)
    assert list(backend.blobs.values()) == [WEIGHTS]


@pytest.mark.parametrize("end", BREAKS)
def test_a_models_file_that_breaks_off_is_a_400_and_no_file(transactional_db, backend, end):
    status, body = post("blob", chunk(WEIGHTS) + end)
    assert (status, body["error"]) == (400, "The request body broke off, or one of its chunks is malformed.")
    assert backend.blobs == {}


def test_the_answer_to_a_head_has_no_body(transactional_db, backend):
    """Else gunicorn warns of each one, and each command of `ollama` sends one."""
    environ = {"REQUEST_METHOD": "HEAD", "PATH_INFO": "/", "SERVER_NAME": "localhost", "SERVER_PORT": "80"}
    begun = []
    body = wsgi.application(
        environ | {"wsgi.input": io.BytesIO(), "wsgi.url_scheme": "http", "wsgi.errors": sys.stderr},
        lambda status, headers: begun.extend([status, dict(headers)]),
    )
    assert (list(body), begun[0], begun[1]["Content-Length"]) == ([], "200 OK", str(len("Ollama is running")))


def ask(method, url, content_type):
    """Status, headers and body of the answer to a request with this Content-Type."""
    path, _, query = url.partition("?")
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": content_type,
        "CONTENT_LENGTH": "3",
        "wsgi.input": io.BytesIO(b"x=1"),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
    }
    begun = []
    answer = wsgi.application(environ, lambda status, headers: begun.extend([int(status[:3]), dict(headers)]))
    content = b"".join(answer)
    answer.close()
    return *begun, content


BAD_CHARSETS = [
    "hex",
    "zip",
    "base64",
    "rot13",
    "nonsense",
    "utf-16",
    "idna",
    "undefined",
    "unicode_escape",
    "a b",
    "\xe4",
]


@pytest.mark.parametrize(
    ("method", "url", "charset"),
    [
        *(("POST", "/v1/batches?limit=2", charset) for charset in BAD_CHARSETS),
        *(
            (method, url, "hex")
            for method, url in [
                ("POST", "/v1/files?x=1"),
                ("GET", "/v1/files?limit=2"),
                ("POST", "/v1/chat/completions?x=1"),
                ("DELETE", "/v1/files/file-x?x=1"),
                ("POST", "/v1/nope?x=1"),
                ("POST", "/admin/login/?next=/admin/"),
                ("GET", "/health?x=1"),
                ("POST", "/metrics?x=1"),
                ("POST", "/?x=1"),
            ]
        ),
    ],
)
def test_a_charset_that_nobody_can_read_is_a_400_everywhere(db, method, url, charset):
    status, headers, content = ask(method, url, f'application/json; charset="{charset}"')
    assert (status, headers["Content-Type"]) == (400, "application/json")
    told = json.loads(content)["error"]["message"]
    assert told == f"Unsupported charset '{charset}' in the Content-Type. Send the body in UTF-8."
    assert "x-request-id" in headers


@pytest.mark.parametrize(
    "parameter",
    ["charset*=nonsense''utf-8", "charset*=utf-8''hex", "charset*0=he; charset*1=x", "boundary*=nonsense''b"],
)
def test_a_coded_parameter_is_a_400_too(db, parameter):
    status, _, content = ask("POST", "/v1/batches?x=1", f"application/json; {parameter}")
    assert status == 400
    assert json.loads(content)["error"]["message"].startswith("Unsupported charset '")


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", "latin-1", "ascii", "cp1252", "gbk", "utf-8-sig", ""])
def test_a_charset_of_texts_is_taken(db, charset):
    assert ask("GET", "/v1/files?limit=2", f"text/plain; charset={charset}")[0] == 200
