"""What vLLM's OpenAI server reads: the fields of its protocol classes, as of vLLM 0.32.

The classes take other members without an error and drop them (OpenAIBaseModel, extra="allow"). What a class has and its
handler does not use is not read either. What vLLM refuses by itself is left to it.
"""

from batches.backends.parameters.forbidden import HOSTED
from batches.backends.parameters.moves import (
    FUNCTION_CALL,
    FUNCTIONS,
    MESSAGE_CALL,
    NONE_WITHOUT_TOOLS,
    TOP_LOGPROBS,
    chat_format,
    images,
    limits,
    native_format,
    options,
    reasoning,
    rename,
    thinking_members,
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
    SCHEMA,
    Format,
    first,
    lift_schema,
    nest_schema,
)
from batches.backends.parameters.table import (
    READ,
    Dropped,
    Each,
    Entry,
    Kinds,
    Like,
    Object,
    Table,
    Unread,
    read,
)

TITLE = "vLLM"

_AT_START = "Set it when vLLM is started (--max-model-len)."
_UNREAD: dict[str, Entry] = {
    name: Unread(hint)
    for name, hint in {
        "num_ctx": _AT_START,
        "repeat_penalty": "Use 'repetition_penalty'.",
        "grammar": "Use 'structured_outputs'.",
        "json_schema": "Use 'response_format'.",
        "typical_p": "",
        "early_stopping": "",
        "web_search_options": NO_SEARCH,
        "audio": "vLLM answers in text.",
        "input_type": AS_TEXT,
    }.items()
}
_UNREAD |= NO_MEMBERS | {
    "raw": Dropped(False, hint="Use /v1/completions."),
    "template": Dropped("", hint="Use 'chat_template'."),
    "truncate": Dropped(False, hint="Use 'truncate_prompt_tokens'."),
    "modalities": Dropped(["text"], hint="vLLM answers in text."),
    "best_of": Dropped(1, hint="Use 'n', or several lines."),
    "verbosity": Dropped("medium", hint=IN_THE_PROMPT),
    # Which library holds the answer to its form does not change the form.
    "guided_decoding_backend": Dropped(),
}
_GUIDED: dict[str, Entry] = {
    f"guided_{name}": rename(f"structured_outputs.{name}")
    for name in ("json", "regex", "choice", "grammar", "json_object")
}
_GUIDED["guided_whitespace_pattern"] = rename("structured_outputs.whitespace_pattern")

# SamplingParams by the same names in all three classes.
_SAMPLING = read(
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed"),
    *("stop", "stop_token_ids", "ignore_eos", "skip_special_tokens", "include_stop_str_in_output", "logit_bias"),
    *("watermarking", "vllm_xargs", "structured_outputs", "kv_transfer_params", "ec_transfer_params", "priority"),
    *("request_id", "session_id", "cache_salt", "model", "stream"),
)
_MORE_SAMPLING = read(
    *(
        "n",
        "use_beam_search",
        "length_penalty",
        "min_tokens",
        "spaces_between_special_tokens",
        "truncate_prompt_tokens",
    ),
    *("truncation_side", "prompt_logprobs", "logprob_token_ids", "allowed_token_ids", "bad_words", "echo", "logprobs"),
    *("add_special_tokens", "return_tokens_as_token_ids", "return_token_ids", "return_token_offsets", "max_tokens"),
    *("routed_experts_prompt_start", "repetition_detection", "thinking_token_budget", "stream_interval"),
)
_MEDIA = read("media_io_kwargs", "mm_processor_kwargs")
_STREAM_OPTIONS: dict[str, Entry] = {
    "stream_options": Object(read("include_usage", "continuous_usage_stats") | {"include_obfuscation": Dropped()})
}
_SAME = {name: name for name in _SAMPLING if name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")} | {
    name: name for name in ("presence_penalty", "frequency_penalty")
}
_OPTIONS_UNREAD = {"num_ctx": _AT_START, "repeat_penalty": "Use 'repetition_penalty' in the body."}

