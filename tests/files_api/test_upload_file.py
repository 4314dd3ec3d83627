import gzip
import hashlib
import io
import resource

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from common.jsonl import BOM
from files_api.form import Utf8Headers
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


def form(*parts):
    """A form of these parts, each with its headers as they are sent."""
    return b"".join(b"--b\r\n%s\r\n\r\n%s\r\n" % part for part in parts) + b"--b--\r\n"


PURPOSE = (b'Content-Disposition: form-data; name="purpose"', b"batch")


def part(filename, name=b"file"):
    return (b'Content-Disposition: form-data; name="%s"%s\r\nContent-Type: text/plain' % (name, filename), GOOD)


def send(api, *parts, charset="", **headers):
    content_type = "multipart/form-data; boundary=b" + (f"; charset={charset}" if charset else "")
    return api.generic("POST", "/v1/files", form(*parts), content_type=content_type, **headers)


UNKNOWN_CHARSETS = [b"nonsense", b"hex", b"zip", b"base64", b"undefined", b"idna", b"utf_99", "\xe4".encode()]


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        (b'; filename="Gr\xfc\xdfe.jsonl"', "Grüße.jsonl"),
        (b'; filename="d\xe9j\xe0 vu.jsonl"', "déjà vu.jsonl"),
        ('; filename="文件夹.jsonl"'.encode("gbk"), "文件夹.jsonl"),
        ('; filename="リクエスト.jsonl"'.encode("shift_jis"), "リクエスト.jsonl"),
        ('; filename="запросы.jsonl"'.encode("cp1251"), "запросы.jsonl"),
        ('; filename="Grüße.jsonl"'.encode(), "Grüße.jsonl"),
        (b'; filename="=?utf-8?Q?Gr=C3=BC=C3=9Fe.jsonl?="', "Grüße.jsonl"),
        (b'; filename="=?UTF-8?B?w6QuanNvbmw=?="', "ä.jsonl"),
        (b'; filename="=?iso-8859-1?q?=E4?= =?iso-8859-1?q?=F6?=.jsonl"', "äö.jsonl"),
        (b"; filename==?utf-8?Q?a=C3=A4.jsonl?=", "aä.jsonl"),
        (b'; filename="=?nonsense?Q?a?=.jsonl"', "=?nonsense?Q?a?=.jsonl"),
        (b'; filename="=?utf-8?B?x?=.jsonl"', "=?utf-8?B?x?=.jsonl"),
        (b"; filename*=UTF-8''Gr%C3%BC.jsonl", "Grü.jsonl"),
        (b"; filename*=iso-8859-1'en'Gr%FC.jsonl", "Grü.jsonl"),
        *((b"; filename*=%s''Gr%%C3%%BC.jsonl" % name, "Grü.jsonl") for name in UNKNOWN_CHARSETS),
        (b"; filename=\"b.jsonl\"; filename*=nonsense''a.jsonl", "a.jsonl"),
        (b'; filename="a=?b.jsonl"', "a=?b.jsonl"),
    ],
)
def test_it_takes_a_file_name_as_clients_send_it(api, filename, name):
    answer = send(api, PURPOSE, part(filename))
    assert (answer.status_code, answer.json().get("filename")) == (200, name)
    with File.objects.get().content.open("rb") as stored:
        assert stored.read() == GOOD


@pytest.mark.parametrize("size", [1, 7, 64, 2**18])
def test_headers_are_converted_wherever_a_chunk_ends(size):
    """And nothing else is."""
    content = b"\xfc\r\n\r\n--b\n\xfc\r\n--" * 3
    given = form(PURPOSE, (part(b'; filename="\xfc"')[0], content), PURPOSE)
    expected = form(PURPOSE, (part('; filename="ü"'.encode())[0], content), PURPOSE)
    headers = Utf8Headers(io.BytesIO(given), b"b")
    assert b"".join(iter(lambda: headers.read(size), b"")) == expected


@pytest.mark.parametrize("name", [b"file", b"other"])
def test_it_refuses_two_files(api, name):
    first = b'; filename="a.jsonl"'
    message = refused(send(api, PURPOSE, part(first), part(b'; filename="b.jsonl"', name)), param="file")
    assert message == "The form has several file parts. Send one file in each request."


@pytest.mark.parametrize("filename", [b"", b'; filename=""'])
def test_it_refuses_a_part_without_a_file_name(api, filename):
    assert "has no file name" in refused(send(api, PURPOSE, part(filename)), param="file", code="invalid_type")


@pytest.mark.parametrize("charset", ["nonsense", "hex", "rot13", "utf-16", "idna", "undefined"])
def test_it_refuses_a_charset_that_no_form_has(api, charset):
    answer = send(api, PURPOSE, part(b'; filename="a.jsonl"'), charset=charset)
    assert refused(answer) == f"Unsupported charset '{charset}' in the Content-Type. Send the body in UTF-8."


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", "iso-8859-1", '"windows-1252"'])
def test_it_takes_a_charset_that_forms_have(api, charset):
    assert send(api, PURPOSE, part(b'; filename="a.jsonl"'), charset=charset).status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "gzip, identity"])
def test_it_refuses_a_packed_body(api, coding):
    answer = send(api, PURPOSE, part(b'; filename="a.jsonl"'), HTTP_CONTENT_ENCODING=coding)
    assert refused(answer, status=415) == f"Unsupported Content-Encoding: '{coding}'. Send the body uncompressed."


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
