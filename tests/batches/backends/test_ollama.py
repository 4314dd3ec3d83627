"""What Ollama gets in place of what it would ignore, and what it does not get."""

import pytest

from tests.batches.conftest import results
from tests.conftest import line


def test_max_completion_tokens_reaches_ollama_under_the_name_it_knows(create, work, backend):
    work.run(create([line("a", body={"max_tokens": None, "max_completion_tokens": 5})])["id"])
    assert backend.seen[0].body["max_tokens"] == 5
    assert "max_completion_tokens" not in backend.seen[0].body


@pytest.mark.parametrize(
    ("endpoint", "body", "said"),
    [
        ("/v1/chat/completions", {"n": 2}, "'n'"),
        ("/v1/chat/completions", {"tool_choice": "required"}, "'tool_choice'"),
        ("/v1/chat/completions", {"logit_bias": {"5": -100}}, "'logit_bias'"),
        ("/v1/completions", {"best_of": 3}, "'best_of'"),
        ("/v1/responses", {"previous_response_id": "resp_1"}, "'previous_response_id'"),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "HTTP://x/y.png"}}]}
                ]
            },
            "data: URL",
        ),
        (
            "/v1/responses",
            {
                "messages": [],
                "input": [{"role": "user", "content": [{"type": "input_image", "image_url": " http://x/y.png"}]}],
            },
            "data: URL",
        ),
        (
            "/v1/responses",
            {
                "input": [
                    {
                        "type": "function_call_output",
                        "call_id": "c",
                        "output": [{"type": "input_image", "image_url": "file:///etc/passwd"}],
                    }
                ]
            },
            "data: URL",
        ),
        ("/v1/completions", {"prompt": ""}, "empty 'prompt'"),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}]},
            "data: URL",
        ),
    ],
)
def test_what_ollama_would_ignore_or_fetch_is_refused_and_not_sent(create, work, backend, endpoint, body, said):
    batch = work.run(create([line("a", url=endpoint, body=body), line("b", url=endpoint)], endpoint=endpoint)["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    _, errors = results(work, batch)
    # As the endpoint itself would have refused it.
    assert (errors["a"]["error"], errors["a"]["response"]["status_code"]) == (None, 400)
    refusal = errors["a"]["response"]["body"]["error"]
    assert (refusal["type"], refusal["code"]) == ("invalid_request_error", "unsupported_parameter")
    assert said in refusal["message"]
    assert backend.arrived() == ["b"]


def test_members_that_ask_for_nothing_more_are_fine(create, work, backend):
    harmless = {"n": 1, "tool_choice": "auto", "logit_bias": {}, "user": "me", "metadata": {}, "store": False}
    batch = work.run(create([line("a", body=harmless)])["id"])
    assert batch["request_counts"]["completed"] == 1


def test_text_parts_reach_ollama_as_one_message(create, work, backend):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "system", "content": parts}, {"role": "user", "content": [*parts, image]}]
    work.run(create([line("a", body={"messages": messages})])["id"])
    assert backend.seen[0].body["messages"] == [{"role": "system", "content": "one\ntwo"}, messages[1]]


def test_a_list_of_one_prompt_reaches_ollama_as_a_string(create, work, backend):
    work.run(create([line("a", url="/v1/completions", body={"prompt": ["a"]})], endpoint="/v1/completions")["id"])
    assert backend.seen[0].body["prompt"] == "a"
