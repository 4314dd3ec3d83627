"""Servers that get every member as it is: llama.cpp's own, which reads far more than OpenAI's members, and those of an
unknown kind. What they are known to drop without a word is translated or refused. The embedded model is a
llama-server whose version is known, so what that version does not read is refused whatever its name.
"""

from collections.abc import Mapping

from batches.backends.parameters.forbidden import HOSTED
from batches.backends.parameters.moves import (
    FUNCTION_CALL,
    FUNCTIONS,
    NONE_WITHOUT_TOOLS,
    TOP_LOGPROBS,
    limits,
    native_format,
    options,
    reasoning,
    rename,
    template_switch,
    thinking_members,
    tool_choice,
)
from batches.backends.parameters.shared import (
    ABOUT,
    ABOUT_MESSAGES,
    AS_TEXT,
    CACHE_CONTROL,
    IN_THE_PROMPT,
    MORE_ANSWERS,
    NO_MEMBERS,
    NO_SEARCH,
    NO_THINKING,
    NO_WAITING,
    WHOLE_PROMPT,
    Format,
    first,
    nest_schema,
)
from batches.backends.parameters.table import (
    READ,
    Dropped,
    Each,
    Entry,
    Kinds,
    Moved,
    Object,
    Table,
    Unread,
    Weight,
    read,
)

Members = Mapping[str, Entry]

_ANYTHING = Object({}, unknown=READ)
_FUNCTIONS_ALONE = Each(Kinds("type", {"function": _ANYTHING, None: _ANYTHING}, hint=HOSTED))
_MESSAGE: dict[str, Entry] = {
    "images": Unread("Send each as a part of 'content', of the type 'image_url'."),
    "function_call": Unread("Use 'tool_calls'."),
}

# tools/server/server-schema.cpp: what every request for an answer is read for.
_SAMPLING = read(
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "presence_penalty"),
    *("frequency_penalty", "seed", "stop", "mirostat", "mirostat_tau", "mirostat_eta"),
)
_MORE_SAMPLING = read(
    *("top_n_sigma", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent", "dry_multiplier"),
    *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "adaptive_target"),
    *("adaptive_decay", "min_keep", "samplers", "backend_sampling", "n_probs", "post_sampling_probs", "logprobs"),
    *("logit_bias", "ignore_eos", "grammar", "json_schema", "lora", "n", "n_cmpl", "n_predict", "max_tokens"),
    *("max_completion_tokens", "n_keep", "n_discard", "n_indent", "n_cache_reuse", "cache_prompt", "t_max_predict_ms"),
    *("return_tokens", "response_fields", "timings_per_token", "verbose", "model", "stream", "stream_options"),
)
_AT_START = "It is set when llama-server is started (--ctx-size)."
_AS_FORMAT = "Use 'response_format' in /v1/chat/completions."
_THERE = "Use /v1/chat/completions."
_UNREAD: dict[str, Entry] = {
    name: Unread(hint)
    for name, hint in {
        "num_ctx": _AT_START,
        "repetition_penalty": "Use 'repeat_penalty', which looks at the last 'repeat_last_n' tokens.",
        "guided_json": _AS_FORMAT,
        "guided_regex": _AS_FORMAT,
        "guided_choice": _AS_FORMAT,
        "guided_grammar": "Use 'grammar', in the notation of llama.cpp.",
        "structured_outputs": _AS_FORMAT,
        "web_search_options": NO_SEARCH,
        "truncate_prompt_tokens": WHOLE_PROMPT,
        "input_type": AS_TEXT,
    }.items()
}
_UNREAD |= NO_MEMBERS | {
    "truncate": Dropped(False, hint=WHOLE_PROMPT),
    "shift": Dropped(False, hint=WHOLE_PROMPT),
    "modalities": Dropped(["text"], hint="llama-server answers in text."),
    "audio": Unread("llama-server answers in text."),
    "best_of": Dropped(1, hint=MORE_ANSWERS),
    "use_beam_search": Dropped(False, hint="vLLM has it."),
    "verbosity": Dropped("medium", hint=IN_THE_PROMPT),
    "raw": Dropped(False, hint="Use /v1/completions."),
    "system": Dropped("", hint="Send it as a message of the role 'system'."),
    "template": Dropped("", hint="Start llama-server with --chat-template."),
}
_ECHO: dict[str, Entry] = {"echo": Dropped(False, hint="Put the prompt before the answer yourself.")}
_SUFFIX: dict[str, Entry] = {"suffix": Dropped("", hint="llama-server inserts by /infill alone.")}


