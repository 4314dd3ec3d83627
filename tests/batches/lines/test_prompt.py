"""How a prompt begins: keys that sort lines so that those beside each other share most."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batches.lines import fingerprint, prompt
from common import strict_json
from tests.batches.lines.bodies import COMPLETIONS, EMBEDDINGS, GENERATING, RESPONSES, asking
from tests.conftest import CHAT
from tests.generated import ANY_TEXT, steady, values

ENDPOINTS = [*GENERATING, EMBEDDINGS]
ANYTHING = values(ANY_TEXT)


def key(text, /, endpoint=COMPLETIONS, **more):
    return prompt.order_key(endpoint, asking(endpoint, text, **more))


# Sorting


@settings(steady, max_examples=steady.max_examples // 2)
@given(st.data())
def test_lines_that_share_a_beginning_stand_together(data):
    """Groups that differ from each other before a cut, and whose members share all up to it, are contiguous."""
    endpoint = data.draw(st.sampled_from(GENERATING))
    cut = data.draw(st.sampled_from(prompt.CUTS[:12]))
    # What comes before the text in a chat is the same for all.
    differing = st.text("abcdef", min_size=cut // 2, max_size=cut // 2)
    heads = data.draw(st.lists(differing, min_size=2, max_size=5, unique=True))
    bodies = [
        (group, asking(endpoint, head + "x" * (cut - len(head)) + tail))
        for group, head in enumerate(heads)
        for tail in data.draw(st.lists(st.text(max_size=600), min_size=1, max_size=4))
    ]
    random.Random(cut).shuffle(bodies)
    seen = [group for group, _ in sorted(bodies, key=lambda pair: prompt.order_key(endpoint, pair[1]))]
    borders = [group for before, group in zip([None, *seen], seen, strict=False) if group != before]
    assert len(borders) == len(set(seen))


@steady
@given(st.sampled_from(GENERATING), ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_as_many_blocks_are_shared_as_the_beginning_holds(endpoint, head, one, other):
    head = head * 20
    a, b = asking(endpoint, head + one), asking(endpoint, head + other)
    shared = prompt.shared_blocks(prompt.order_key(endpoint, a), prompt.order_key(endpoint, b))
    bytes_ = len(head.encode("utf-8", "surrogatepass"))
    assert shared >= sum(cut <= bytes_ for cut in prompt.CUTS)
    if one == other:
        assert prompt.order_key(endpoint, a) == prompt.order_key(endpoint, b)


@pytest.mark.parametrize("cut", prompt.CUTS)
def test_a_difference_just_before_a_cut_shows_there_and_from_there_on(cut):
    a, b = key("x" * 2**17), key("x" * (cut - 1) + "y" + "x" * (2**17 - cut))
    at = prompt.CUTS.index(cut)
    assert prompt.shared_blocks(a, b) == at
    for number in range(at, len(prompt.CUTS)):
        start = prompt.SHAPE_BYTES + number * prompt.HASH_BYTES
        assert a[start : start + prompt.HASH_BYTES] != b[start : start + prompt.HASH_BYTES]


def test_a_fifth_of_what_is_shared_is_lost_at_worst():
    for before, cut in zip(prompt.CUTS[3:], prompt.CUTS[4:], strict=False):
        assert before / cut >= 0.79


def test_a_system_prompt_is_shared_whatever_follows():
    system = {"role": "system", "content": "You are a careful reviewer. " * 40}
    keys = [
        prompt.order_key(CHAT, {"messages": [system, {"role": "user", "content": text}]})
        for text in ("one", "another " * 300)
    ]
    assert prompt.shared_blocks(*keys) == sum(cut <= len(system["content"]) for cut in prompt.CUTS)


def test_parts_of_text_are_read_like_text_alone():
    document = "The contract says. " * 50

    def content(*texts):
        return [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]

    a = prompt.order_key(CHAT, {"messages": content(document, "Who pays?")})
    b = prompt.order_key(CHAT, {"messages": content(document, "When?")})
    c = prompt.order_key(CHAT, {"messages": [{"role": "user", "content": document}]})
    assert prompt.shared_blocks(a, b) == prompt.shared_blocks(a, c) == sum(cut <= len(document) for cut in prompt.CUTS)


@pytest.mark.parametrize(
    "shape",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": [{"name": "f"}]},
        {"response_format": {"type": "json_object"}},
        {"text": {"format": {"type": "json_object"}}},
        {"reasoning_effort": "low"},
        {"reasoning": {"effort": "low"}},
    ],
)
def test_requests_of_another_shape_share_nothing(shape):
    text = "x" * 1000
    assert prompt.shared_blocks(key(text), key(text, **shape)) == 0
    assert prompt.shared_blocks(key(text, **shape), key(text, **shape)) == 10
    assert key(text, **dict.fromkeys(shape)) == key(text)


def test_what_does_not_shape_the_prompt_does_not_count():
    assert key("x" * 100, temperature=0, max_tokens=5, user="me", text={"verbosity": "low"}) == key("x" * 100)


def test_embeddings_keep_the_order_of_the_input():
    assert prompt.order_key(EMBEDDINGS, {"input": "x" * 1000}) == b""
    assert prompt.shared_blocks(b"", b"") == 0


def test_a_key_fits_its_column():
    assert len(key("x" * 2**18)) <= 255
    assert len(key("x" * 1024)) == 4 + 10 * 3
    assert prompt.shared_blocks(memoryview(key("x" * 64)), key("x" * 64)) == 1  # as Postgres gives it


# Anything that JSON can be

MESSAGES = st.lists(
    ANYTHING
    | st.fixed_dictionaries(
        {"role": ANYTHING, "content": ANYTHING}, optional={"tool_calls": ANYTHING, "name": ANYTHING}
    )
    | st.fixed_dictionaries({"content": st.lists(ANYTHING | st.fixed_dictionaries({"type": ANYTHING}))})
)
BODIES = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("messages", "input", "prompt"), MESSAGES | ANYTHING)
    | dict.fromkeys(
        [*prompt.SHAPING, *prompt.LIMITS, "text", "instructions", "suffix", "temperature", "seed", "model"], ANYTHING
    ),
)


@steady
@given(st.sampled_from(ENDPOINTS), BODIES)
def test_no_body_raises_and_equal_bodies_are_equal(endpoint, body):
    again = json.loads(json.dumps(body))
    measured = prompt.measure(endpoint, body)
    assert prompt.measure(endpoint, again) == measured
    assert len(measured.order_key) <= 255
    assert 0 <= measured.context_tokens <= prompt.MOST_TOKENS
    digest = fingerprint.digest(endpoint, "m", body)
    assert fingerprint.digest(endpoint, "m", again) == digest
    assert digest is None or len(digest) == fingerprint.DIGEST_BYTES


def test_a_body_that_is_nested_as_deep_as_is_read_raises_nothing():
    for depth in (2, strict_json.MOST_LEVELS):
        nested = []
        for _ in range(depth - 2):
            nested = [nested]
        for endpoint in ENDPOINTS:
            body = {"messages": nested, "input": nested, "prompt": nested, "tools": nested, "seed": 1}
            prompt.measure(endpoint, body)
            fingerprint.digest(endpoint, "m", body)


# Room in the context


@pytest.mark.parametrize(
    ("endpoint", "body", "tokens"),
    [
        (COMPLETIONS, {"prompt": "x" * 300}, 100),
        (COMPLETIONS, {"prompt": "ä" * 300}, 200),
        (COMPLETIONS, {"prompt": "x"}, 1),
        (COMPLETIONS, {"prompt": "x" * 300, "max_tokens": 50}, 150),
        (COMPLETIONS, {"prompt": "x" * 300, "suffix": "y" * 30}, 110),
        (COMPLETIONS, {"prompt": ["x" * 300, "x" * 30]}, 100),
        (COMPLETIONS, {"prompt": [5, 6, 7]}, 3),
        (CHAT, asking(CHAT, "x" * 295, max_completion_tokens=20), 120),
        (CHAT, asking(CHAT, "x" * 295, tools=[{"type": "function"}]), 107),
        (CHAT, asking(CHAT, "x" * 295, max_tokens=True), 100),
        (CHAT, asking(CHAT, "x" * 295, max_tokens="9"), 100),
        (RESPONSES, {"instructions": "x" * 200, "input": "x" * 99, "max_output_tokens": 7}, 107),
        (EMBEDDINGS, {"input": ["x" * 30, "x" * 60], "max_tokens": 9}, 20),
        (EMBEDDINGS, {"input": [[1, 2, 3], [1]]}, 3),
        (EMBEDDINGS, {}, 0),
        (COMPLETIONS, {"prompt": "x", "max_tokens": 10**30}, prompt.MOST_TOKENS),
    ],
)
def test_it_estimates_what_a_line_takes_at_most(endpoint, body, tokens):
    assert prompt.measure(endpoint, body).context_tokens == tokens


def test_an_image_counts_as_an_image_and_not_by_its_bytes():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 30_000}}
    text = {"type": "text", "text": "x" * 93}
    chat = {"messages": [{"role": "user", "content": [text, image, image]}]}
    assert prompt.measure(CHAT, chat).context_tokens == 34 + 2 * 1024
