"""What becomes of each member of a request, by kind of server and endpoint."""

import copy
import json
import re
from pathlib import Path

import pytest

from batches import backends
from batches.backends.parameters import ollama, page
from batches.backends.parameters.table import Finding, Moved, Weight
from batches.dispatch.ignored_members import IgnoredMembers
from batches.lines.jsonl import ENDPOINTS
from batches.models import Batch, Line, LineState
from tests.batches.conftest import results
from tests.conftest import CHAT, line

COMPLETIONS, EMBEDDINGS, RESPONSES = "/v1/completions", "/v1/embeddings", "/v1/responses"
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
PNG = "iVBORw0KGgoAAAANSUhEUg=="
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}


def asking(endpoint, **members):
    """A good body with these members."""
    if endpoint == CHAT:
        asked = {"messages": [{"role": "user", "content": "x"}]}
    else:
        asked = {"prompt" if endpoint == COMPLETIONS else "input": "x"}
    return {"model": "m"} | asked | members


def translate(kind, endpoint, body, **how):
    """What is sent, and what is ignored; the body that was given stays as it is."""
    given = copy.deepcopy(body)
    translation = backends.kind_named(kind).translate(endpoint, body, **how)
    assert body == given
    return translation


def sent(kind, endpoint, **members):
    """What is sent in place of these members, all of which the server heeds."""
    body = asking(endpoint, **members)
    translation = translate(kind, endpoint, body)
    assert not translation.findings
    plain = asking(endpoint)
    return {name: value for name, value in translation.body.items() if plain.get(name) != value}


def refused(kind, endpoint, **members):
    refusal = translate(kind, endpoint, asking(endpoint, **members)).refusal()
    return refusal.param if refusal else None


