"""Thousands of requests, good and bad, made from the OpenAPI document: a whole server keeps what the document says."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field

import pytest
import requests
import schemathesis
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.engine import Status, events, from_schema
from schemathesis.transport.requests import REQUESTS_TRANSPORT, multipart_serializer

from tests.conftest import CHAT, line
from tests.fake_backend import MODEL, Action
from tests.stack import ROOT, eventually
from tests.whole_server import client_of, finish, submit

BY_GUNICORN = {414, 431}
MODELS = [MODEL, "hf.co/user/repo:Q4"]


@schemathesis.check
def every_refusal_is_the_envelope(ctx, response, case):
    """Of undocumented methods too, at which the checks of schemathesis do not look."""
    if response.status_code >= 300:
        assert response.headers["content-type"] == ["application/json"]
        body = response.json()
        assert list(body) == ["error"]
        assert set(body["error"]) == {"message", "type", "param", "code"}


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Passes over what is no fault: gunicorn refuses by itself, in HTML, a request line or headers longer than any that
    clients send; and of a parameter that is repeated Django reads the last, which may be a good one."""
    repeated = any(isinstance(value, list) for value in (case.query or {}).values())
    return response.status_code not in BY_GUNICORN and not (repeated and isinstance(failure, AcceptedNegativeData))


@REQUESTS_TRANSPORT.serializer("multipart/form-data")
def form(ctx, value):
    """Forms with an object in `style: deepObject`; schemathesis knows that of query strings alone."""
    if isinstance(value, dict) and "expires_after" in value:
        value = dict(value)
        given = value.pop("expires_after")
        members = {f"expires_after[{name}]": each for name, each in given.items()} if isinstance(given, dict) else {}
        for name, each in (members or {"expires_after": given}).items():
            value[name] = each if isinstance(each, str) else json.dumps(each)
    return multipart_serializer(ctx, value)


@dataclass
class Run:
    """How often each operation was answered with which status, and everything that was not as the document says."""

    answers: Counter = field(default_factory=Counter)
    problems: list = field(default_factory=list)

    def add(self, event):
        if isinstance(event, events.NonFatalError):
            self.problems.append(f"{event.label}: {event.info.title}: {event.info.message}")
        elif isinstance(event, events.ScenarioFinished):
            recorder = event.recorder
            for case_id, sent in recorder.interactions.items():
                self.answers[recorder.cases[case_id].value.operation.label, sent.response.status_code] += 1
            failures = [
                check for checks in recorder.checks.values() for check in checks if check.status == Status.FAILURE
            ]
            self.problems += [
                f"{each.name}: {each.failure_info.failure.message}\n{each.failure_info.code_sample}"
                for each in failures
            ]


def run(server, document, *phases, examples=1, key=""):
    """Send what schemathesis makes of the document. The same each time, but for ids that the server chose."""
    nothing_learnt = {"extra-data-sources": {"responses": False}}
    options = {
        "examples": nothing_learnt,
        "coverage": nothing_learnt,
        "fuzzing": nothing_learnt | {"error-feedback": {"enabled": False}},
        "stateful": {},
    }
    checks = {
        # A good request is refused for many reasons that no schema holds: an id that is not there, a part too many.
        "positive_data_acceptance": {"enabled": False},
        # An answer that is given again under its Idempotency-Key may name a file that was deleted meanwhile.
        "ensure_resource_availability": {"enabled": False},
        # 413: `bytes` of an upload; the document leaves out what is a setting.
        "negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 409, 413, 415]},
    }
    config = {
        "seed": 1,
        "base-url": server.base,
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "continue-on-failure": True,
        "cache": {"enabled": False},
        "suppress-health-check": ["too_slow"],
        "checks": checks,
        "generation": {"deterministic": True, "max-examples": examples, "no-shrink": True, "database": "none"},
        "phases": {name: {"enabled": name in phases} | more for name, more in options.items()},
    }
    schema = schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict(config))
    result = Run()
    for event in from_schema(schema).execute():
        result.add(event)
    return result


class Document:
    """The document as it is served, pointed at objects that exist."""

    def __init__(self, server):
        self.raw = requests.get(f"{server.base}/v1/openapi.json", timeout=10).json()
        self.labels = {f"{method.upper()} {path}" for path, each in self.raw["paths"].items() for method in each}
        for name, schema in self.raw["components"]["schemas"].items():
            if not name.endswith("Request"):
                schema["additionalProperties"] = False  # no key that it does not name

    def operation(self, operation_id):
        operations = (operation for path in self.raw["paths"].values() for operation in path.values())
        return next(each for each in operations if each["operationId"] == operation_id)

    def prefer(self, operation_id, ids, *, name="id"):
        """Let some of the requests name these ids, and one for sure the first of them."""
        parameter = next(each for each in self.operation(operation_id)["parameters"] if each["name"] == name)
        parameter["schema"] = {"anyOf": [{"enum": ids}, parameter["schema"]]}
        parameter["example"] = ids[0]

    def example(self, operation_id, body):
        """A body that is sent for sure."""
        (content,) = self.operation(operation_id)["requestBody"]["content"].values()
        content["example"] = body


# As a slow worker would, keeps batches in the statuses that pass at once, until it ends.
HOLD = """
import os, time
from datetime import timedelta
from django.utils import timezone
from batches import leases
from batches.models import Batch, Status
from files_api.models import Upload

lease, now, parent = leases.acquire("validate"), timezone.now(), os.getppid()
fields = dict(endpoint="/v1/embeddings", completion_window="1m", input_file_id="file-x", expires_at=now)
for status in (Status.VALIDATING, Status.FINALIZING, Status.CANCELLING):
    print(Batch.objects.create(status=status, lease=lease, **fields).pk)
print(Batch.objects.create(status=Status.EXPIRED, expired_at=now, tidied_at=now, **fields).pk)
print(Upload.objects.create(filename="a", purpose="evals", bytes=1, expires_at=now - timedelta(hours=1)).pk, flush=True)
while os.getppid() == parent and leases.renew(lease):
    time.sleep(1)
"""


