"""The model of requests that name none."""

import pytest

from batches import backends, registry
from batches.models import Line
from tests.conftest import CHAT, line


@pytest.mark.parametrize(
    ("is_set", "listed", "model"),
    [
        (False, ["qwen3:14b"], "qwen3:14b"),
        (False, [], "gemma3:12b"),
        (False, ["qwen3:14b", "qwen3:4b"], "gemma3:12b"),
        (True, ["qwen3:14b"], "gemma3:12b"),
    ],
)
def test_it_is_the_only_model_that_is_listed_unless_one_was_set(settings, is_set, listed, model):
    settings.MODEL_NAME_IS_SET = is_set
    assert backends.default_model(listed) == model


def test_lines_and_persons_that_name_none_get_the_only_model(create, work, backend, api):
    backend.models = ["qwen3:14b"]
    backend.refuse_missing = True
    registry.report_backend()
    assert registry.missing_default_model(registry.own_backend()) == ""
    nameless = line("a")
    del nameless["body"]["model"]
    batch = work.run(create([nameless])["id"])
    assert batch["request_counts"]["completed"] == 1
    assert Line.objects.get().model == "qwen3:14b"
    assert api.post(CHAT, {"messages": nameless["body"]["messages"]}, format="json").json()["model"] == "qwen3:14b"