@pytest.mark.parametrize(
    ("endpoint", "given", "expected"),
    [
        (CHAT, {"max_completion_tokens": 5}, {"max_tokens": 5}),
        (CHAT, {"max_completion_tokens": 5, "max_tokens": None}, {"max_tokens": 5}),
        (CHAT, {"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 5}),
        (CHAT, {"max_completion_tokens": 50, "max_tokens": -1}, {"max_tokens": 50}),
        (CHAT, {"max_completion_tokens": -1, "max_tokens": 50}, {"max_tokens": 50}),
        (CHAT, {"max_completion_tokens": -2, "max_tokens": -1}, {"max_tokens": -1}),
        (CHAT, {"max_completion_tokens": 5.0}, {"max_tokens": 5}),
        (RESPONSES, {"max_tokens": 50, "num_predict": -1}, {"max_output_tokens": 50}),
        (COMPLETIONS, {"max_completion_tokens": 5}, {"max_tokens": 5}),
        (RESPONSES, {"max_tokens": 5}, {"max_output_tokens": 5}),
        (RESPONSES, {"max_completion_tokens": 5}, {"max_output_tokens": 5}),
        (CHAT, {"think": False}, {"reasoning_effort": "none"}),
        (CHAT, {"think": True}, {"reasoning_effort": "medium"}),
        (CHAT, {"think": "low"}, {"reasoning_effort": "low"}),
        (CHAT, {"think": False, "reasoning_effort": "none"}, {"reasoning_effort": "none"}),
        (CHAT, {"think": None}, {}),
        (CHAT, {"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
        (CHAT, {"enable_thinking": False}, {"reasoning_effort": "none"}),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}),
        (CHAT, {"chat_template_kwargs": {"thinking": True}}, {"reasoning_effort": "medium"}),
        (CHAT, {"chat_template_kwargs": {}}, {}),
        (CHAT, {"reasoning": {"effort": "high"}}, {"reasoning_effort": "high"}),
        # With an empty `reasoning` Ollama would not read the effort beside it.
        (CHAT, {"reasoning": {}, "reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        (CHAT, {"reasoning": {"enabled": False, "exclude": False}}, {"reasoning_effort": "none"}),
        (RESPONSES, {"think": False}, {"reasoning": {"effort": "none"}}),
        (RESPONSES, {"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
        (RESPONSES, {"reasoning": {"effort": "low", "summary": "auto"}}, None),
        (CHAT, {"format": "json"}, {"response_format": {"type": "json_object"}}),
        (
            CHAT,
            {"format": SCHEMA},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        ),
        (
            CHAT,
            {"response_format": FORMAT},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        ),
        (
            CHAT,
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        ),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "schema": SCHEMA}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        ),
        (CHAT, {"response_format": {"type": "text"}}, None),
        (
            RESPONSES,
            {"response_format": FORMAT},
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}},
        ),
        (
            RESPONSES,
            {"text": {"format": {"type": "json_object"}, "verbosity": "medium"}},
            {"text": {"format": {"type": "json_schema", "name": "json_object", "schema": {"type": "object"}}}},
        ),
        (
            CHAT,
            {"options": {"temperature": 0, "top_p": 0.5, "seed": 1, "stop": ["a"], "num_predict": 7, "num_ctx": None}},
            {"temperature": 0, "top_p": 0.5, "seed": 1, "stop": ["a"], "max_tokens": 7},
        ),
        (COMPLETIONS, {"options": {"num_predict": 7}}, {"max_tokens": 7}),
        (RESPONSES, {"options": {"num_predict": 7, "temperature": 0}}, {"max_output_tokens": 7, "temperature": 0}),
        (CHAT, {"options": {}}, {}),
        (CHAT, {"tools": [TOOL], "tool_choice": "none"}, {}),
        (CHAT, {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True}, {"tools": [TOOL]}),
        (CHAT, {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, {"tools": []}),
        (RESPONSES, {"tools": [{"type": "function", "name": "f"}], "tool_choice": "none"}, {}),
        (CHAT, {"functions": [TOOL["function"]]}, {"tools": [TOOL]}),
        (CHAT, {"functions": [TOOL["function"]], "function_call": "auto"}, {"tools": [TOOL]}),
        (CHAT, {"functions": [TOOL["function"]], "function_call": "none"}, {}),
        (CHAT, {"logprobs": True, "top_logprobs": 5}, None),
        (CHAT, {"logprobs": False, "top_logprobs": 0}, {"logprobs": False}),
        (COMPLETIONS, {"prompt": ["one"]}, {"prompt": "one"}),
        (COMPLETIONS, {"suffix": "end"}, None),
        (EMBEDDINGS, {"input": ["a", "b"], "dimensions": 64, "encoding_format": "base64"}, None),
        (EMBEDDINGS, {"temperature": 0, "max_tokens": 5, "options": {"seed": 1}}, {}),
    ],
)
def test_ollama_gets_what_it_reads(endpoint, given, expected):
    assert sent("ollama", endpoint, **given) == (given if expected is None else expected)


@pytest.mark.parametrize("kind", ["ollama", "vllm"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_what_changes_no_answer_is_left_out_without_a_word(kind, endpoint):
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "keep_alive": "5m"}
    harmless |= {"safety_identifier": "x", "prompt_cache_key": "x", "verbosity": "medium", "best_of": 1}
    harmless |= {"no_such_member": None, "num_ctx": None, "n": None}
    assert not sent(kind, endpoint, **harmless).keys() - {"n"}
    assert sent(kind, endpoint, n=1) in ({}, {"n": 1})
    assert "stream" not in translate(kind, endpoint, asking(endpoint, stream=False, stream_options=None)).body


NEVER_READ = ["num_ctx", "top_k", "min_p", "repeat_penalty", "mirostat", "raw", "template", "system", "truncate"]
NEVER_READ += ["input_type", "guided_json", "no_such_member", "Temperature ", "extra_body", "use_beam_search"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("name", NEVER_READ)
def test_ollama_is_not_asked_for_what_it_ignores(endpoint, name):
    assert refused("ollama", endpoint, **{name: True}) == name


@pytest.mark.parametrize(
    ("endpoint", "given", "param"),
    [
        (CHAT, {"n": 2}, "n"),
        (CHAT, {"n": True}, "n"),
        (CHAT, {"best_of": 2}, "best_of"),
        (CHAT, {"logit_bias": {"5": 1}}, "logit_bias"),
        (CHAT, {"suffix": "x"}, "suffix"),
        (CHAT, {"stop": ["a", 5]}, "stop"),
        (CHAT, {"options": {"temperature": 0, "num_ctx": 8192}}, "options.num_ctx"),
        (CHAT, {"options": {"temperature": 0}, "temperature": 1}, "options.temperature"),
        (CHAT, {"think": False, "reasoning_effort": "high"}, "think"),
        (CHAT, {"think": 5}, "think"),
        (CHAT, {"chat_template_kwargs": {"documents": []}}, "chat_template_kwargs"),
        (CHAT, {"reasoning": {"effort": "low", "max_tokens": 9}}, "reasoning.max_tokens"),
        (CHAT, {"format": "yaml"}, "format"),
        (CHAT, {"format": SCHEMA, "response_format": {"type": "text"}}, "format"),
        (CHAT, {"response_format": {"type": "regex", "pattern": "a"}}, "response_format.type"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "{}"}}},
            "response_format.json_schema.schema",
        ),
        (CHAT, {"response_format": {"type": "grammar", "grammar": "g"}}, "response_format.type"),
        (CHAT, {"response_format": SCHEMA}, "response_format.type"),
        (CHAT, {"response_format": FORMAT | {"pattern": "a"}}, "response_format.pattern"),
        (CHAT, {"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        (CHAT, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (CHAT, {"functions": [TOOL["function"]], "function_call": {"name": "f"}}, "tool_choice"),
        (CHAT, {"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
        (CHAT, {"tools": [TOOL, {"type": "web_search"}]}, "tools[1].type"),
        (CHAT, {"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
        (CHAT, {"tools": [TOOL | {"examples": ["f(1)"]}]}, "tools[0].examples"),
        (CHAT, {"top_logprobs": 5}, "top_logprobs"),
        (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
        (CHAT, {"verbosity": "low"}, "verbosity"),
        (CHAT, {"web_search_options": {}}, "web_search_options"),
        (CHAT, {"prompt": "x"}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", "b"]}, "prompt"),
        (COMPLETIONS, {"prompt": [1, 2]}, "prompt"),
        (COMPLETIONS, {"prompt": ""}, "prompt"),
        (COMPLETIONS, {"prompt": None}, "prompt"),
        (COMPLETIONS, {"logprobs": 0}, "logprobs"),
        (COMPLETIONS, {"logprobs": 5}, "logprobs"),
        (COMPLETIONS, {"echo": True}, "echo"),
        (COMPLETIONS, {"top_p": 0}, "top_p"),
        (COMPLETIONS, {"response_format": FORMAT}, "response_format"),
        (COMPLETIONS, {"think": False}, "think"),
        (EMBEDDINGS, {"input": [1, 2]}, "input"),
        (EMBEDDINGS, {"input": [[1, 2], [3]]}, "input"),
        (EMBEDDINGS, {"input": ["a", 5]}, "input"),
        (EMBEDDINGS, {"input": [{"type": "text", "text": "a"}]}, "input"),
        (EMBEDDINGS, {"options": {"num_ctx": 8192}}, "options.num_ctx"),
        (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
        (RESPONSES, {"conversation": "conv_1"}, "conversation"),
        (RESPONSES, {"prompt": {"id": "pmpt_1"}}, "prompt"),
        (RESPONSES, {"background": True}, "background"),
        (RESPONSES, {"truncation": "auto"}, "truncation"),
        (RESPONSES, {"include": ["message.output_text.logprobs"]}, "include"),
        (RESPONSES, {"seed": 1}, "seed"),
        (RESPONSES, {"stop": "a"}, "stop"),
        (RESPONSES, {"options": {"seed": 1}}, "options.seed"),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        (RESPONSES, {"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        (RESPONSES, {"text": {"verbosity": "low"}}, "text.verbosity"),
        (RESPONSES, {"tools": [{"type": "file_search"}]}, "tools[0].type"),
        (RESPONSES, {"tools": [TOOL]}, "tools[0].function"),
        (RESPONSES, {"tools": [], "tool_choice": "required"}, "tool_choice"),
        (RESPONSES, {"messages": [{"role": "user", "content": "x"}]}, "messages"),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "rs_1"}]}, "input[0].type"),
        (
            RESPONSES,
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            RESPONSES,
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
            "input[0].content[0].type",
        ),
    ],
)
def test_ollama_is_not_asked_for_what_it_would_misread(endpoint, given, param):
    assert refused("ollama", endpoint, **given) == param


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "developer", "content": "a"}, {"role": "system", "content": "a"}),
        ({"role": "developer", "content": [{"type": "text", "text": "a"}]}, {"role": "system", "content": "a"}),
        ({"role": "Developer", "content": "a"}, {"role": "system", "content": "a"}),
        ({"role": "User", "content": "a"}, {"role": "User", "content": "a"}),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}],
            },
            {"role": "user", "content": "a\nb"},
        ),
        (
            {"role": "user", "content": "what?", "images": [PNG]},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:;base64,{PNG}"}},
                    {"type": "text", "text": "what?"},
                ],
            },
        ),
        (
            {"role": "user", "images": ["R0lGODlh", "AAAA", "data:image/webp;base64,UklG"]},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:;base64,R0lGODlh"}},
                    {"type": "image_url", "image_url": {"url": "data:;base64,AAAA"}},
                    {"type": "image_url", "image_url": {"url": "data:image/webp;base64,UklG"}},
                ],
            },
        ),
        ({"role": "user", "content": "a", "images": []}, {"role": "user", "content": "a"}),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "r"},
            {"role": "assistant", "content": "a", "reasoning": "r"},
        ),
        (
            {"role": "assistant", "content": "a", "thinking": "r"},
            {"role": "assistant", "content": "a", "reasoning": "r"},
        ),
        (
            {
                "role": "assistant",
                "content": "a",
                "refusal": None,
                "audio": None,
                "annotations": [],
                "function_call": None,
            },
            {"role": "assistant", "content": "a"},
        ),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_f", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
        ),
        ({"role": "function", "name": "f", "content": "1"}, {"role": "tool", "name": "f", "content": "1"}),
        ({"role": "tool", "tool_name": "f", "content": "1"}, {"role": "tool", "name": "f", "content": "1"}),
        ({"role": "TOOL", "name": "f", "content": "1"}, {"role": "TOOL", "name": "f", "content": "1"}),
        (
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "1"}]},
            {"role": "tool", "tool_call_id": "c", "content": "1"},
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
        ),
    ],
)
def test_ollama_gets_messages_in_its_own_shape(message, expected):
    assert sent("ollama", CHAT, messages=[message])["messages"] == [expected]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "critic", "content": "a"}, "role"),
        *(
            ({"role": role, "tool_call_id": "c", "content": [{"type": "text", "text": "a"}, IMAGE]}, "tool_call_id")
            for role in ("tool", "TOOL", "function")
        ),
        ({"role": "tool", "name": "f", "content": [IMAGE]}, "name"),
        ({"role": "tool", "tool_name": "f", "content": "a", "images": [PNG]}, "name"),
        ({"role": "tool", "tool_call_id": "c", "content": "a", "images": [PNG]}, "tool_call_id"),
        ({"role": "user", "content": "a", "weight": 1}, "weight"),
        ({"role": "user", "content": "a", "images": [{"path": "x"}]}, "images"),
        ({"role": "assistant", "content": "a", "prefix": True}, "prefix"),
        ({"role": "assistant", "refusal": "no"}, "refusal"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "file", "file": {"file_id": "f"}}]},
            "content[1].type",
        ),
        (
            {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,"}}]},
            "content[0].type",
        ),
        ({"role": "user", "content": [{"type": "text", "text": "a", "lang": "de"}]}, "content[0].lang"),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}, "tool_calls[0].type"),
    ],
)
def test_ollama_gets_no_message_that_it_would_show_in_part(message, param):
    messages = [{"role": "user", "content": "x"}, message]
    assert refused("ollama", CHAT, messages=messages) == f"messages[1].{param}"