def _options(to: str) -> Moved:
    return options(
        {name: name for name in _SAMPLING} | {"num_predict": to, "num_keep": "n_keep"}, {"num_ctx": _AT_START}
    )


# Of a json_schema without a schema it makes any JSON.
_RESPONSE_FORMAT = Format(
    {"text": _ANYTHING, "json_object": _ANYTHING, "json_schema": _ANYTHING},
    schema=("json_schema", "schema"),
    first=first(nest_schema),
)
_LLAMA_SERVER: dict[str, dict[str, Entry]] = {
    "/v1/chat/completions": {
        "messages": Each(Object(_MESSAGE, unknown=READ)),
        "tools": _FUNCTIONS_ALONE,
        "response_format": _RESPONSE_FORMAT,
        "options": _options("max_tokens"),
        **limits("max_tokens", "num_predict", "max_output_tokens"),
        # server-common.cpp: the effort "none" turns thinking off, as enable_thinking does.
        **thinking_members("reasoning_effort"),
        "reasoning": reasoning("reasoning_effort"),
        "format": native_format("response_format"),
        "functions": FUNCTIONS,
        "function_call": FUNCTION_CALL,
        "tool_choice": NONE_WITHOUT_TOOLS,
        "top_logprobs": TOP_LOGPROBS,
        **ABOUT,
        **_UNREAD,
        **_ECHO,
        **_SUFFIX,
        "prompt": Dropped("", hint="Send it as 'messages'."),
    },
    "/v1/completions": {
        "options": _options("max_tokens"),
        **limits("max_tokens", "num_predict", "max_output_tokens"),
        **ABOUT,
        **_UNREAD,
        **_ECHO,
        **_SUFFIX,
        **NO_THINKING,
        "format": Unread("Use 'json_schema', or /v1/chat/completions."),
        "response_format": Unread("Use 'json_schema', or /v1/chat/completions."),
        "messages": Dropped([], hint=_THERE),
        "system": Dropped("", hint=_THERE),
    },
    "/v1/embeddings": {
        **ABOUT,
        **_UNREAD,
        "dimensions": Unread("The vectors have the length that the model makes."),
    },
    "/v1/responses": {
        "tools": _FUNCTIONS_ALONE,
        "text": Object(
            {
                "format": Kinds("type", {"text": READ}, hint="Use /v1/chat/completions with 'response_format'."),
                "verbosity": Dropped("medium", hint=IN_THE_PROMPT),
            },
            unknown=READ,
        ),
        "options": _options("max_output_tokens"),
        **limits("max_output_tokens", "num_predict", "max_tokens", "max_completion_tokens"),
        **thinking_members("reasoning.effort"),
        "reasoning_effort": rename("reasoning.effort"),
        "tool_choice": NONE_WITHOUT_TOOLS,
        **ABOUT,
        **_UNREAD,
        **_ECHO,
        **_SUFFIX,
        "format": Unread(_AS_FORMAT),
        "functions": Dropped([], hint="Use 'tools'."),
        "function_call": Unread("Use 'tool_choice'."),
        "messages": Dropped([], hint="Send them as 'input'."),
        "prompt": Unread("llama-server keeps no prompts; send the text itself as 'input'."),
        "system": Dropped("", hint="Send it as 'instructions'."),
        "conversation": Unread("llama-server keeps no conversations; send the whole conversation as 'input'."),
        "previous_response_id": Unread("llama-server keeps no responses; send the whole conversation as 'input'."),
        "background": Dropped(False, hint=NO_WAITING),
        "truncation": Dropped("disabled", hint=WHOLE_PROMPT),
        "n": Dropped(1, hint=MORE_ANSWERS),
        "max_tool_calls": Unread(HOSTED),
    },
}