_TYPE = Object({"type": READ})
_SCHEMA: dict[str, Entry] = read("type", "name", "strict", "description") | {"schema": SCHEMA}
_RESPONSE_FORMAT = Format(
    {
        "text": _TYPE,
        "json_object": _TYPE,
        "json_schema": Object({"type": READ, "json_schema": Object(_SCHEMA)}),
        "structural_tag": Object(read("type", "format", "structures", "triggers")),
    },
    schema=("json_schema", "schema"),
    first=first(nest_schema),
)
_TEXT_FORMAT = Format(
    {"text": _TYPE, "json_object": _TYPE, "json_schema": Object(_SCHEMA)}, schema=("schema",), first=first(lift_schema)
)

# Parts and calls are left as they are: vLLM refuses a part of a type that it does not know.
_MESSAGE = Object(
    read("role", "content", "reasoning", "tool_calls", "tool_call_id", "name", "task", "tools")
    | {
        "reasoning_content": rename("reasoning"),
        "thinking": rename("reasoning"),
        "images": images("data:image/jpeg"),
        "function_call": MESSAGE_CALL,
        **ABOUT_MESSAGES,
        "refusal": Dropped(),
        "audio": Unread("Send it as a part of 'content'."),
        **CACHE_CONTROL,
    }
)
_FUNCTION = Object(read("name", "description", "parameters", "strict", "defer_loading"))
_CHAT_TOOL = Object(read("type", "function", "defer_loading") | {"function": _FUNCTION, **CACHE_CONTROL})
_TOOLS: dict[str, Entry] = {"tool_choice": NONE_WITHOUT_TOOLS, **read("parallel_tool_calls")}
# The types of which vLLM makes anything for every model (responses/utils.py); hosted tools need a tool server.
_RESPONSES_TOOL = Object({}, unknown=READ)

# Input items are left as they are too, but for what is named by its id: vLLM keeps no files and shows nothing of them.
_WHOLE = "Send the content itself, not its id."
_INPUT_ITEM = Object(
    {
        "type": Like(lambda value: value != "item_reference", hint=_WHOLE, says="not `item_reference`"),
        "content": Each(Object({"file_id": Unread(_WHOLE)}, unknown=READ)),
    },
    unknown=READ,
)


