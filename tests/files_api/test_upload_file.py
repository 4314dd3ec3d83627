import gzip
import hashlib
import resource

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from common.jsonl import BOM
from files_api.models import File

GOOD = b'{"custom_id": "a"}\n'


def test_it_works(api, settings):
    answer = api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("my requests.jsonl", GOOD)})

    assert answer.status_code == 200
    body = answer.json()
    file = File.objects.get()
    assert body == {
        "id": file.pk,
        "object": "file",
        "bytes": len(GOOD),
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.created_at.timestamp()) + 2_592_000,
        "filename": "my requests.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    with file.content.open("rb") as stored:
        assert stored.read() == GOOD
    assert file.sha256 == hashlib.sha256(GOOD).hexdigest()
    # The stored path is made of the id, and nothing is left where uploads arrive.
    assert file.content.name == f"{file.pk[5:7]}/{file.pk}"
    assert list(settings.UPLOAD_DIR.iterdir()) == []


def test_it_never_uses_the_clients_file_name_as_a_path(api, settings):
    answer = api.post(
        "/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("../../../etc/cron.d/x.jsonl", GOOD)}
    )

    assert answer.status_code == 200
    file = File.objects.get()
    assert file.content.name == f"{file.pk[5:7]}/{file.pk}"
    stored = [path for path in settings.FILES_DIR.rglob("*") if path.is_file()]
    assert [path.name for path in stored] == [file.pk]


def test_it_takes_raw_bytes_that_the_sdk_names_upload(api):
    assert api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("upload", GOOD)}).status_code == 200


@pytest.mark.parametrize(
    "before", [BOM, b"\n", b"\r\n" * 5, b"  \n\t\n", BOM + b"\r\n", BOM + b" \n" + BOM, b"\n" * 70_000]
)
def test_it_takes_what_stands_before_the_first_line(api, before):
    file = SimpleUploadedFile("a.jsonl", before + GOOD)
    assert api.post("/v1/files", {"purpose": "batch", "file": file}).status_code == 200


def test_it_keeps_other_purposes_for_ever_and_unread(api):
    body = api.post("/v1/files", {"purpose": "user_data", "file": SimpleUploadedFile("a.pdf", b"%PDF")}).json()
    assert body["expires_at"] is None


def test_it_sets_the_expiry_that_is_asked_for(api):
    form = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    body = api.post("/v1/files", form | {"file": SimpleUploadedFile("a.jsonl", GOOD)}).json()
    assert body["expires_at"] == body["created_at"] + 3600


def refused(answer, status=400, **expected):
    assert answer.status_code == status
    assert answer["Content-Type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert {key: error[key] for key in expected} == expected
    assert not File.objects.exists()
    return error["message"]


def test_it_refuses_a_missing_file(api):
    refused(api.post("/v1/files", {"purpose": "batch"}), param="file", code="missing_required_parameter")


def test_it_refuses_text_in_place_of_a_file(api):
    refused(api.post("/v1/files", {"purpose": "batch", "file": "text"}), param="file", code="invalid_type")


def test_it_refuses_a_missing_purpose(api):
    file = SimpleUploadedFile("a.jsonl", GOOD)
    refused(api.post("/v1/files", {"file": file}), param="purpose", code="missing_required_parameter")


def test_it_refuses_an_unknown_purpose(api):
    file = SimpleUploadedFile("a.jsonl", GOOD)
    message = refused(api.post("/v1/files", {"file": file, "purpose": "x"}), param="purpose", code="invalid_value")
    assert "'batch'" in message


def test_it_refuses_an_empty_file(api):
    message = refused(api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("a.jsonl", b"")}))
    assert "Invalid file format" in message


@pytest.mark.parametrize("content", [BOM, b"\n", b" \r\n\t\r\n" + BOM, b"\x1a"])
def test_it_refuses_a_file_of_blank_lines(api, content):
    message = refused(api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("a.jsonl", content)}))
    assert "no request" in message


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (gzip.compress(GOOD, mtime=0), "gzip"),
        (GOOD.decode().encode("utf-16"), "UTF-16"),
        (b"\n\n" + '{"custom_id": "Schöne Grüße"}'.encode("cp1252"), "cp1252"),
        ('{"custom_id": "你好"}'.encode("gbk"), "GBK"),
    ],
)
def test_it_names_what_the_file_is_instead(api, content, name):
    message = refused(api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("a.jsonl", content)}))
    assert message.startswith(
        f"Invalid file format for Batch API. The file must be JSON lines in UTF-8, and looks like {name}"
    )


