"""Whatever goes wrong, the answer is OpenAI's envelope."""

import pytest
from django.db import OperationalError
from django.test import Client

from batchserver import views
from files_api.models import File

ENVELOPE = {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v1/foo", 404, "Invalid URL (GET /v1/foo)"),
        ("POST", "/v1/files/", 404, "Invalid URL (POST /v1/files/)"),
        ("PUT", "/v1/files", 405, "Not allowed to PUT on /v1/files."),
        ("DELETE", "/v1/batches", 405, "Not allowed to DELETE on /v1/batches."),
        ("GET", "/nothing", 404, "Invalid URL (GET /nothing)"),
        ("GET", "/v1/batches/batch_%00", 404, "Invalid URL (GET /v1/batches/batch_\x00)"),
    ],
)
def test_it_answers_with_the_envelope(api, method, path, status, message):
    answer = api.generic(method, path)
    assert answer.status_code == status
    assert answer["Content-Type"] == "application/json"
    assert answer.json() == {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    }


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/models"])
def test_options_is_no_part_of_the_api(api, path):
    answer = api.options(path)
    assert (answer.status_code, set(answer.json()["error"])) == (405, ENVELOPE)


def test_a_body_nested_too_deep_is_a_400(api):
    answer = api.generic("POST", "/v1/batches", b"[" * 100_000, content_type="application/json")
    assert (answer.status_code, set(answer.json()["error"])) == (400, ENVELOPE)


BATCH = b'{"input_file_id": "file-a", "endpoint": "/v1/embeddings", "completion_window": "24h"}'


@pytest.mark.parametrize(
    ("before", "charset"),
    [
        *[(b"\xef\xbb\xbf", ""), (b" \r\n", ""), (b"\xef\xbb\xbf", "; charset=utf-8"), (b"", "; charset=us-ascii")],
        *[(b"\xef\xbb\xbf", "; charset=UTF8"), (b"", "; charset=utf-8-sig"), (b"", "; CHARSET='utf-8'")],
    ],
)
def test_a_bom_before_a_json_body_is_passed_over(api, before, charset):
    answer = api.generic("POST", "/v1/batches", before + BATCH, content_type=f"application/json{charset}")
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/chat/completions", "/v1/uploads", "/api/chat"])
@pytest.mark.parametrize(
    "charset",
    [
        *(
            "nonsense",
            "hex",
            "undefined",
            "rot13",
            "utf-7",
            "unicode_escape",
            "raw_unicode_escape",
            "utf-16",
            "utf-16-le",
        ),
        *("utf-32", "latin-1", "iso-8859-15", "windows-1252", "cp437", "gbk", "shift_jis", "iso2022_jp", "cp037"),
        *("utf-8-variants", "charmap", "punycode", "mbcs"),
    ],
)
def test_json_is_in_utf_8_alone(api, path, charset):
    answer = api.generic("POST", path, BATCH, content_type=f"application/json; charset={charset}")
    message = f"Unsupported charset '{charset}' in the Content-Type. Send the body in UTF-8."
    assert answer.status_code == 400
    assert message in str(answer.json()["error"])


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])
def test_a_body_that_is_in_another_code_is_a_400(api, codec):
    body = BATCH.decode().replace("file-a", "file-ä").encode(codec)
    assert api.generic("POST", "/v1/batches", body, content_type="application/json").status_code == 400


def test_a_packed_body_is_a_415(api):
    answer = api.generic("POST", "/v1/batches", BATCH, content_type="application/json", HTTP_CONTENT_ENCODING="gzip")
    assert (answer.status_code, set(answer.json()["error"])) == (415, ENVELOPE)


def test_a_text_body_is_a_415(api):
    answer = api.generic("POST", "/v1/batches", b"x", content_type="text/plain")
    assert answer.status_code == 415
    assert set(answer.json()["error"]) == ENVELOPE


def test_a_foreign_host_header_is_refused_with_the_setting_to_change(db):
    answer = Client().get("/v1/files", headers={"host": "evil.example"})
    assert answer.status_code == 400
    assert "ALLOWED_HOSTS" in answer.json()["error"]["message"]


def test_a_bug_is_a_500_without_its_details(api, monkeypatch, caplog):
    # Breaking a view is the only way to have a bug on purpose.
    def broken(*args, **kwargs):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(views.health, "summary", broken)
    answer = api.get("/health")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert b"secret" not in answer.content


def test_a_database_that_does_not_answer_is_a_503(api, monkeypatch):
    def locked(self, *args, **kwargs):
        raise OperationalError("database is locked")

    monkeypatch.setattr(File.objects.__class__, "all", locked)
    answer = api.get("/v1/files")
    assert answer.status_code == 503
    assert answer["Retry-After"] == "5"
    assert answer.json()["error"]["type"] == "server_error"