@pytest.fixture
def server(stack, fake):
    fake.models = MODELS
    return stack(OLLAMA_BASE_URL=fake.url)


@pytest.fixture
def held(server):
    """The ids of four batches, validating, finalizing, cancelling and expired; and of an expired upload."""
    holder = subprocess.Popen(
        [sys.executable, "manage.py", "shell", "--no-imports", "-c", HOLD],
        cwd=ROOT,
        env=os.environ | server.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        yield [holder.stdout.readline().strip() for _ in range(5)]
        holder.kill()


@pytest.mark.timeout(600)  # it sends some thousand requests
def test_the_server_keeps_what_the_document_says(server, fake, held):
    client = client_of(server)
    *held_batches, expired_upload = held

    def file(purpose="batch"):
        return client.files.create(file=("a.jsonl", b"{}\n"), purpose=purpose).id

    def upload():
        return client.uploads.create(filename="a.jsonl", purpose="batch", bytes=3, mime_type="text/jsonl").id

    def running():
        batch = submit(client, [line("hangs")])
        eventually(lambda: client.batches.retrieve(batch.id).status == "in_progress", what="validation")
        return batch.id

    fake.always("hangs", Action(hang=True))
    completed = finish(client, submit(client, [line("a")]).id)
    failed = finish(client, submit(client, [{}]).id)
    cancelled = finish(client, client.batches.cancel(running()).id)
    batches = [completed.id, failed.id, cancelled.id, running(), *held_batches]
    assert len({client.batches.retrieve(each).status for each in batches}) == 8

    document = Document(server)
    document.prefer("batches_list", batches, name="after")
    document.prefer("batches_retrieve", batches)
    document.prefer("batches_cancel", held_batches + batches)
    document.prefer("batches_progress", batches)
    for action in ("pause", "resume", "extend", "priority", "reasons", "output", "errors"):
        document.prefer(f"batches_{action}", [running(), *batches])
    document.prefer("batches_retry", [cancelled.id, *batches])
    document.example("batches_retry", {})
    document.prefer("batches_destroy", [finish(client, submit(client, [{}]).id).id for _ in range(3)])
    files = [file(), file("user_data"), completed.output_file_id]
    document.prefer("files_list", files, name="after")
    document.prefer("files_retrieve", files)
    document.prefer("files_content", files)
    document.prefer("files_destroy", [file() for _ in range(30)])
    complete = upload()
    part = client.uploads.parts.create(complete, data=b"{}\n").id
    document.prefer("uploads_parts", [upload(), expired_upload])
    document.prefer("uploads_complete", [complete, expired_upload])
    document.prefer("uploads_cancel", [upload(), expired_upload])
    document.prefer("models_retrieve", MODELS)
    document.example("uploads_parts", {"data": "{}"})
    document.example("uploads_complete", {"part_ids": [part]})
    document.example("files_create", {"file": "{}", "purpose": "evals"})
    new_batch = {"input_file_id": files[0], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    document.example("batches_create", new_batch)
    for operation, url in (
        ("chat_create", CHAT),
        ("completions_create", "/v1/completions"),
        ("embeddings_create", "/v1/embeddings"),
        ("responses_create", "/v1/responses"),
    ):
        document.example(operation, line("a", url=url)["body"])

    result = run(server, document.raw, "examples", "coverage", "fuzzing", "stateful", examples=40)

    assert not result.problems, "\n\n".join(result.problems[:10])
    assert result.answers.total() >= 2000
    assert {label for label, status in result.answers if status == 200} == document.labels
    assert {status for _, status in result.answers} - BY_GUNICORN == {200, 400, 404, 405, 409, 413, 415}


def test_without_a_key_everything_is_refused_and_another_owners_finds_nothing(server):
    client = client_of(server)
    file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch").id
    batch = finish(client, submit(client, [line("a")]).id)
    upload = client.uploads.create(filename="a.jsonl", purpose="batch", bytes=3, mime_type="text/jsonl").id
    made = subprocess.run(
        [sys.executable, "manage.py", "create_api_key", "laptop", "--owner", "another"],
        cwd=ROOT,
        env=os.environ | server.environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    document = Document(server)

    result = run(server, document.raw, "examples", "fuzzing", examples=5)

    assert not result.problems, "\n\n".join(result.problems[:10])
    assert {label for label, _ in result.answers} == document.labels
    assert {status for _, status in result.answers} == {401}

    files, batches, uploads = [file, batch.input_file_id, batch.output_file_id], [batch.id], [upload]
    mine = {"files": files, "batches": batches, "uploads": uploads}
    for path, operations in document.raw["paths"].items():
        kind = path.split("/")[2]
        for operation in operations.values():
            if "{id}" in path and kind in mine:
                document.prefer(operation["operationId"], mine[kind])
    for kind in ("files", "batches"):
        document.prefer(f"{kind}_list", mine[kind], name="after")

    result = run(server, document.raw, "examples", "fuzzing", examples=5, key=made.stdout.strip())

    assert not result.problems, "\n\n".join(result.problems[:10])
    found = {label for label, status in result.answers if status == 200}
    assert not [label for label in found if "{id}" in label and "/models/" not in label]
    assert {"POST /v1/files", "GET /v1/batches", "GET /v1/models"} <= found
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    listed = [
        requests.get(f"{server.base}/v1/{kind}", headers=headers, timeout=10).text for kind in ("files", "batches")
    ]
    assert not [each for each in (*files, *batches) if any(each in text for text in listed)]
