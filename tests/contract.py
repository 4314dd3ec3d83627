"""OpenAI's own schemas, made strict: an unknown member fails as a missing one does.

The client of the tests (`api` in conftest) checks every answer under /v1 with them.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator
from rest_framework.test import APIClient

DOCUMENT = json.loads((Path(__file__).parent / "openai.schemas.json").read_text())

OPERATIONS = [
    ("POST", r"/v1/files", "OpenAIFile"),
    ("GET", r"/v1/files", "ListFilesResponse"),
    ("GET", r"/v1/files/[^/]+", "OpenAIFile"),
    ("DELETE", r"/v1/files/[^/]+", "DeleteFileResponse"),
    ("GET", r"/v1/files/[^/]+/content", None),
    ("POST", r"/v1/uploads", "Upload"),
    ("POST", r"/v1/uploads/[^/]+/parts", "UploadPart"),
    ("POST", r"/v1/uploads/[^/]+/complete", "Upload"),
    ("POST", r"/v1/uploads/[^/]+/cancel", "Upload"),
    ("POST", r"/v1/batches", "Batch"),
    ("GET", r"/v1/batches", "ListBatchesResponse"),
    ("GET", r"/v1/batches/[^/]+", "Batch"),
    ("POST", r"/v1/batches/[^/]+/cancel", "Batch"),
    ("POST", r"/v1/batches/(pause|resume)", None),
    ("POST", r"/v1/batches/[^/]+/pause", "Batch"),
    ("POST", r"/v1/batches/[^/]+/resume", "Batch"),
    ("GET", r"/v1/batches/[^/]+/progress", None),
    ("POST", r"/v1/batches/[^/]+/extend", "Batch"),
    ("POST", r"/v1/batches/[^/]+/priority", "Batch"),
    ("POST", r"/v1/batches/[^/]+/retry", "Batch"),
    ("GET", r"/v1/batches/[^/]+/reasons", None),
    ("GET", r"/v1/batches/[^/]+/(output|errors)", None),
    ("DELETE", r"/v1/batches/[^/]+", None),
    ("GET", r"/v1/models", "ListModelsResponse"),
    ("GET", r"/v1/models/.+", "Model"),
    # Their answers are the model server's own.
    ("POST", r"/v1/chat/completions", None),
    ("POST", r"/v1/completions", None),
    ("POST", r"/v1/embeddings", None),
    ("POST", r"/v1/responses", None),
    ("GET", r"/v1/openapi\.json", None),
]
ANTHROPICS = "/v1/messages"  # no API of OpenAI's; its errors have another shape

# Members that the live API leaves out; all others are always sent, null where there is nothing to say.
OPTIONAL = {"Model": {"shutdown_date"}}


def _strict(schema: Any, optional: frozenset[str] = frozenset()) -> Any:
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    if "properties" in schema:
        strict["properties"] = {name: _strict(each) for name, each in schema["properties"].items()}
        # The body of a line's response is the endpoint's, whatever it holds.
        if schema["properties"]:
            strict |= {"additionalProperties": False, "required": sorted(set(schema["properties"]) - optional)}
    return strict


# What we add: a retry names its parent.
DOCUMENT["$defs"]["Batch"]["properties"]["retry_of"] = {"type": "string"}
OPTIONAL["Batch"] = {"retry_of"}
# And a model its context, if it is asked for.
DOCUMENT["$defs"]["Model"]["properties"]["context_tokens"] = {"type": ["integer", "null"]}
OPTIONAL["Model"] = OPTIONAL["Model"] | {"context_tokens"}

_DEFINITIONS = {name: _strict(schema, frozenset(OPTIONAL.get(name, ()))) for name, schema in DOCUMENT["$defs"].items()}
VALIDATORS = {name: Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": _DEFINITIONS}) for name in _DEFINITIONS}


def conform(schema: str, value: Any) -> None:
    """Fail with the place and what is wrong there if `value` is not what OpenAI's schema of this name allows."""
    problems = [f"{error.json_path}: {error.message}" for error in VALIDATORS[schema].iter_errors(value)]
    assert not problems, f"not a {schema}: {problems}\n{value}"


def check(method: str, path: str, status: int, content_type: str, content: bytes) -> str:
    """Check one answer of the API and tell which operation it belongs to; empty for an unknown address."""
    found = [
        (f"{method} {pattern}", schema)
        for verb, pattern, schema in OPERATIONS
        if verb == method and re.fullmatch(pattern, path)
    ]
    operation, schema = found[0] if found else ("", None)
    if status == 302:
        assert not content, f"{method} {path} leads elsewhere, and says more"
    elif status != 200:
        assert content_type == "application/json", f"{method} {path} is answered {status} with {content_type}"
        conform("ErrorResponse", json.loads(content))
        assert status >= 400, f"{method} {path} is answered {status}"
    else:
        assert operation, f"{method} {path} is answered 200, and is no operation of the API"
        if schema is not None:
            assert content_type == "application/json"
            conform(schema, json.loads(content))
    return operation


class ContractClient(APIClient):
    """Django's client; every answer under /v1 is checked, and counted by operation and status in `seen`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(raise_request_exception=False, **options)
        self.seen: Counter[tuple[str, int]] = Counter()

    def request(self, **kwargs: Any) -> Any:
        response = super().request(**kwargs)
        method, path = response.request["REQUEST_METHOD"], urlsplit(response.request["PATH_INFO"]).path
        if path.startswith("/v1/") and not path.startswith(ANTHROPICS) and method != "HEAD":
            content = b"" if response.streaming else response.content
            operation = check(method, path, response.status_code, response.headers["Content-Type"], content)
            self.seen[operation, response.status_code] += 1
        return response
