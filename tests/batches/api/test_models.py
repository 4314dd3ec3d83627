"""/v1/models: what the live backends list, and aliases."""

from datetime import timedelta
from urllib.parse import quote

import pytest
from django.utils import timezone

from batches import registry
from batches.models import Backend


@pytest.fixture
def reported(api, backend):
    backend.models = ["gemma3:12b", "hf.co/user/repo:Q4"]
    registry.report_backend()


def test_it_lists_what_the_backend_has(api, reported):
    assert api.get("/v1/models").json() == {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "library"}
            for name in ("gemma3:12b", "hf.co/user/repo:Q4")
        ],
    }


@pytest.mark.parametrize("path", ["gemma3:12b", "gemma3%3A12b", "hf.co/user/repo:Q4", "hf.co%2Fuser%2Frepo%3AQ4"])
def test_it_retrieves_one_whatever_its_id_holds(api, reported, path):
    answer = api.get(f"/v1/models/{path}")
    assert (answer.status_code, answer.json()["object"]) == (200, "model")


def test_an_alias_is_a_model_too(api, reported, settings):
    settings.MODEL_ALIASES = {"gpt-4o-mini": "gemma3:12b", "gone": "not-there", "*": "gemma3:12b"}
    assert [model["id"] for model in api.get("/v1/models").json()["data"]] == [
        "gemma3:12b",
        "gpt-4o-mini",
        "hf.co/user/repo:Q4",
    ]
    assert api.get("/v1/models/gpt-4o-mini").json()["owned_by"] == "library"


@pytest.mark.parametrize(
    ("name", "aliases"),
    [
        ("gemma3:12B", {}),
        ("library/gemma3:12b", {}),
        ("HF.co/user/repo:q4", {}),
        ("gpt-4o-mini", {"gpt-4o-mini": "registry.ollama.ai/library/gemma3:12b"}),
        ("whatever", {"*": "Gemma3:12b"}),
        ("tiny", {}),
        ("some name/of: any kind", {"*": "tiny"}),
    ],
)
def test_any_name_that_a_line_may_use_can_be_retrieved(api, backend, settings, name, aliases):
    backend.models = ["gemma3:12b", "hf.co/user/repo:Q4", "tiny:latest"]
    registry.report_backend()
    settings.MODEL_ALIASES = aliases
    answer = api.get(f"/v1/models/{quote(name, safe='')}")
    assert (answer.status_code, answer.json()["id"], answer.json()["owned_by"]) == (200, name, "library")


def test_the_list_names_an_alias_however_its_model_is_spelt(api, reported, settings):
    settings.MODEL_ALIASES = {"gpt-4o": "Library/Gemma3:12b"}
    assert "gpt-4o" in [model["id"] for model in api.get("/v1/models").json()["data"]]


@pytest.mark.parametrize("aliases", [{}, {"gpt-4o": "gone:1b"}, {"*": "gone:1b"}])
def test_a_name_that_no_line_may_use_is_a_404(api, reported, settings, aliases):
    settings.MODEL_ALIASES = aliases
    assert api.get("/v1/models/gpt-4o").status_code == 404


def test_an_unknown_model_is_a_404(api, reported):
    answer = api.get("/v1/models/nope:1b")
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "The model 'nope:1b' does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_a_backend_whose_worker_is_gone_lists_nothing(api, reported):
    Backend.objects.update(worker_seen_at=timezone.now() - timedelta(hours=1))
    assert api.get("/v1/models").json()["data"] == []


@pytest.mark.parametrize(
    ("fits", "loaded", "context"),
    [(True, [], 131_072), (False, ["gemma3:12b"], 4096), (False, [], None)],
)
def test_it_tells_the_context_of_a_line_if_it_is_asked(api, backend, settings, fits, loaded, context):
    """What the model was made for where lines get a context that fits them, or else what it has now."""
    settings.FIT_CONTEXT = fits
    backend.models, backend.loaded = ["gemma3:12b"], loaded
    registry.report_backend()
    settings.MODEL_ALIASES = {"gpt-4o-mini": "gemma3:12b"}
    for name in ("gemma3:12b", "gpt-4o-mini"):
        assert api.get(f"/v1/models/{name}?context=true").json()["context_tokens"] == context
    assert "context_tokens" not in api.get("/v1/models/gemma3:12b").json()


def test_a_context_that_nobody_tells_is_null(api, backend):
    registry.report_backend()
    Backend.objects.update(seen_at=timezone.now() - timedelta(hours=1))
    assert api.get("/v1/models/gemma3:12b?context=true").json()["context_tokens"] is None
    assert api.get("/v1/models/none?context=true").status_code == 404
    answer = api.get("/v1/models/gemma3:12b?context=yes")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "context")
