"""One run through the whole API: every operation, every status of a batch, every kind of refusal, each answer checked
against OpenAI's schemas by the client (tests/contract.py)."""

import json
from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone

from batches import lifecycle
from batches.lines.jsonl import ENDPOINTS
from batches.models import Batch
from common.models import ApiKey
from files_api.models import Upload
from tests import contract
from tests.conftest import CHAT, custom_ids, jsonl, line
from tests.fake_backend import Action, error_body

TIMES = [name for name in contract.DOCUMENT["$defs"]["Batch"]["properties"] if name.endswith("_at")]


def stamps(batch):
    """The stamps that are set, in the order of the object."""
    return [name for name in TIMES if batch[name] is not None]


def test_every_operation_answers_as_the_schema_says(api, work, backend, upload, create):
    # Files
    file = upload([line("a")])
    assert api.get(f"/v1/files/{file['id']}").json() == file
    assert api.get("/v1/files").json()["data"] == [file]
    assert api.get("/v1/files", {"purpose": "vision"}).json()["first_id"] is None
    assert b"".join(api.get(f"/v1/files/{file['id']}/content").streaming_content) == jsonl([line("a")])
    assert api.delete(f"/v1/files/{file['id']}").json()["deleted"] is True
    for purpose in ("assistants", "fine-tune", "vision", "user_data"):
        upload(b"anything", name="a.bin", purpose=purpose)

    # Uploads
    asked = {"filename": "a.jsonl", "purpose": "batch", "bytes": 2, "mime_type": "text/jsonl"}
    first, second, third = (api.post("/v1/uploads", asked, format="json").json()["id"] for _ in range(3))
    part = api.post(f"/v1/uploads/{first}/parts", {"data": SimpleUploadedFile("upload", b"{}")}).json()
    done = api.post(f"/v1/uploads/{first}/complete", {"part_ids": [part["id"]]}, format="json").json()
    assert done["status"] == "completed"
    assert api.post(f"/v1/uploads/{second}/cancel").json()["status"] == "cancelled"
    Upload.objects.filter(pk=third).update(expires_at=timezone.now() - timedelta(seconds=1))
    assert api.post(f"/v1/uploads/{third}/cancel").status_code == 400

    # Batches and models
    batch = work.run(create([line("a")], metadata={"a": "b"})["id"])
    assert api.get("/v1/batches").json()["data"][0] == batch
    assert api.get("/v1/batches", {"limit": 0}).json()["data"] == []
    other = create([line("a")])
    for action in ("pause", "resume"):
        assert api.post(f"/v1/batches/{other['id']}/{action}").json() == other
        assert api.post(f"/v1/batches/{action}").json()["paused"] is (action == "pause")
    assert api.get(f"/v1/batches/{other['id']}/progress").json()["status"] == "validating"
    extended = api.post(f"/v1/batches/{other['id']}/extend", {"completion_window": "7d"}, format="json").json()
    assert extended["expires_at"] > other["expires_at"]
    assert api.post(f"/v1/batches/{other['id']}/priority", {"priority": -1}, format="json").json() == extended
    assert api.get(f"/v1/batches/{other['id']}/reasons").json() == {"object": "list", "data": []}
    assert b"".join(api.get(f"/v1/batches/{batch['id']}/output").streaming_content).count(b"\n") == 1
    assert api.post(f"/v1/batches/{other['id']}/cancel").json()["status"] == "cancelling"
    backend.on("bad", Action(400, error_body("bad")))
    failed = work.run(create([line("bad")])["id"])["id"]
    assert api.post(f"/v1/batches/{failed}/retry").json()["retry_of"] == failed
    assert api.delete(f"/v1/batches/{failed}").json()["deleted"] is True
    assert [model["id"] for model in api.get("/v1/models").json()["data"]] == backend.models
    assert api.get(f"/v1/models/{backend.models[0]}").status_code == 200
    assert api.get("/v1/openapi.json").json()["openapi"] == "3.1.0"

    # A person's own
    for url in ENDPOINTS:
        assert api.post(url, line("a", url=url)["body"], format="json").status_code == 200

    assert {operation for operation, status in api.seen if status == 200} == {
        f"{method} {pattern}" for method, pattern, _ in contract.OPERATIONS
    }