def test_it_names_the_first_line_that_is_not_blank(api):
    file = SimpleUploadedFile("a.jsonl", b"\n\n{'custom_id': 'a'}\n")
    assert "Line 3 is not valid JSON" in refused(api.post("/v1/files", {"purpose": "batch", "file": file}))


def test_it_refuses_a_first_line_that_is_not_json(api):
    file = SimpleUploadedFile("a.jsonl", b"{broken json\n" + GOOD)
    assert "jsonl" in refused(api.post("/v1/files", {"purpose": "batch", "file": file}))


@pytest.mark.parametrize(
    "name", ["a.json", "a.ndjson", "a.jl", "a.txt", "a", "a.jsonl.tmp", "a.JSONL", ".jsonl", "a.gz"]
)
def test_a_name_is_no_evidence(api, name):
    answer = api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile(name, GOOD)})
    assert (answer.status_code, answer.json()["filename"]) == (200, name)


def test_it_refuses_a_file_larger_than_allowed_and_keeps_nothing_of_it(api, settings):
    settings.MAX_FILE_BYTES = 1000
    file = SimpleUploadedFile("a.jsonl", b'"' + b"x" * 300_000 + b'"')
    refused(api.post("/v1/files", {"purpose": "batch", "file": file}), status=413, code="file_too_large")
    assert list(settings.UPLOAD_DIR.iterdir()) == []


def test_it_refuses_expiries_outside_the_bounds(api):
    for seconds, code in (
        ("3599", "integer_below_min_value"),
        ("2592001", "integer_above_max_value"),
        ("x", "invalid_type"),
        ("9" * 5000, "invalid_type"),
    ):
        form = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
        answer = api.post("/v1/files", form | {"file": SimpleUploadedFile("a.jsonl", GOOD)})
        refused(answer, param="expires_after.seconds", code=code)


def test_it_refuses_an_expiry_that_is_not_in_fields_of_its_own(api):
    form = {"purpose": "batch", "expires_after": '{"anchor": "created_at", "seconds": 3600}'}
    answer = api.post("/v1/files", form | {"file": SimpleUploadedFile("a.jsonl", GOOD)})
    refused(answer, param="expires_after", code="invalid_type")


def test_it_refuses_an_expiry_with_a_misspelt_member(api):
    form = {"purpose": "batch", "expires_after[second]": "3600"}
    answer = api.post("/v1/files", form | {"file": SimpleUploadedFile("a.jsonl", GOOD)})
    refused(answer, param="expires_after.anchor", code="missing_required_parameter")


def test_it_refuses_two_files(api):
    files = [SimpleUploadedFile("a.jsonl", GOOD), SimpleUploadedFile("b.jsonl", GOOD)]
    refused(api.post("/v1/files", {"purpose": "batch", "file": files[0], "other": files[1]}))


def test_it_refuses_json_where_a_form_is_due(api):
    refused(api.post("/v1/files", {"purpose": "batch"}, format="json"), status=415)


def test_it_refuses_a_form_without_a_boundary(api):
    refused(api.generic("POST", "/v1/files", b"xx", content_type="multipart/form-data"))


def test_it_refuses_a_form_that_breaks_off(api):
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{"a"'
    refused(api.generic("POST", "/v1/files", body, content_type="multipart/form-data; boundary=b"))


@pytest.mark.parametrize("mebibytes", [1.5, 3], ids=["found at the end", "found on the way"])
def test_an_upload_that_finds_no_room_leaves_nothing(api, settings, mebibytes):
    content = GOOD * int(mebibytes * 2**20 / len(GOOD))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.4 * 2**20), hard))
    try:
        answer = api.post("/v1/files", {"purpose": "batch", "file": SimpleUploadedFile("in.jsonl", content)})
        left = list(settings.UPLOAD_DIR.iterdir())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert (answer.status_code, answer.json()["error"]["type"]) == (507, "server_error")
    assert left == []
    assert not File.objects.exists()
