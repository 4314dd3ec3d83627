"""A prompt and an answer as a person reads them, whatever JSON they are."""

import pytest

from batches.admin import reading

CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]}
PARTS = {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url"}]}]}


def said(found):
    return [(each.who, each.text) for each in found]


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (CHAT, [("system", "Be brief."), ("user", "Hello")]),
        (PARTS, [("user", "What is it?\n[image_url]")]),
        ({"prompt": "Once"}, [("prompt", "Once")]),
        ({"prompt": ["Once", "Twice"]}, [("prompt", "Once"), ("prompt", "Twice")]),
        ({"instructions": "Be brief.", "input": "Hello"}, [("system", "Be brief."), ("prompt", "Hello")]),
        ({"input": [{"role": "user", "content": "Hello"}]}, [("user", "Hello")]),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]}, [("user", "Hi")]),
        ({}, []),
        ("text", []),
        (None, []),
    ],
)
def test_a_prompt(body, texts):
    assert said(reading._asked(body)) == texts


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ({"choices": [{"message": {"role": "assistant", "content": "Hi"}}]}, [("assistant", "Hi")]),
        ({"choices": [{"text": "Hi"}]}, [("assistant", "Hi")]),
        (
            {"choices": [{"message": {"role": "assistant", "reasoning_content": "Hm", "content": "Hi"}}]},
            [("reasoning", "Hm"), ("assistant", "Hi")],
        ),
        (
            {"choices": [{"message": {"role": "assistant", "content": '{"score":7}'}}]},
            [("assistant", '{\n  "score": 7\n}')],
        ),
        (
            {"output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}]},
            [("assistant", "Hi")],
        ),
        ({"data": [{"embedding": [0.5] * 9}]}, [("embedding", "9 numbers: 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, …")]),
        ({"error": {"code": "no", "message": "Not so."}}, [("no", "Not so.")]),
        ({"code": "batch_expired", "message": "Too late."}, [("batch_expired", "Too late.")]),
        ({"choices": "odd"}, []),
        ([], []),
    ],
)
def test_an_answer(body, texts):
    assert said(reading._answered(body)) == texts


@pytest.mark.parametrize("odd", [None, 1, "x", [], {}, [None], [[]], {"a": None}])
def test_no_json_is_too_odd(odd):
    for name in ("messages", "input", "prompt", "instructions"):
        reading._asked({name: odd})
        reading._asked({"messages": [{"role": odd, "content": odd, "tool_calls": odd, "name": odd}]})
        reading._asked({"messages": [{"content": [odd, {"type": odd, "text": odd}]}]})
    for name in ("choices", "output", "data", "error"):
        reading._answered({name: odd})
        reading._answered({name: [odd]})
        reading._answered({name: [{"message": odd, "text": odd, "embedding": odd, "content": odd}]})
        reading._answered({name: [{"embedding": [odd]}]})


def test_calls_of_tools_are_told():
    call = {"function": {"name": "look", "arguments": "{}"}}
    found = reading._answered({"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [call]}}]})
    assert [(each.who, each.is_code) for each in found] == [("assistant calls a tool", True)]
    assert "look" in found[0].text


def test_a_long_text_is_cut():
    (only,) = reading._asked({"prompt": "x" * (reading.MOST_CHARACTERS + 5)})
    assert only.text.endswith("… and 5 more characters. Download the file to read them.")