@pytest.mark.parametrize("role", ["user", "assistant", "system", "developer"])
def test_a_name_that_ollama_does_not_show_is_told_and_sent(role):
    body = asking(CHAT, messages=[{"role": role, "content": "a", "name": "Ann"}])
    translation = translate("ollama", CHAT, body)
    assert [(each.param, each.weight) for each in translation.findings] == [("messages[0].name", Weight.TOLD)]
    assert translation.body["messages"][0]["name"] == "Ann"


@pytest.mark.parametrize("kind", ["ollama", "vllm"])
def test_what_client_libraries_keep_in_answers_comes_back_without_a_word(kind):
    function = {"name": "f", "arguments": "{}"}
    call = {"id": "c", "type": "function", "function": function}
    kept = {"refusal": "", "annotations": [], "parsed": {"a": 1}, "provider_specific_fields": {"x": 1}, "audio": None}
    message = {"role": "assistant", "content": "a", "tool_calls": [call]}
    assert sent(kind, CHAT, messages=[message | kept])["messages"] == [message]
    dumped = call | {"provider_specific_fields": {"y": 1}, "function": function | {"parsed_arguments": {"a": 1}}}
    messages = sent(kind, CHAT, messages=[message | kept | {"tool_calls": [dumped]}])["messages"]
    # vLLM takes calls as they are.
    assert messages == ([message] if kind == "ollama" else [message | {"tool_calls": [dumped]}])


@pytest.mark.parametrize("kind", ["ollama", "vllm", "embedded"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("stop_sequences", []), ("plugins", []), ("no_such_member", {}), ("no_such_member", ""), ("raw", False)),
        *(("template", ""), ("context", []), ("truncate", False), ("transforms", []), ("extra_headers", {})),
    ],
)
def test_what_asks_for_nothing_is_left_out_without_a_word(kind, endpoint, name, value):
    assert sent(kind, endpoint, **{name: value}) == {}


@pytest.mark.parametrize("kind", ["ollama", "vllm", "embedded"])
def test_what_is_turned_off_is_left_out_without_a_word(kind):
    assert sent(kind, COMPLETIONS, tools=[], tool_choice="auto", system="", images=[]) == {}
    assert sent(kind, CHAT, logprobs=False, top_logprobs=5, system="", prompt="") == {"logprobs": False}
    assert sent(kind, CHAT, logprobs=True, top_logprobs=5) == {"logprobs": True, "top_logprobs": 5}
    assert sent(kind, CHAT, echo=False) in ({}, {"echo": False})


@pytest.mark.parametrize("shape", [{}, {"type": "message"}])
@pytest.mark.parametrize("content", ["a", [{"type": "input_text", "text": "a"}]])
def test_developers_are_the_system_in_responses_too(shape, content):
    item = {"role": "developer", "content": content, **shape}
    assert sent("ollama", RESPONSES, input=[item])["input"] == [item | {"role": "system"}]


def test_a_conversation_goes_back_to_responses_as_it_came():
    items = [
        {"type": "message", "role": "user", "content": "a"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "r", "content": None, "status": None},
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
        },
    ]
    asked = sent("ollama", RESPONSES, input=items, store=False, include=["reasoning.encrypted_content"])
    assert [item.get("type") for item in asked["input"]] == [item["type"] for item in items]
    assert asked["input"][-1]["content"] == [{"type": "output_text", "text": "b"}]