def test_a_batch_in_each_of_its_statuses(api, work, backend, create):
    started = ["created_at", "in_progress_at", "expires_at"]

    # To its end, one line refused by the model server.
    backend.always("b", Action(400, error_body("no")))
    batch = create([line("a"), line("b")])
    assert (batch["status"], stamps(batch)) == ("validating", ["created_at", "expires_at"])
    work.validate(batch["id"])
    batch = work.batch(batch["id"])
    assert (batch["status"], stamps(batch)) == ("in_progress", started)
    work.drive()
    batch = work.batch(batch["id"])
    assert (batch["status"], stamps(batch)) == ("finalizing", [*started, "finalizing_at"])
    work.finalize(batch["id"])
    batch = work.batch(batch["id"])
    assert (batch["status"], stamps(batch)) == ("completed", [*started, "finalizing_at", "completed_at"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert custom_ids(work.content(batch["output_file_id"])) == ["a"]
    assert custom_ids(work.content(batch["error_file_id"])) == ["b"]
    for name in ("output_file_id", "error_file_id"):
        assert api.get(f"/v1/files/{batch[name]}").json()["purpose"] == "batch_output"

    # With every line refused.
    batch = work.run(create([line("b")])["id"])
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)

    # With a file that is no good, and with none.
    batch = work.run(create([line("a"), line("a"), {"custom_id": "c"}])["id"])
    assert (batch["status"], stamps(batch)) == ("failed", ["created_at", "expires_at", "failed_at"])
    assert len(batch["errors"]["data"]) > 1
    batch = work.run(
        api.post(
            "/v1/batches",
            {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"},
            format="json",
        ).json()["id"]
    )
    assert batch["errors"]["data"][0]["param"] == "file_id"

    # Overtaken by its window.
    batch = create([line("a"), line("c")])
    work.validate(batch["id"])
    Batch.objects.filter(pk=batch["id"]).update(expires_at=timezone.now() - timedelta(seconds=1))
    lifecycle.close_finished(lambda batch_id: None)
    work.finalize(batch["id"])
    batch = work.batch(batch["id"])
    assert (batch["status"], stamps(batch)) == ("expired", [*started, "finalizing_at", "expired_at"])
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 0}
    assert {each["error"]["code"] for each in work.content(batch["error_file_id"])} == {"batch_expired"}

    # Cancelled.
    batch = create([line("a")])
    work.validate(batch["id"])
    batch = api.post(f"/v1/batches/{batch['id']}/cancel").json()
    assert (batch["status"], stamps(batch)) == ("cancelling", [*started, "cancelling_at"])
    work.finalize(batch["id"])
    batch = work.batch(batch["id"])
    assert (batch["status"], stamps(batch)) == ("cancelled", [*started, "cancelling_at", "cancelled_at"])
    assert {each["error"]["code"] for each in work.content(batch["error_file_id"])} == {"batch_cancelled"}

    # All of them in one list.
    api.get("/v1/batches")
    assert {*Batch.objects.values_list("status", flat=True)} >= {"completed", "failed", "expired", "cancelled"}


@pytest.mark.slow
def test_a_line_that_took_too_long(work, backend, create, settings):
    settings.LINE_TIMEOUT_S, settings.LINE_MAX_ATTEMPTS = 0.5, 1
    backend.always("a", Action(hang=True))
    batch = work.run(create([line("a")])["id"])
    (error,) = work.content(batch["error_file_id"])
    assert (error["response"], error["error"]["code"]) == (None, "request_timeout")


BATCH = {"input_file_id": "file-none", "endpoint": CHAT, "completion_window": "24h"}
UPLOAD = {"filename": "a.jsonl", "purpose": "batch", "bytes": 2, "mime_type": "text/jsonl"}


def raw_json(text):
    return {"data": text, "content_type": "application/json"}


def as_json(value):
    return raw_json(json.dumps(value))


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/batches", raw_json("{"), 400),
        ("POST", "/v1/batches", as_json([]), 400),
        ("POST", "/v1/batches", as_json({}), 400),
        ("POST", "/v1/batches", as_json(BATCH | {"endpoint": "/x"}), 400),
        ("POST", "/v1/batches", as_json(BATCH | {"metadata": {"a": 1}}), 400),
        ("POST", "/v1/batches", raw_json(" " * 2**21), 413),
        ("POST", "/v1/batches", {"data": "x", "content_type": "text/plain"}, 415),
        ("PUT", "/v1/batches", {}, 405),
        ("GET", "/v1/batches?limit=101", {}, 400),
        ("GET", "/v1/batches?after=batch_none", {}, 400),
        ("GET", "/v1/batches/x", {}, 400),
        ("GET", "/v1/batches/batch_x", {}, 404),
        ("DELETE", "/v1/batches/batch_x", {}, 404),
        ("PUT", "/v1/batches/batch_x", {}, 405),
        ("POST", "/v1/batches/batch_x/cancel", {}, 404),
        ("POST", "/v1/files", as_json({}), 415),
        ("POST", "/v1/files", {"data": "x", "content_type": "multipart/form-data; boundary=b"}, 400),
        ("PATCH", "/v1/files", {}, 405),
        ("GET", "/v1/files?limit=10001", {}, 400),
        ("GET", "/v1/files?order=up", {}, 400),
        ("GET", "/v1/files?after=file-none", {}, 400),
        ("GET", "/v1/files/file-none", {}, 404),
        ("DELETE", "/v1/files/file-none", {}, 404),
        ("GET", "/v1/files/file-none/content", {}, 404),
        ("POST", "/v1/uploads", as_json(UPLOAD | {"bytes": "2"}), 400),
        ("POST", "/v1/uploads", as_json(UPLOAD | {"bytes": 2**50}), 413),
        ("GET", "/v1/uploads", {}, 405),
        ("GET", "/v1/uploads/upload_none", {}, 404),
        ("POST", "/v1/uploads/upload_none/parts", {}, 404),
        ("POST", "/v1/uploads/upload_none/complete", {}, 404),
        ("POST", "/v1/uploads/upload_none/cancel", {}, 404),
        ("GET", "/v1/models/none", {}, 404),
        ("DELETE", "/v1/models/none", {}, 405),
        ("GET", "/v1/nothing", {}, 404),
        ("POST", "/v1/", {}, 404),
    ],
)
def test_refusals(api, method, path, body, status):
    assert api.generic(method, path, **body).status_code == status


