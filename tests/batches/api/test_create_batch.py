from datetime import timedelta

import pytest

from batches.models import Batch, Priority
from files_api.models import FileHold
from tests.conftest import CHAT, line


def test_it_works(api, create):
    body = create([line("a")], metadata={"project": "x"})

    batch = Batch.objects.get()
    created = int(batch.created_at.timestamp())
    assert body == {
        "id": batch.pk,
        "object": "batch",
        "endpoint": CHAT,
        "model": None,
        "errors": None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": created,
        "in_progress_at": None,
        "expires_at": created + 86_400,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
        "metadata": {"project": "x"},
    }
    assert FileHold.objects.get().holder == batch.pk
    assert api.get(f"/v1/batches/{batch.pk}").json() == body


@pytest.mark.parametrize(
    ("window", "length"),
    [("24h", timedelta(hours=24)), ("90m", timedelta(minutes=90)), ("30d", timedelta(days=30))],
)
def test_it_takes_windows_from_minutes_to_a_month(create, window, length):
    create([line("a")], completion_window=window)
    batch = Batch.objects.get()
    assert batch.expires_at - batch.created_at == length


def test_it_takes_an_unknown_input_file_because_validation_reports_it(api):
    body = {"input_file_id": "file-nope", "endpoint": CHAT, "completion_window": "24h"}
    answer = api.post("/v1/batches", body, format="json")
    assert answer.status_code == 200
    assert answer.json()["status"] == "validating"


GOOD = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}


@pytest.mark.parametrize(
    ("change", "param", "code", "message"),
    [
        ({"input_file_id": None}, "input_file_id", "missing_required_parameter", None),
        ({"endpoint": None}, "endpoint", "missing_required_parameter", "Missing required parameter: 'endpoint'."),
        ({"completion_window": None}, "completion_window", "missing_required_parameter", None),
        ({"input_file_id": 5}, "input_file_id", "invalid_type", None),
        ({"input_file_id": "file-\x00"}, "input_file_id", "invalid_value", None),
        ({"input_file_id": "file-" + "x" * 70}, "input_file_id", "string_above_max_length", None),
        (
            {"endpoint": "/v1/invalid"},
            "endpoint",
            "invalid_value",
            "Invalid value: '/v1/invalid'. Supported values are: '/v1/responses', '/v1/chat/completions', "
            "'/v1/embeddings', and '/v1/completions'.",
        ),
        ({"endpoint": ["/v1/embeddings"]}, "endpoint", "invalid_type", None),
        ({"completion_window": "1w"}, "completion_window", "invalid_value", None),
        ({"completion_window": "31d"}, "completion_window", "invalid_value", None),
        ({"completion_window": "0h"}, "completion_window", "invalid_value", None),
        ({"metadata": "x"}, "metadata", "invalid_type", None),
        (
            {"metadata": {"tags": ["a"]}},
            "metadata.tags",
            "invalid_type",
            "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
        ),
        ({"metadata": {"a": None}}, "metadata.a", "invalid_type", None),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "object_above_max_properties", None),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length", None),
        ({"metadata": {"k" * 65: ""}}, "metadata." + "k" * 65, "property_name_above_max_length", None),
        ({"metadata": {"k": "a\x00b"}}, "metadata", "invalid_value", None),
        ({"metadata": {"k": "\ud800"}}, "metadata", "invalid_value", None),
        ({"metadata": {"\ud800": "v"}}, "metadata", "invalid_value", None),
        ({"endpoint": "\ud800"}, "endpoint", "invalid_value", None),
        (
            {"output_expires_after": {"seconds": 3600}},
            "output_expires_after.anchor",
            "missing_required_parameter",
            None,
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds",
            "integer_below_min_value",
            None,
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": True}},
            "output_expires_after.seconds",
            "invalid_type",
            None,
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": "3600"}},
            "output_expires_after.seconds",
            "invalid_type",
            None,
        ),
    ],
)
def test_it_refuses(api, change, param, code, message):
    body = {key: value for key, value in (GOOD | change).items() if value is not None}
    answer = api.post("/v1/batches", body, format="json")

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert not message or error["message"] == message
    assert not Batch.objects.exists()


@pytest.mark.parametrize("body", [b"{broken", b"[1]", b"", b"\xff\xfe", b'"text"', b'{"a": NaN}'])
def test_it_refuses_what_is_not_a_json_object(api, body):
    answer = api.generic("POST", "/v1/batches", body, content_type="application/json")
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert not Batch.objects.exists()


def test_it_refuses_a_body_that_is_too_large(api):
    body = b'{"metadata": "' + b"x" * 2_000_000 + b'"}'
    answer = api.generic("POST", "/v1/batches", body, content_type="application/json")
    assert answer.status_code == 413
    assert "at most 1048576 bytes" in answer.json()["error"]["message"]


def test_a_wake_up_that_fails_does_not_take_the_batch_back(api, upload, transactional_db, monkeypatch):
    """It is committed by then and will run: a 5xx would have the client create it once more."""

    def broken(batch_id):
        raise RuntimeError

    monkeypatch.setattr("batches.tasks.wake_control", broken)
    request = {"input_file_id": upload([line("a")])["id"], "endpoint": CHAT, "completion_window": "24h"}
    assert api.post("/v1/batches", request, format="json").status_code == 200
    assert Batch.objects.count() == 1


@pytest.mark.parametrize(
    ("metadata", "priority"),
    [
        ({"priority": "high"}, Priority.HIGH),
        ({"priority": "low"}, Priority.LOW),
        ({"priority": "normal"}, Priority.NORMAL),
        ({"priority": "HIGH"}, Priority.NORMAL),
        ({"project": "high"}, Priority.NORMAL),
        ({}, Priority.NORMAL),
        (None, Priority.NORMAL),
    ],
)
def test_its_metadata_may_ask_for_a_priority(api, metadata, priority):
    answer = api.post("/v1/batches", GOOD | {"metadata": metadata}, format="json")
    assert (answer.status_code, answer.json()["metadata"]) == (200, metadata)
    assert Batch.objects.get().priority == priority


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", " {} ", "\ufeff{}", "\u00a0{}\t"])
def test_white_space_around_the_file_id_does_not_count(api, upload, around):
    file_id = upload([line("a")])["id"]
    body = {"input_file_id": around.format(file_id), "endpoint": CHAT, "completion_window": "24h"}
    assert api.post("/v1/batches", body, format="json").json()["input_file_id"] == file_id


@pytest.mark.parametrize("file_id", ["", " ", "\n", "\ufeff", "file-a file-b", "file-\na", "file-\u00a0a"])
def test_a_file_id_that_is_empty_or_holds_white_space_is_a_400(api, file_id):
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    answer = api.post("/v1/batches", body, format="json")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "input_file_id", "invalid_value")
    assert not Batch.objects.exists()