TABLES = {
    table.endpoint: table
    for table in (
        Table(
            TITLE,
            "/v1/chat/completions",
            Object(
                {
                    **_SAMPLING,
                    **_MORE_SAMPLING,
                    **_MEDIA,
                    **_STREAM_OPTIONS,
                    **read("max_completion_tokens", "reasoning_effort", "include_reasoning", "documents"),
                    **read("add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs"),
                    **read("return_prompt_text"),
                    "top_logprobs": TOP_LOGPROBS,
                    "messages": Each(_MESSAGE),
                    "response_format": _RESPONSE_FORMAT,
                    "tools": Each(Kinds("type", {"function": _CHAT_TOOL, None: _CHAT_TOOL}, hint=HOSTED)),
                    "options": options(_SAME | {"num_predict": "max_tokens"}, _OPTIONS_UNREAD),
                    **limits("max_tokens", "num_predict", "max_output_tokens"),
                    # Both protocol.py files turn thinking off by the effort "none", and on by any other.
                    **thinking_members("reasoning_effort"),
                    "reasoning": reasoning("reasoning_effort"),
                    "format": native_format("response_format"),
                    "functions": FUNCTIONS,
                    "function_call": FUNCTION_CALL,
                    **_TOOLS,
                    **_GUIDED,
                    **ABOUT,
                    **_UNREAD,
                    "suffix": Dropped("", hint="Use /v1/completions."),
                    "system": Dropped("", hint="Send it as a message of the role 'system'."),
                    "prompt": Dropped("", hint="Send it as 'messages'."),
                }
            ),
            source="entrypoints/openai/chat_completion/protocol.py: ChatCompletionRequest; renderers/chat_utils.py",
        ),
        Table(
            TITLE,
            "/v1/completions",
            Object(
                {
                    **_SAMPLING,
                    **_MORE_SAMPLING,
                    **_STREAM_OPTIONS,
                    **read("prompt", "prompt_embeds", "suffix"),
                    "response_format": _RESPONSE_FORMAT,
                    "options": options(_SAME | {"num_predict": "max_tokens"}, _OPTIONS_UNREAD),
                    **limits("max_tokens", "num_predict", "max_completion_tokens", "max_output_tokens"),
                    "format": native_format("response_format"),
                    **_GUIDED,
                    **ABOUT,
                    **_UNREAD,
                    "messages": Dropped([], hint="Use /v1/chat/completions."),
                    "images": Dropped([], hint="Use /v1/chat/completions."),
                    "system": Dropped("", hint="Use /v1/chat/completions."),
                    "tool_choice": Dropped("none", "auto", hint="Use /v1/chat/completions."),
                    **NO_THINKING,
                }
            ),
            source="entrypoints/openai/completion/protocol.py: CompletionRequest",
        ),
        Table(
            TITLE,
            "/v1/embeddings",
            Object(
                {
                    **read("model", "input", "messages", "encoding_format", "embed_dtype", "endianness", "dimensions"),
                    **read("use_activation", "truncate_prompt_tokens", "truncation_side", "padding", "request_id"),
                    **read("priority", "mm_processor_kwargs", "media_io_kwargs", "cache_salt", "add_special_tokens"),
                    **read("add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs"),
                    **ABOUT,
                    **_UNREAD,
                    **NO_THINKING,
                    # Nothing is generated, so nothing is sampled or limited.
                    **{name: Dropped() for name in (*_SAME, "n", "max_tokens", "max_completion_tokens", "num_predict")},
                }
            ),
            source="entrypoints/pooling/embed/protocol.py: EmbeddingCompletionRequest, EmbeddingChatRequest",
        ),
        Table(
            TITLE,
            "/v1/responses",
            Object(
                {
                    **_SAMPLING,
                    **_MEDIA,
                    **_TOOLS,
                    "input": Each(_INPUT_ITEM),
                    **read("instructions", "max_output_tokens", "include", "include_reasoning", "truncation"),
                    **read(
                        "top_logprobs", "previous_response_id", "previous_input_messages", "enable_response_messages"
                    ),
                    **read("chat_template_kwargs", "reasoning"),
                    "text": Object({"format": _TEXT_FORMAT, "verbosity": Dropped("medium", hint=IN_THE_PROMPT)}),
                    "tools": Each(
                        Kinds(
                            "type",
                            dict.fromkeys(("function", "namespace", "custom", None), _RESPONSES_TOOL),
                            hint=HOSTED,
                        )
                    ),
                    "stream_options": Object({"include_usage": Dropped(), "include_obfuscation": Dropped()}),
                    "options": options(_SAME | {"num_predict": "max_output_tokens"}, _OPTIONS_UNREAD),
                    **limits("max_output_tokens", "max_tokens", "max_completion_tokens", "num_predict"),
                    **thinking_members("reasoning.effort"),
                    "reasoning_effort": rename("reasoning.effort"),
                    "format": native_format("text.format"),
                    "response_format": chat_format(),
                    **_GUIDED,
                    **ABOUT,
                    **_UNREAD,
                    "background": Dropped(False, hint=NO_WAITING),
                    "n": Dropped(1, hint=MORE_ANSWERS),
                    "use_beam_search": Dropped(False, hint="Use /v1/completions."),
                    "messages": Dropped([], hint="Send them as 'input'."),
                    "prompt": Unread("vLLM keeps no prompts; send the text itself as 'input'."),
                    "conversation": Unread("vLLM keeps no conversations; send the whole conversation as 'input'."),
                    "max_tool_calls": Unread(HOSTED),
                    "suffix": Dropped("", hint="Use /v1/completions."),
                    "system": Dropped("", hint="Send it as 'instructions'."),
                }
            ),
            source="entrypoints/openai/responses/protocol.py: ResponsesRequest",
        ),
    )
}