def test_refusals_that_depend_on_what_is_there(api, work, backend, create, upload):
    done = work.run(create([line("a")])["id"])
    conflict = api.post(f"/v1/batches/{done['id']}/cancel")
    assert (conflict.status_code, conflict["x-should-retry"]) == (409, "false")
    reused = {"HTTP_IDEMPOTENCY_KEY": "k"}
    api.post("/v1/batches", BATCH, format="json", **reused)
    assert api.post("/v1/batches", BATCH | {"metadata": {}}, format="json", **reused).status_code == 409
    kept = upload(b"x", name="a.pdf", purpose="user_data")["id"]
    assert api.get(f"/v1/files/{kept}/content").status_code == 400
    ApiKey.objects.make("laptop")
    assert api.get("/v1/files").status_code == 401
    assert api.get("/v1/nothing").status_code == 404


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ("Model", {"id": "a", "object": "model", "created": 1, "owned_by": "b", "extra": 1}),
        ("Model", {"id": "a", "object": "model", "created": 1}),
        ("Model", {"id": "a", "object": "model", "created": "1", "owned_by": "b"}),
        ("Model", {"id": "a", "object": "else", "created": 1, "owned_by": "b"}),
        ("ErrorResponse", {"error": {"message": "a", "type": "b", "param": None}}),
        ("ErrorResponse", {"error": {"message": "a", "type": "b", "param": None, "code": None}, "detail": "a"}),
        ("BatchRequestOutput", {"id": "a", "custom_id": "b", "response": None}),
        ("BatchRequestOutput", {"id": "a", "custom_id": "b", "response": None, "error": {"code": "a"}}),
    ],
)
def test_the_check_itself_can_fail(schema, value):
    with pytest.raises(AssertionError, match=f"not a {schema}"):
        contract.conform(schema, value)