ADDRESS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.mark.parametrize(
    ("given", "shown", "told"),
    [
        ({"$ref": "#/$defs/Address"}, ADDRESS, []),
        ({"$ref": "#/$defs/Address", "description": "d"}, ADDRESS | {"description": "d"}, []),
        ({"allOf": [{"$ref": "#/$defs/Address"}], "description": "d"}, ADDRESS | {"description": "d"}, []),
        (
            {"allOf": [ADDRESS, {"properties": {"zip": {"const": 5}}, "required": ["zip"]}]},
            {
                "type": "object",
                "properties": ADDRESS["properties"] | {"zip": {"enum": [5]}},
                "required": ["city", "zip"],
            },
            [],
        ),
        ({"oneOf": [{"$ref": "#/$defs/Address"}, {"type": "null"}]}, {"anyOf": [ADDRESS, {"type": "null"}]}, []),
        ({"const": "x"}, {"enum": ["x"]}, []),
        ({"type": "array", "items": {"$ref": "#/$defs/Address"}}, None, []),
        ({"type": "integer", "title": "N", "minimum": 1, "maximum": 5}, None, [".minimum", ".maximum"]),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}, None, [".properties.a.pattern"]),
        ({"type": "object", "additionalProperties": False}, None, []),
        ({"$ref": "#/$defs/Nobody"}, None, [".$ref"]),
        ({"$ref": "#/properties/x"}, None, [".$ref"]),
        ({"type": "array", "items": {"$ref": "#/$defs/Nobody"}}, None, []),
        (True, None, []),
        ({"$ref": "#/$defs/Tree"}, {"properties": {"leaf": {"$ref": "#/$defs/Tree"}}}, [".properties.leaf.$ref"]),
    ],
)
@pytest.mark.parametrize("endpoint", [CHAT, RESPONSES])
def test_ollama_is_shown_what_its_tools_have_no_keyword_for(endpoint, given, shown, told):
    """api/types.go ToolProperty: a reference, oneOf, allOf and const would reach the model as {}."""
    definitions = {"$defs": {"Address": ADDRESS, "Tree": {"properties": {"leaf": {"$ref": "#/$defs/Tree"}}}}}
    function = {"name": "f", "parameters": {"type": "object", "properties": {"x": given}, **definitions}}
    tool = {"type": "function", "function": function} if endpoint == CHAT else {"type": "function", **function}
    translation = translate("ollama", endpoint, asking(endpoint, tools=[tool]))
    (tool,) = translation.body["tools"]
    parameters = tool.get("function", tool)["parameters"]
    assert parameters["properties"]["x"] == (given if shown is None else shown)
    assert parameters["$defs"] == definitions["$defs"]
    assert [each.param.partition("parameters.properties.x")[2] for each in translation.findings] == told
    assert translation.refusal() is None


def test_ollama_is_shown_the_tools_of_a_namespace_by_the_same_rules():
    parameters = {"properties": {"x": {"const": 5}}}
    strict = {"type": "function", "name": "f", "parameters": parameters, "strict": True}
    space = {"type": "namespace", "name": "n", "description": "d", "tools": [strict]}
    translation = translate("ollama", RESPONSES, asking(RESPONSES, tools=[space]))
    (shown,) = translation.body["tools"][0]["tools"]
    assert shown["parameters"] == {"properties": {"x": {"enum": [5]}}}
    assert [each.param for each in translation.findings] == ["tools[0].tools[0].strict"]
    assert refused("ollama", RESPONSES, tools=[space | {"tools": [TOOL]}]) == "tools[0].tools[0].function"
    assert refused("ollama", RESPONSES, tools=[space | {"tools": [{"type": "mcp"}]}]) == "tools[0].tools[0].type"


def _wide():
    properties = {f"p{index}": {"$ref": "#/$defs/e"} for index in range(1000)}
    return {"properties": properties, "$defs": {"e": {"description": "x" * 10_000}}}


def _wide_and_deep():
    inner = {f"p{index}": {"$ref": "#/$defs/e"} for index in range(1000)}
    return {"properties": inner, "$defs": {"e": {"properties": inner}}}


def _doubling():
    names = [f"d{index}" for index in range(30)]
    definitions = {
        name: {"properties": {each: {"$ref": f"#/$defs/{after}"} for each in "ab"}}
        for name, after in zip(names, [*names[1:], "end"], strict=True)
    }
    return {"properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": definitions}


def _many_chains():
    chain = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(2000)}
    return {"properties": {f"p{index}": {"$ref": f"#/$defs/d{index}"} for index in range(1000)}, "$defs": chain}


def _many_hints():
    e = {"properties": {f"p{index}": {"minimum": 1} for index in range(1000)}}
    return {"properties": {f"p{index}": {"$ref": "#/$defs/e"} for index in range(1000)}, "$defs": {"e": e}}


@pytest.mark.parametrize("schema", [_wide, _wide_and_deep, _doubling, _many_chains, _many_hints])
@pytest.mark.parametrize("tools", [1, 3])
def test_no_reference_makes_a_request_much_larger(schema, tools):
    body = asking(CHAT, tools=[{"type": "function", "function": {"name": "f", "parameters": schema()}}] * tools)
    translation = translate("ollama", CHAT, body)
    assert len(json.dumps(translation.body)) < len(json.dumps(body)) + 1_100_000
    assert translation.refusal() is None
    assert 0 < len(translation.findings) <= 1000
    assert max(len(each.param) + len(each.message) for each in translation.findings) < 500


def test_a_chain_of_references_is_followed_for_a_while():
    chain = {f"d{index}": {"$ref": f"#/$defs/d{index + 1}"} for index in range(5000)}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/$defs/d0", "$defs": chain}}}
    (finding,) = translate("ollama", CHAT, asking(CHAT, tools=[tool])).findings
    assert finding.param == "tools[0].function.parameters.$ref"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"description": "Only whole numbers."}, ["description"]),
        ({"anyOf": [{"required": ["a"]}]}, ["anyOf"]),
        ({"properties": {"a": {"type": "string", "default": "Rome"}}}, ["properties.a.default"]),
        ({"properties": {"a": {"type": "boolean", "default": False}}}, ["properties.a.default"]),
        ({"properties": {"a": {"type": "string", "examples": ["Rome"]}}}, ["properties.a.examples"]),
        ({"properties": {"a": {"type": "array", "contains": {"const": 1}}}}, ["properties.a.contains"]),
        ({"properties": {"a": {"type": "string", "contentEncoding": "base64"}}}, ["properties.a.contentEncoding"]),
        ({"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"default": 3}}}, ["properties.a.default"]),
        # What Ollama shows, and what says nothing to a model.
        ({"properties": {"a": {"type": "string", "description": "A town.", "title": "A", "default": None}}}, []),
        ({"properties": {"a": {"type": "array", "items": {"type": "integer", "default": 3}}}}, []),
        ({"title": "T", "$schema": "x", "additionalProperties": False, "description": ""}, []),
    ],
)
def test_what_ollama_does_not_show_of_a_tool_is_told(parameters, told):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", **parameters}}}
    translation = translate("ollama", CHAT, asking(CHAT, tools=[tool]))
    assert [each.param.removeprefix("tools[0].function.parameters.") for each in translation.findings] == told
    assert translation.refusal() is None


