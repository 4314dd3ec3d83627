"""Requests with one answer alone have a digest, and only they."""

import pytest

from batches.lines import fingerprint
from tests.batches.lines.bodies import EMBEDDINGS, GENERATING, RESPONSES, asking
from tests.conftest import CHAT


@pytest.mark.parametrize("sure", [{"temperature": 0}, {"temperature": 0.0}, {"temperature": -0.0}, {"seed": 7}])
@pytest.mark.parametrize("endpoint", GENERATING)
def test_a_request_that_is_not_sampled_by_chance_has_a_digest(endpoint, sure):
    assert len(fingerprint.digest(endpoint, "m", asking(endpoint, "x", **sure))) == 16


@pytest.mark.parametrize(
    "unsure", [{}, {"temperature": 0.1}, {"temperature": False}, {"temperature": "0"}, {"seed": 7.0}, {"seed": True}]
)
@pytest.mark.parametrize("endpoint", GENERATING)
def test_one_that_is_has_none(endpoint, unsure):
    assert fingerprint.digest(endpoint, "m", asking(endpoint, "x", **unsure)) is None
    assert len(fingerprint.digest(EMBEDDINGS, "m", asking(EMBEDDINGS, "x", **unsure))) == 16


def test_a_digest_is_of_all_that_is_asked():
    body = asking(CHAT, "x", temperature=0, max_tokens=5)
    others = [
        fingerprint.digest(CHAT, "m", body),
        fingerprint.digest(CHAT, "n", body),
        fingerprint.digest(RESPONSES, "m", body),
        fingerprint.digest(CHAT, "m", body | {"max_tokens": 6}),
        fingerprint.digest(CHAT, "m", body | {"max_tokens": 5.0}),
        fingerprint.digest(CHAT, "m", dict(reversed(body.items()))),
    ]
    assert len(set(others)) == len(others)


def test_the_name_of_the_model_is_not_what_is_asked():
    body = {"messages": [], "temperature": 0, "model": "gemma3:12b"}
    digest = fingerprint.digest(CHAT, "gemma3:12b", body)
    assert fingerprint.digest(CHAT, "gemma3:12b", body | {"model": "alias"}) == digest
    assert fingerprint.digest(CHAT, "gemma3:12b", {"model": "alias", "messages": [], "temperature": 0}) == digest
    assert fingerprint.digest(CHAT, "gemma3:12b", {"messages": [], "temperature": 0}) == digest
    assert fingerprint.digest(CHAT, "qwen3:8b", body) != digest
    assert body["model"] == "gemma3:12b"