# The template of SmolLM2 has no tools, so llama.cpp shows it none and makes it call none.
_NO_TOOLS = "The embedded model knows no tools; use another model."
_TOOLS: dict[str, Entry] = {
    "tools": Dropped([], hint=_NO_TOOLS),
    "tool_choice": tool_choice(_NO_TOOLS),
    "parallel_tool_calls": Dropped(),
}
_EFFORT = Dropped("none", hint="The embedded model does not think.", weight=Weight.TOLD)
_EMBEDDED_MESSAGE = Object(
    {
        **read("role", "content"),
        **_MESSAGE,
        "name": Unread("Its template shows no names; put this name into the content.", weight=Weight.TOLD),
        "tool_calls": Dropped([], hint=_NO_TOOLS),
        "tool_call_id": Unread(_NO_TOOLS, weight=Weight.TOLD),
        # What was thought in earlier turns is shown to no model.
        **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), Dropped()),
        **ABOUT_MESSAGES,
        **CACHE_CONTROL,
    }
)
_EMBEDDED: dict[str, dict[str, Entry]] = {
    "/v1/chat/completions": {
        **_SAMPLING,
        **_MORE_SAMPLING,
        **read("add_generation_prompt", "continue_final_message", "reasoning_format", "reasoning_control"),
        **_LLAMA_SERVER["/v1/chat/completions"],
        **_TOOLS,
        "messages": Each(_EMBEDDED_MESSAGE),
        "chat_template_kwargs": template_switch("reasoning_effort"),
        "reasoning_effort": _EFFORT,
    },
    "/v1/completions": {
        **_SAMPLING,
        **_MORE_SAMPLING,
        "prompt": READ,
        **_LLAMA_SERVER["/v1/completions"],
        "tool_choice": Dropped("none", "auto", hint=_NO_TOOLS),
    },
    "/v1/embeddings": {
        **read("model", "input", "encoding_format", "embd_normalize"),
        # Nothing is generated, so nothing is sampled or limited.
        **{
            name: Dropped()
            for name in (*_SAMPLING, "n", "max_tokens", "max_completion_tokens", "num_predict", "stream")
        },
        **_LLAMA_SERVER["/v1/embeddings"],
    },
    "/v1/responses": {
        **_SAMPLING,
        **_MORE_SAMPLING,
        **read("input", "instructions", "max_output_tokens"),
        **_LLAMA_SERVER["/v1/responses"],
        **_TOOLS,
        "chat_template_kwargs": template_switch("reasoning.effort"),
        "reasoning": Object({"effort": _EFFORT, "summary": Dropped(), "generate_summary": Dropped()}),
        "include": Dropped([], ["reasoning.encrypted_content"], hint="The answer has no more than its text."),
        "top_logprobs": Dropped(0, hint=_THERE),
    },
}


def _tables(title: str, source: str, members: Mapping[str, Members], unknown: Entry | None) -> dict[str, Table]:
    return {
        endpoint: Table(title, endpoint, Object(members.get(endpoint, {}), unknown=unknown), source=source)
        for endpoint in _LLAMA_SERVER
    }


# Some servers (LiteRT-LM, those on MLX) take the member and call tools all the same. For one that heeds it, nothing is
# lost with the tools.
_UNKNOWN: dict[str, Members] = {
    endpoint: {"tool_choice": NONE_WITHOUT_TOOLS} for endpoint in ("/v1/chat/completions", "/v1/responses")
}
UNKNOWN = _tables("The model server", "nobody knows what it reads", _UNKNOWN, READ)
LLAMA_SERVER = _tables("llama-server", "tried on llama.cpp b11549", _LLAMA_SERVER, READ)
EMBEDDED = _tables("The embedded model", "tried on llama.cpp b11549 with SmolLM2", _EMBEDDED, None)
