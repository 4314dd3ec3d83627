"""Bodies of unknown length, as gunicorn's own reader gives them."""

import hashlib
import io
import json
import sys

import pytest
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


def chunk(content):
    return b"%x\r\n%s\r\n" % (len(content), content)


def post(kind, sent):
    """Status and body of the answer to a chunked request whose body is `sent`, byte for byte."""
    path, content_type, _ = KINDS.get(kind) or BLOB
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
    return int(begun[0][:3]), json.loads(content or b"null")


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
