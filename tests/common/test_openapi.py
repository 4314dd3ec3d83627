"""The OpenAPI document: it is whole, it is valid, and it is there."""

import pytest
from django.core.management import call_command
from drf_spectacular.generators import EndpointEnumerator
from drf_spectacular.validation import validate_schema

from batchserver.version import read_version
from common.models import ApiKey

OPERATIONS = [
    "batches_cancel",
    "batches_create",
    "batches_destroy",
    "batches_errors",
    "batches_extend",
    "batches_list",
    "batches_output",
    "batches_pause",
    "batches_pause_all",
    "batches_priority",
    "batches_progress",
    "batches_reasons",
    "batches_resume",
    "batches_resume_all",
    "batches_retrieve",
    "batches_retry",
    "chat_create",
    "completions_create",
    "embeddings_create",
    "files_content",
    "files_create",
    "files_destroy",
    "files_list",
    "files_retrieve",
    "models_list",
    "models_retrieve",
    "responses_create",
    "uploads_cancel",
    "uploads_complete",
    "uploads_create",
    "uploads_parts",
]


@pytest.fixture
def document(api):
    answer = api.get("/v1/openapi.json")
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    return answer.json()


def operations(document):
    return {each["operationId"]: each for path in document["paths"].values() for each in path.values()}


def test_it_is_made_without_a_warning(tmp_path):
    call_command("spectacular", "--fail-on-warn", "--validate", "--file", tmp_path / "openapi.yaml")


def test_what_is_served_is_valid(document):
    validate_schema(document)
    assert document["info"]["version"] == read_version()


def test_it_holds_every_operation(document):
    assert sorted(operations(document)) == OPERATIONS
    routes = {path for path, _, _, _ in EndpointEnumerator().get_api_endpoints() if path.startswith("/v1/")}
    assert {path.replace("{id}", "{pk}") for path in document["paths"]} == routes - {"/v1/openapi.json"}


def test_it_needs_no_key(api):
    ApiKey.objects.make("laptop")
    assert api.get("/v1/batches").status_code == 401
    assert api.get("/v1/openapi.json").status_code == 200
    assert api.get("/v1/openapi.json", HTTP_AUTHORIZATION="Bearer sk-wrong").status_code == 200


def test_creates_take_an_idempotency_key(document):
    with_key = {
        name
        for name, each in operations(document).items()
        if "Idempotency-Key" in {parameter["name"] for parameter in each.get("parameters", [])}
    }
    assert with_key == {"files_create", "uploads_create", "batches_create", "batches_retry"}


def test_every_operation_has_one_answer_and_the_envelope(document):
    for each in operations(document).values():
        assert set(each["responses"]) == {"200", "4XX", "5XX"}
        for status in ("4XX", "5XX"):
            content = each["responses"][status]["content"]
            assert content["application/json"]["schema"]["$ref"].endswith("/ErrorEnvelope")


def test_every_key_of_an_answer_is_always_there(document):
    """But for members of our own in objects of OpenAI's: of a retry, and what was asked for."""
    ours = {"Batch": {"retry_of"}, "Model": {"context_tokens"}}
    for name, schema in document["components"]["schemas"].items():
        if not name.endswith("Request"):
            assert set(schema["required"]) == schema["properties"].keys() - ours.get(name, set()), name


def test_requests_are_described_with_their_bounds(document):
    schemas = document["components"]["schemas"]
    batch = schemas["BatchCreateRequest"]
    assert sorted(batch["required"]) == ["completion_window", "endpoint", "input_file_id"]
    assert batch["properties"]["metadata"]["maxProperties"] == 16
    assert batch["properties"]["metadata"]["additionalProperties"]["maxLength"] == 512
    assert batch["properties"]["output_expires_after"]["properties"]["seconds"] == {
        "type": "integer",
        "minimum": 3600,
        "maximum": 2_592_000,
    }
    form = operations(document)["files_create"]["requestBody"]["content"]["multipart/form-data"]
    assert form["encoding"]["expires_after"] == {"style": "deepObject", "explode": True}
    parameters = {each["name"]: each["schema"] for each in operations(document)["files_list"]["parameters"]}
    assert parameters["limit"] == {"type": "integer", "minimum": 0, "maximum": 10_000, "default": 10_000}
    assert parameters["order"]["enum"] == ["asc", "desc"]
