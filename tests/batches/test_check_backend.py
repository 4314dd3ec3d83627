"""`manage.py check_backend` says what was found: of each kind of server, with the setting and without."""

import io

import pytest
from django.core.management import CommandError, call_command

from batches import registry
from batches.models import Backend
from tests.fake_backend import MODEL


def printed():
    out = io.StringIO()
    call_command("check_backend", stdout=out)
    return dict(each.split(": ", 1) for each in out.getvalue().splitlines())


@pytest.fixture(autouse=True)
def _its_model(settings):
    settings.MODEL_NAME = MODEL


def test_an_ollama_whose_slots_were_not_counted_yet_and_then_were(backend, db):
    found = printed()
    assert found["Calls in flight"].startswith("as many as it has slots, which are counted before a batch of ")
    assert found["Context of a call"] == "4,096 tokens"
    assert found["Prompt cache"].startswith("each slot keeps")
    registry.report_backend()
    row = Backend.objects.get()
    row.now_has_loaded(MODEL)
    row.has_counted_slots(1)
    assert printed()["Calls in flight"] == "2 (slots: 1, counted)"
    row.has_counted_slots(4)
    assert printed()["Calls in flight"] == "5, 4 of lines that begin alike (slots: 4, counted)"
    row.now_has_loaded("other:1b")  # which may have other slots
    row.has_counted_slots(4)
    assert printed()["Calls in flight"].startswith("as many as it has slots")


def test_a_vllm(backend, db):
    backend.is_vllm = True
    found = printed()
    busy = "now 0 run and 0 wait; its cache has room for 22 calls of full length"
    assert found["Calls in flight"] == f"64 at first, then what its /metrics tell, 256 at most ({busy})"
    assert found["Context of a call"] == "2,048 tokens"
    assert found["Prompt cache"].startswith("what one call has read")
    backend.has_metrics = False
    assert printed()["Calls in flight"] == "2 at first, then more while tokens a second grow, 256 at most"


@pytest.mark.parametrize(("is_vllm", "size"), [(True, "9"), (False, "9, 8 of lines that begin alike")])
def test_the_setting_wins(backend, db, settings, is_vllm, size):
    backend.is_vllm = is_vllm
    settings.BACKEND_PARALLEL = 8
    assert printed()["Calls in flight"] == f"{size} (BACKEND_PARALLEL is 8)"


def test_a_model_that_is_not_loaded_has_no_context_yet(backend, db):
    backend.loaded = []
    assert printed()["Context of a call"] == "not known while the model is not loaded"


def test_without_the_default_model_nothing_else_is_told(backend, db):
    backend.models = ["other:1b", "another:1b"]  # one alone would be the default
    with pytest.raises(CommandError, match="ollama pull"):
        printed()