def test_a_base_is_both_a_part_and_a_property():
    given = {"allOf": [{"$ref": "#/$defs/Pet"}, {"properties": {"parent": {"$ref": "#/$defs/Pet"}}}]}
    pet = {"properties": {"name": {"type": "string", "minLength": 1}}}
    parameters = {"properties": {"x": given}, "$defs": {"Pet": pet}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    translation = translate("ollama", CHAT, asking(CHAT, tools=[tool]))
    shown = translation.body["tools"][0]["function"]["parameters"]["properties"]["x"]
    assert shown == {"properties": {**pet["properties"], "parent": pet}}
    start = "tools[0].function.parameters.properties.x.properties."
    assert [each.param for each in translation.findings] == [
        f"{start}name.minLength",
        f"{start}parent.properties.name.minLength",
    ]


class _Counted(str):
    """A name that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        type(self).compared += 1
        return str.__eq__(self, other)


def test_parts_are_joined_without_comparing_each_with_each():
    parts = [{"properties": {f"p{index}": {}}, "required": [_Counted(f"p{index}")]} for index in range(2000)]
    body = asking(CHAT, tools=[{"type": "function", "function": {"name": "f", "parameters": {"allOf": parts}}}])
    shown = backends.kind_named("ollama").translate(CHAT, body).body["tools"][0]["function"]["parameters"]
    assert len(shown["properties"]) == len(shown["required"]) == 2000
    assert _Counted.compared < 20_000


@pytest.mark.parametrize("kind", ["ollama", "vllm"])
@pytest.mark.parametrize("value", ["50", 5.5, True, [5], {}])
@pytest.mark.parametrize("other", [{}, {"max_output_tokens": 9}])
def test_a_limit_that_is_no_number_is_named(kind, value, other):
    assert refused(kind, RESPONSES, max_tokens=value, **other) == "max_tokens"
    translation = translate(kind, RESPONSES, asking(RESPONSES, max_tokens=value, **other))
    assert translation.body.get("max_output_tokens") == other.get("max_output_tokens")


def test_definitions_by_their_old_name_are_followed_and_renamed():
    parameters = {"$ref": "#/definitions/Root", "definitions": {"Root": {"type": "object", "properties": {}}}}
    parameters["definitions"]["Root"]["properties"] = {"a": {"items": {"$ref": "#/definitions/Leaf"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    shown = sent("ollama", CHAT, tools=[tool])["tools"][0]["function"]["parameters"]
    assert shown["type"] == "object"
    assert shown["properties"] == {"a": {"items": {"$ref": "#/$defs/Leaf"}}}
    assert list(shown["$defs"]) == ["Root"]


def test_definitions_that_double_with_each_step_end():
    doubling = {f"D{i}": {"properties": {name: {"$ref": f"#/$defs/D{i + 1}"} for name in "ab"}} for i in range(60)}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/$defs/D0", "$defs": doubling}}}
    translation = translate("ollama", CHAT, asking(CHAT, tools=[tool]))
    assert {each.weight for each in translation.findings} == {Weight.TOLD}
    assert len(translation.findings) < 50_000


@pytest.mark.parametrize("kind", ["ollama", "vllm", "llama-server", "embedded"])
@pytest.mark.parametrize("endpoint", [CHAT, RESPONSES])
def test_a_model_that_may_call_no_tool_is_shown_none(kind, endpoint):
    tool = TOOL if endpoint == CHAT else {"type": "function", "name": "f"}
    assert sent(kind, endpoint, tools=[tool], tool_choice="none") == {}
    if endpoint == CHAT:
        assert sent(kind, endpoint, functions=[TOOL["function"]], function_call="none") == {}


def test_a_hint_that_ollama_does_not_take_is_told_and_sent():
    strict = {"type": "function", "function": TOOL["function"] | {"strict": True}}
    translation = translate("ollama", CHAT, asking(CHAT, tools=[strict]))
    assert translation.body["tools"] == [strict]
    assert [(each.param, each.weight) for each in translation.findings] == [("tools[0].function.strict", Weight.TOLD)]
    assert translation.refusal() is None


@pytest.mark.parametrize(
    ("endpoint", "given", "expected"),
    [
        (CHAT, {"guided_json": SCHEMA}, {"structured_outputs": {"json": SCHEMA}}),
        (CHAT, {"guided_choice": ["a", "b"]}, {"structured_outputs": {"choice": ["a", "b"]}}),
        (CHAT, {"guided_regex": "a+", "guided_decoding_backend": "x"}, {"structured_outputs": {"regex": "a+"}}),
        (COMPLETIONS, {"guided_grammar": "g"}, {"structured_outputs": {"grammar": "g"}}),
        (RESPONSES, {"guided_json": SCHEMA}, {"structured_outputs": {"json": SCHEMA}}),
        (RESPONSES, {"max_tokens": 5, "seed": 1}, {"max_output_tokens": 5, "seed": 1}),
        (
            CHAT,
            {"functions": [TOOL["function"]], "function_call": {"name": "f"}},
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        (
            CHAT,
            {"format": "json", "options": {"top_k": 5, "num_predict": 7}},
            {"response_format": {"type": "json_object"}, "top_k": 5, "max_tokens": 7},
        ),
        (CHAT, {"think": False}, {"reasoning_effort": "none"}),
        (CHAT, {"think": "high"}, {"reasoning_effort": "high"}),
        (CHAT, {"enable_thinking": True}, {"reasoning_effort": "medium"}),
        (CHAT, {"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
        (RESPONSES, {"think": False}, {"reasoning": {"effort": "none"}}),
        (
            RESPONSES,
            {"enable_thinking": False, "reasoning": {"summary": "auto"}},
            {"reasoning": {"summary": "auto", "effort": "none"}},
        ),
        (RESPONSES, {"thinking": {"type": "enabled"}}, {"reasoning": {"effort": "medium"}}),
        (CHAT, {"n": 2, "top_k": 5, "logit_bias": {"5": 1}, "tools": [TOOL], "tool_choice": "required"}, None),
        (CHAT, {"response_format": FORMAT, "chat_template_kwargs": {"a": 1}, "max_completion_tokens": 5}, None),
        (EMBEDDINGS, {"input": [1, 2]}, None),
    ],
)
def test_vllm_gets_what_it_reads(endpoint, given, expected):
    assert sent("vllm", endpoint, **given) == (given if expected is None else expected)


@pytest.mark.parametrize(
    ("endpoint", "given", "param"),
    [
        *((endpoint, {"no_such_member": 1}, "no_such_member") for endpoint in ENDPOINTS),
        (CHAT, {"best_of": 2}, "best_of"),
        (COMPLETIONS, {"think": False}, "think"),
        (CHAT, {"think": False, "reasoning_effort": "high"}, "think"),
        (CHAT, {"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking"),
        (CHAT, {"options": {"num_ctx": 9}}, "options.num_ctx"),
        (CHAT, {"guided_json": SCHEMA, "structured_outputs": {"json": {}}}, "guided_json"),
        (CHAT, {"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (CHAT, {"messages": [{"role": "user", "content": "x", "no_such": 1}]}, "messages[0].no_such"),
        (EMBEDDINGS, {"input_type": "query"}, "input_type"),
        (RESPONSES, {"prompt": {"id": "p"}}, "prompt"),
        (RESPONSES, {"text": {"verbosity": "high"}}, "text.verbosity"),
        (RESPONSES, {"tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "rs_1"}]}, "input[0].type"),
        (
            RESPONSES,
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
            "input[0].content[0].file_id",
        ),
    ],
)
def test_vllm_is_not_asked_for_what_it_ignores(endpoint, given, param):
    assert refused("vllm", endpoint, **given) == param


@pytest.mark.parametrize(
    ("kind", "endpoint", "given", "param"),
    [
        ("llama-server", CHAT, {"mirostat": 2, "grammar": "g", "tool_choice": "required", "tools": [TOOL]}, None),
        ("llama-server", CHAT, {"messages": [{"role": "user", "content": "x", "images": [PNG]}]}, "messages[0].images"),
        ("llama-server", COMPLETIONS, {"echo": True}, "echo"),
        ("llama-server", EMBEDDINGS, {"dimensions": 5}, "dimensions"),
        ("llama-server", RESPONSES, {"text": {"format": {"type": "json_schema"}}}, "text.format.type"),
        ("embedded", RESPONSES, {"text": {"format": {"type": "json_object"}}}, "text.format.type"),
        ("embedded", RESPONSES, {"text": {"format": {"type": "text"}}, "top_k": 5}, None),
        ("llama-server", CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ("llama-server", CHAT, {"response_format": FORMAT}, None),
        ("embedded", CHAT, {"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ("embedded", CHAT, {"tools": [TOOL]}, "tools"),
        ("openai", CHAT, {"anything": 1, "tool_choice": "required", "messages": [{"role": "critic", "x": 1}]}, None),
    ],
)
def test_other_servers_get_all_but_what_they_are_known_to_drop(kind, endpoint, given, param):
    assert refused(kind, endpoint, **given) == param
    if param is None:
        assert translate(kind, endpoint, asking(endpoint, **given)).body == asking(endpoint, **given)


@pytest.mark.parametrize("endpoint", [CHAT, RESPONSES])
def test_a_server_of_an_unknown_kind_is_shown_no_tools_that_may_not_be_called(endpoint):
    tools = [TOOL, {"type": "web_search"}]
    sent = translate("openai", endpoint, asking(endpoint, tools=tools, tool_choice="none", x=1))
    assert (sent.body, sent.findings) == (asking(endpoint, x=1), [])
    for choice in ("auto", "required", {"type": "function", "function": {"name": "f"}}):
        given = asking(endpoint, tools=tools, tool_choice=choice)
        assert translate("openai", endpoint, given).body == given
    for other in (COMPLETIONS, EMBEDDINGS):
        assert translate("openai", other, asking(other, tool_choice="none")).body == asking(other, tool_choice="none")


@pytest.mark.parametrize("kind", ["llama-server", "embedded"])
@pytest.mark.parametrize(
    ("endpoint", "given", "param"),
    [
        (CHAT, {"num_ctx": 9}, "num_ctx"),
        (CHAT, {"options": {"num_ctx": 9}}, "options.num_ctx"),
        (CHAT, {"guided_json": SCHEMA}, "guided_json"),
        (CHAT, {"structured_outputs": {"json": SCHEMA}}, "structured_outputs"),
        (CHAT, {"repetition_penalty": 1.1}, "repetition_penalty"),
        (CHAT, {"modalities": ["audio"]}, "modalities"),
        (CHAT, {"suffix": "x"}, "suffix"),
        (CHAT, {"web_search_options": {}}, "web_search_options"),
        (CHAT, {"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        (CHAT, {"extra_body": {"top_k": 5}}, "extra_body"),
        (CHAT, {"think": 5}, "think"),
        (CHAT, {"format": "yaml"}, "format"),
        (CHAT, {"top_logprobs": 5}, "top_logprobs"),
        (CHAT, {"system": "s"}, "system"),
        (COMPLETIONS, {"think": False}, "think"),
        (COMPLETIONS, {"extra_headers": {"a": "b"}}, "extra_headers"),
        (COMPLETIONS, {"options": {"num_gpu": 1}}, "options.num_gpu"),
        (EMBEDDINGS, {"input_type": "query"}, "input_type"),
        (EMBEDDINGS, {"truncate": True}, "truncate"),
        (EMBEDDINGS, {"dimensions": 5}, "dimensions"),
        (RESPONSES, {"prompt": {"id": "p"}}, "prompt"),
        (RESPONSES, {"conversation": "conv_1"}, "conversation"),
        (RESPONSES, {"background": True}, "background"),
        (RESPONSES, {"truncation": "auto"}, "truncation"),
        (RESPONSES, {"functions": [TOOL["function"]]}, "functions"),
        (RESPONSES, {"messages": [{"role": "user", "content": "x"}]}, "messages"),
        (RESPONSES, {"text": {"verbosity": "low"}}, "text.verbosity"),
        (RESPONSES, {"n": 2}, "n"),
    ],
)
def test_llama_server_is_not_asked_for_what_it_drops(kind, endpoint, given, param):
    assert refused(kind, endpoint, **given) == param


@pytest.mark.parametrize("kind", ["llama-server", "embedded"])
@pytest.mark.parametrize(
    ("endpoint", "given", "expected"),
    [
        (CHAT, {"num_predict": 5}, {"max_tokens": 5}),
        (CHAT, {"max_output_tokens": 5, "max_tokens": 9}, {"max_tokens": 5}),
        (CHAT, {"options": {"num_predict": 5, "top_k": 3, "repeat_penalty": 1.1}}, None),
        (CHAT, {"format": "json"}, {"response_format": {"type": "json_object"}}),
        (CHAT, {"logprobs": False, "top_logprobs": 5}, {"logprobs": False}),
        (CHAT, {"user": "me", "metadata": {}, "functions": [], "modalities": ["text"], "suffix": ""}, {}),
        (COMPLETIONS, {"num_predict": 5, "raw": False}, {"max_tokens": 5}),
        (EMBEDDINGS, {"truncate": False, "encoding_format": "base64"}, {"encoding_format": "base64"}),
        (RESPONSES, {"num_predict": 5}, {"max_output_tokens": 5}),
        (RESPONSES, {"background": False, "truncation": "disabled", "store": False, "messages": []}, {}),
    ],
)
def test_llama_server_gets_what_it_reads(kind, endpoint, given, expected):
    options = {"max_tokens": 5, "top_k": 3, "repeat_penalty": 1.1}
    assert sent(kind, endpoint, **given) == (options if expected is None else expected)


@pytest.mark.parametrize(
    ("endpoint", "given", "expected"),
    [
        (CHAT, {"functions": [TOOL["function"]], "function_call": "auto"}, {"tools": [TOOL], "tool_choice": "auto"}),
        (CHAT, {"think": False}, {"reasoning_effort": "none"}),
        (CHAT, {"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        (RESPONSES, {"enable_thinking": False}, {"reasoning": {"effort": "none"}}),
    ],
)
def test_llama_server_has_tools_and_thinks(endpoint, given, expected):
    assert sent("llama-server", endpoint, **given) == expected


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("name", ["no_such_member", "Temperature", "use_mmap", "extra_query", "penalize_newline"])
def test_the_embedded_model_is_asked_for_nothing_that_its_version_does_not_read(endpoint, name):
    assert refused("embedded", endpoint, **{name: 1}) == name


@pytest.mark.parametrize(
    ("message", "param"),
    [({"no_such": 1}, "no_such"), ({"tool_calls": [{"id": "c"}]}, "tool_calls"), ({"images": [PNG]}, "images")],
)
def test_the_embedded_model_is_shown_whole_messages(message, param):
    assert refused("embedded", CHAT, messages=[{"role": "user", "content": "x"} | message]) == f"messages[0].{param}"


@pytest.mark.parametrize("kind", ["ollama", "vllm", "llama-server", "embedded", "openai"])
@pytest.mark.parametrize("place", ["messages", "input", "prompt"])
def test_no_kind_of_server_fetches_an_address(kind, place):
    endpoint = CHAT if place == "messages" else RESPONSES
    part = {"type": "image_url", "image_url": {"url": "https://x.org/y.png"}}
    translation = translate(kind, endpoint, asking(endpoint) | {place: [{"role": "user", "content": [part]}]})
    refusal = translation.refusal(least=Weight.FORBIDDEN)
    assert refusal.param == f"{place}[0].content[0].image_url.url"


def test_an_image_by_its_address_is_not_fetched_in_ollamas_own_shape_either():
    body = asking(CHAT, messages=[{"role": "user", "content": "x", "images": ["https://x.org/y.png"]}])
    assert (
        translate("ollama", CHAT, body).refusal(least=Weight.FORBIDDEN).param == "messages[0].content[0].image_url.url"
    )


MCP = {"type": "mcp", "server_label": "x", "server_url": "https://x.org/mcp"}


@pytest.mark.parametrize("kind", ["ollama", "vllm", "llama-server", "embedded", "openai"])
@pytest.mark.parametrize("endpoint", [CHAT, RESPONSES])
@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"tools": [TOOL, MCP]}, "tools[1].type"),
        ({"tools": [{"type": "mcp", "connector_id": "connector_gmail"}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search_preview_2025_03_11"}]}, "tools[0].type"),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}, "tools[0].type"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
        ({"tools": [{"type": ["mcp"]}]}, "tools[0].type"),
        ({"tools": MCP}, "tools[0].type"),
        ({"tools": [{"type": "function", "server_url": "https://x.org"}]}, "tools[0].server_url"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [MCP]}]}, "tools[0].tools[0].type"),
        ({"messages": [{"role": "system", "tools": [MCP]}]}, "messages[0].tools[0].type"),
        ({"input": [{"type": "additional_tools", "tools": [MCP]}]}, "input[0].tools[0].type"),
        ({"web_search_options": {}}, "web_search_options"),
    ],
)
def test_no_kind_of_server_is_sent_a_tool_that_it_would_run(kind, endpoint, given, param):
    refusal = translate(kind, endpoint, asking(endpoint) | given).refusal(least=Weight.FORBIDDEN)
    assert refusal.param == param


def test_a_function_may_have_parameters_of_any_name():
    properties = {"server_url": {"type": "string"}, "connector_id": {"type": "string"}, "type": {"enum": ["mcp"]}}
    function = {"name": "f", "parameters": {"type": "object", "properties": properties}}
    assert refused("ollama", CHAT, tools=[{"type": "function", "function": function}]) is None


@pytest.mark.parametrize("weight", [Weight.REFUSED, Weight.FORBIDDEN])
def test_no_prompt_goes_to_ollamas_web_search(weight):
    body = asking(RESPONSES, tools=[{"type": "web_search"}])
    assert translate("ollama", RESPONSES, body).refusal(least=weight).param == "tools[0].type"


@pytest.mark.parametrize("kind", ["ollama", "vllm", "llama-server", "openai"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("value", [5, True, "x", [], {}, [[]], [None], [{}], {"a": {}}, [{"type": {}}], [{"role": []}]])
def test_whatever_stands_in_a_member_is_no_fault_of_ours(kind, endpoint, value):
    """The server says what is wrong with it, or we do; nothing is raised."""
    for table in page.KINDS.values():
        for name in table[endpoint].request.members:
            translate(kind, endpoint, {name: value})
    for name in ("messages", "input"):
        translate(kind, endpoint, {name: [{"role": "user", "content": value, "images": value, "tool_calls": value}]})


def test_what_is_nested_too_deep_is_refused():
    deep = value = []
    for _ in range(100_000):
        value.append([])
        value = value[0]
    assert backends.kind_named("ollama").translate(CHAT, {"think": deep}).refusal(least=Weight.FORBIDDEN)
    while deep:  # or freeing it would nest as deep
        deep = deep.pop()


def test_every_translation_ends_in_a_member_that_is_read():
    """A move puts its value where the server reads it, so no table can move one thing into nothing."""
    for table in (*ollama.TABLES.values(), *page.KINDS["vLLM"].values()):
        for name, entry in table.request.members.items():
            if isinstance(entry, Moved) and (found := re.fullmatch(r"(?:`\w+` in )?`(\w+)`", entry.says)):
                target = table.request.members[found[1]]
                assert target.is_read or isinstance(target, Moved), (table.endpoint, name)


def test_the_page_is_what_the_tables_say():
    path = Path(__file__).parents[3] / "docs/parameters.md"
    assert path.read_text() == page.page(), "python -m batches.backends.parameters > docs/parameters.md"


# In a batch


def test_a_refused_member_is_an_error_line_that_names_it(create, work, backend):
    lines = [line("a", body={"messages": [{"role": "assistant", "content": "a", "prefix": True}]}), line("b")]
    batch = work.run(create(lines)["id"])
    _, errors = results(work, batch)
    error = errors["a"]["response"]["body"]["error"]
    assert (error["param"], error["code"]) == ("messages[0].prefix", "unsupported_parameter")
    assert error["message"] == "Ollama ignores 'messages[0].prefix' in /v1/chat/completions. Leave it out."
    assert backend.arrived() == ["b"]
    assert work.api.get(f"/v1/batches/{batch['id']}/progress").json()["warnings"] == []


def test_without_strictness_lines_are_sent_and_the_batch_names_what_is_ignored(create, work, backend, settings):
    settings.STRICT_PARAMETERS = False
    tools = [TOOL, {"type": "function", "function": {"name": "g", "strict": True}}]
    odd = {"num_ctx": 9, "tools": tools, "tool_choice": "required", "user": "me"}
    lines = [line("a", body=odd), line("b", body=odd), line("c", body={"think": False})]
    batch = work.run(create(lines)["id"])
    assert batch["request_counts"]["completed"] == 3
    for seen in backend.seen:
        if seen.key == "c":
            assert seen.body["reasoning_effort"] == "none"
            continue
        assert (seen.body["num_ctx"], seen.body["tool_choice"], seen.body["tools"]) == (9, "required", tools)
        assert "user" not in seen.body
    warned = Batch.objects.get().warnings
    assert sorted(each["param"] for each in warned) == ["num_ctx", "tool_choice", "tools[].function.strict"]
    told = [each["message"] for each in work.api.get(f"/v1/batches/{batch['id']}/progress").json()["warnings"]]
    (about_context,) = [message for message in told if "num_ctx" in message]
    assert about_context.startswith("Ollama ignores 'num_ctx' in /v1/chat/completions. Set OLLAMA_CONTEXT_LENGTH")
    assert "line 1" in about_context


def test_the_batch_warns_of_members_with_any_name(create, work, backend, settings):
    settings.STRICT_PARAMETERS = False
    odd = {"\x00": 1, "\ud800": 1, "a\udc00\x00b": 1, "x" * 2000: 1, "\x1b[2J": 1, "ä\n": 1}
    parameters = {"properties": {name: {"minimum": 1} for name in odd}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    batch = work.run(create([line("a", body=odd), line("b", body={"tools": [tool]})])["id"])
    assert batch["request_counts"]["completed"] == 2
    warned = {each["param"]: each["message"] for each in Batch.objects.get().warnings if "param" in each}
    for name in (r"\u0000", r"\ud800", r"a\udc00\u0000b", r"\u001b[2J", r"ä\n"):
        assert f"'{name}'" in warned[name]
        inner = f"tools[].function.parameters.properties.{name}.minimum"
        assert f"'{inner}'" in warned[inner]
    assert len(warned) == 12
    assert all(len(param) <= 100 and len(message) < 500 for param, message in warned.items())


@pytest.mark.slow
def test_a_batch_keeps_so_many_warnings_however_often_it_is_driven(create):
    create([line("a")])
    stored = Line.objects.select_related("batch").first() or Line(batch=Batch.objects.get(), number=1)
    for drive in range(3):
        findings = [
            Finding(f"d{drive}_{index}", Weight.TOLD, "unsupported_parameter", "It is ignored.") for index in range(60)
        ]
        IgnoredMembers().tell(stored, findings)
    assert len(Batch.objects.get().warnings) == 50


def test_long_names_are_shortened_at_every_level():
    long = "x" * 1_000_000
    inner = {"properties": {f"p{index}": {"minimum": 1} for index in range(1000)}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {long: inner}}}}
    content = [{long: [{} for _ in range(1000)]}, {long: {"image_url": {"url": "https://x.org"}}}]
    messages = [{"role": "user", "content": content}]
    for endpoint, kind in ((CHAT, "ollama"), (RESPONSES, "openai")):
        body = asking(endpoint, tools=[tool], messages=messages, **{long: 1})
        findings = backends.kind_named(kind).translate(endpoint, body).findings
        assert findings[0].param.startswith("messages[0].content[1].xx")
        assert findings[0].param.endswith("xx.image_url.url")
        assert sum(len(each.param) + len(each.message) for each in findings) < 500_000


def test_what_is_never_sent_is_refused_without_strictness_too(create, work, backend, settings):
    settings.STRICT_PARAMETERS = False
    searching = line("a", url=RESPONSES, body={"tools": [{"type": "web_search"}]})
    assert work.run(create([searching], endpoint=RESPONSES)["id"])["request_counts"]["failed"] == 1
    assert not backend.seen


@pytest.mark.parametrize(("listed", "repeats"), [("ollama", ["b", "c"]), ("openai", [])])
def test_lines_that_say_the_same_in_other_words_are_the_same(create, work, live_backend, listed, repeats):
    type(live_backend).objects.update(kind=listed)
    system = [{"role": "system", "content": "s"}]
    developer = [{"role": "developer", "content": [{"type": "text", "text": "s"}]}]
    lines = [
        line("a", body={"temperature": 0, "messages": system, "reasoning_effort": "none"}),
        line("b", body={"temperature": 0, "messages": developer, "reasoning_effort": "none", "user": "me"}),
        line("c", body={"messages": system, "think": False, "options": {"temperature": 0}, "max_tokens": 8}),
        line("d", body={"temperature": 0, "messages": system, "reasoning_effort": "none", "num_ctx": 9}),
    ]
    lines[2]["body"] = {
        "model": "gemma3:12b",
        "max_tokens": 8,
        "messages": system,
        "think": False,
        "options": {"temperature": 0},
    }
    work.validate(create(lines)["id"])
    found = Line.objects.filter(state=LineState.REPEATED).order_by("number").values_list("custom_id", flat=True)
    assert list(found) == repeats
