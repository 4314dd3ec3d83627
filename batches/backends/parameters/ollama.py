"""What Ollama's handlers under /v1 read: the members of their Go structs, as of Ollama 0.33.

encoding/json drops every other member without a word, so what has no entry here would be ignored. What a struct has and
its handler does not use is not read either.
"""

from typing import Any

from batches.backends.parameters.forbidden import HOSTED
from batches.backends.parameters.moves import (
    FUNCTION_CALL,
    FUNCTIONS,
    MESSAGE_CALL,
    TOP_LOGPROBS,
    chat_format,
    images,
    limits,
    native_format,
    options,
    parallel_tool_calls,
    reasoning,
    rename,
    template_switch,
    thinking_members,
    tool_choice,
)
from batches.backends.parameters.shared import (
    ABOUT,
    ABOUT_CALLS,
    ABOUT_MESSAGES,
    AS_TEXT,
    CACHE_CONTROL,
    IN_THE_PROMPT,
    MORE_ANSWERS,
    NO_MEMBERS,
    NO_SEARCH,
    NO_WAITING,
    SCHEMA,
    WHOLE_PROMPT,
    Format,
    are_texts,
    as_json,
    first,
    flattened,
    json_object_as_schema,
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
    Moved,
    Note,
    Object,
    Table,
    Unread,
    Values,
    Weight,
    read,
    shown,
)
from batches.backends.parameters.tool_schema import ToolSchema

TITLE = "Ollama"

# api/types.go Options and Runner: what /v1 has no members for.
_IN_A_MODELFILE = (
    *("top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "num_keep", "num_batch", "num_gpu", "main_gpu"),
    *("use_mmap", "num_thread", "draft_num_predict"),
)
_NO_MORE = ("mirostat", "mirostat_eta", "mirostat_tau", "tfs_z", "penalize_newline", "numa", "low_vram", "use_mlock")
_AS_PARAMETER = "Set it as a PARAMETER in a Modelfile, and name the model made from it."
_OPTIONS_UNREAD = {
    **dict.fromkeys(_IN_A_MODELFILE, _AS_PARAMETER),
    **dict.fromkeys(_NO_MORE, "Ollama has no such option any more."),
    "num_ctx": "Set OLLAMA_CONTEXT_LENGTH at Ollama, or num_ctx as a PARAMETER in a Modelfile of your own.",
}
_AS_FORMAT = "Use 'response_format' with a JSON schema."
_UNREAD: dict[str, Entry] = {
    name: Unread(hint)
    for name, hint in {
        **_OPTIONS_UNREAD,
        "repetition_penalty": "Set repeat_penalty as a PARAMETER in a Modelfile, and name the model made from it.",
        "truncate_prompt_tokens": WHOLE_PROMPT,
        "input_type": AS_TEXT,
        "guided_json": _AS_FORMAT,
        "guided_regex": _AS_FORMAT,
        "guided_choice": _AS_FORMAT,
        "guided_grammar": _AS_FORMAT,
        "structured_outputs": _AS_FORMAT,
        "json_schema": _AS_FORMAT,
        "grammar": _AS_FORMAT,
        "web_search_options": NO_SEARCH,
        "audio": "Ollama answers in text.",
    }.items()
}
_UNREAD |= NO_MEMBERS | {
    "raw": Dropped(False, hint="Name a model whose template is {{ .Prompt }}."),
    "template": Dropped("", hint="Set it as the TEMPLATE in a Modelfile, and name the model made from it."),
    "context": Dropped([], hint="Send the whole conversation as messages."),
    "truncate": Dropped(False, hint=WHOLE_PROMPT),
    "shift": Dropped(False, hint=WHOLE_PROMPT),
    "echo": Dropped(False, hint="Put the prompt before the answer yourself."),
    "modalities": Dropped(["text"], hint="Ollama answers in text."),
    "n": Dropped(1, hint=MORE_ANSWERS),
    "best_of": Dropped(1, hint=MORE_ANSWERS),
    "use_beam_search": Dropped(False, hint="vLLM has it."),
    "logit_bias": Dropped({}, hint="vLLM has it."),
    "verbosity": Dropped("medium", hint=IN_THE_PROMPT),
}
_SUFFIX: dict[str, Entry] = {"suffix": Dropped("", hint="Use /v1/completions and a model that can insert.")}
_SYSTEM: dict[str, Entry] = {"system": Dropped("", hint="Send it as a message of the role 'system'.")}
_PROMPT: dict[str, Entry] = {"prompt": Dropped("", hint="Send it as 'messages'.")}

_STREAMING: dict[str, Entry] = {
    "stream": READ,
    "stream_options": Object({"include_usage": READ, "include_obfuscation": Dropped()}),
}


# FromChatRequest leaves out what is no string.
_SAMPLING = read("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed")
_STOP = Like(are_texts, hint="Use a string, or a list of strings.", says="strings")
_SAME = {name: name for name in (*_SAMPLING, "stop")}


# The form of the answer: FromChatRequest reads `type`, and of a json_schema `schema` alone. Without a schema there it
# makes no form at all.

_SCHEMA: dict[str, Entry] = {
    "type": READ,
    "name": Dropped(),
    "strict": Dropped(),  # the grammar holds each answer to the schema, so each is strict
    "description": Unread("Ollama does not show it to the model; put it into the prompt.", weight=Weight.TOLD),
    "schema": SCHEMA,
}
_TYPE = Object({"type": READ})
_RESPONSE_FORMAT = Format(
    {"text": _TYPE, "json_object": _TYPE, "json_schema": Object({"type": READ, "json_schema": Object(_SCHEMA)})},
    schema=("json_schema", "schema"),
    first=first(nest_schema),
)
# FromResponsesRequest knows json_schema alone; the answer repeats its name.
_TEXT_FORMAT = Format(
    {"text": _TYPE, "json_schema": Object(_SCHEMA | read("name", "strict"))},
    schema=("schema",),
    first=first(lift_schema, json_object_as_schema),
)


# Tools: api/types.go Tool.

_FUNCTION: dict[str, Entry] = {
    "name": READ,
    "description": READ,
    "parameters": ToolSchema("references are followed"),
    "strict": Dropped(
        False, hint="Ollama shows the schema to the model and does not hold the call to it.", weight=Weight.TOLD
    ),
}
_NO_CALL = "Ollama lets the model choose; ask for the call in the prompt, or for JSON by 'response_format'."
_TOOLS: dict[str, Entry] = {
    "tool_choice": tool_choice(_NO_CALL),
    "parallel_tool_calls": parallel_tool_calls("Ollama lets the model call as many as it likes."),
}
_CHAT_TOOL = Object({"type": READ, "function": Object(_FUNCTION), **CACHE_CONTROL})
_CHAT_TOOLS = Each(Kinds("type", {"function": _CHAT_TOOL, None: _CHAT_TOOL}, hint=HOSTED))
_ARGUMENTS = Like(
    lambda value: isinstance(value, str), hint="Use JSON in a string.", first=as_json, says="JSON in a string"
)
_CALL = Object(
    {
        **read("id", "index", "type"),
        "function": Object({"name": READ, "arguments": _ARGUMENTS, **ABOUT_CALLS}),
        **ABOUT_CALLS,
    }
)
_CALLS = Each(Kinds("type", {"function": _CALL, None: _CALL}, hint="Ollama knows calls of functions alone."))


# Messages: openai.go Message and FromChatRequest, which makes a message of each part.

_ROLE = Values(
    "user",
    "system",
    "assistant",
    "tool",
    renamed={"developer": "system", "function": "tool"},
    hint="Ollama's templates know 'system', 'user', 'assistant' and 'tool'.",
    any_case=True,
)
_PART = Kinds(
    "type",
    {
        "text": Object({"type": READ, "text": READ, **CACHE_CONTROL}),
        # Ollama takes each image as finely as its model can.
        "image_url": Object({"type": READ, "image_url": Object({"url": READ, "detail": Dropped()}), **CACHE_CONTROL}),
        "input_audio": Object({"type": READ, "input_audio": Object({"data": READ, "format": Dropped()})}),
    },
    hint="Use the types 'text', 'image_url' and 'input_audio', with the content itself and not a file's id.",
)


def _is_of_a_tool(message: dict[str, Any]) -> bool:
    role = message.get("role")
    return isinstance(role, str) and role.lower() in ("tool", "function")


def _of_the_answer(message: dict[str, Any], name: str) -> list[Note] | None:
    # FromChatRequest makes a message of each part, and none of them has the id or the name. `flattened` joins texts.
    content = message.get("content")
    if _is_of_a_tool(message) and isinstance(content, list) and isinstance(flattened(content), list):
        return [Note("For an answer with images; send these in a message of the role 'user'.", path=name)]
    return None


def _name(message: dict[str, Any], name: str) -> list[Note] | None:
    if _is_of_a_tool(message):
        return _of_the_answer(message, name)
    hint = "Ollama shows the model the name of a tool alone; put this name into the content."
    return [Note(hint, path=name, weight=Weight.TOLD)]


_MESSAGE = Object(
    {
        "role": _ROLE,
        "content": Each(_PART, then=flattened),
        "reasoning": READ,
        "tool_calls": _CALLS,
        "tool_name": rename("name"),
        "reasoning_content": rename("reasoning"),
        "thinking": rename("reasoning"),
        # decodeImageURL knows few types by name, and any image without one.
        "images": images("data:", {}),
        # After `images`, which makes parts.
        "tool_call_id": Moved(_of_the_answer, "read, unless the answer of a tool has other parts than texts"),
        "name": Moved(_name, "like `tool_call_id` in messages of the role `tool`; told in others"),
        "function_call": MESSAGE_CALL,
        **ABOUT_MESSAGES,
        **CACHE_CONTROL,
    }
)


# Embeddings


_NOTHING_GENERATED = dict.fromkeys((*_SAME, "num_predict", *_IN_A_MODELFILE, *_NO_MORE), "")


# Responses: responses.go, unmarshalResponsesInputItem and FromResponsesRequest.

_INPUT_PART = Kinds(
    "type",
    {
        "input_text": Object({"type": READ, "text": READ, **CACHE_CONTROL}),
        "output_text": Object({"type": READ, "text": READ, "annotations": Dropped(), "logprobs": Dropped()}),
        "input_image": Object(
            {
                "type": READ,
                "image_url": READ,
                "detail": Dropped(),
                "file_id": Unread("Put the image itself into 'image_url'."),
            }
        ),
    },
    hint="Use the types 'input_text', 'output_text' and 'input_image', with the content itself and not a file's id.",
)
_INPUT_PARTS = Each(_INPUT_PART)
_INPUT_MESSAGE = Object(
    {
        "type": READ,
        "role": Values(
            "user",
            "system",
            "assistant",
            renamed={"developer": "system"},
            hint="Ollama's templates know 'system', 'user' and 'assistant'; a tool's answer is a function_call_output.",
            any_case=True,
        ),
        "content": _INPUT_PARTS,
        "id": Dropped(),
        "status": Dropped(),
        "phase": Dropped(),
    }
)
_INPUT_ITEM = Kinds(
    "type",
    {
        None: _INPUT_MESSAGE,
        "message": _INPUT_MESSAGE,
        "function_call": Object(read("type", "id", "call_id", "name") | {"arguments": _ARGUMENTS, "status": Dropped()}),
        "function_call_output": Object(
            {"type": READ, "call_id": READ, "output": _INPUT_PARTS, "id": Dropped(), "status": Dropped()}
        ),
        # What the model thought is read from encrypted_content, where Ollama's own answers have it.
        "reasoning": Object(
            read("type", "id", "summary", "encrypted_content")
            | {
                "status": Dropped(),
                "content": Dropped([], hint="Ollama reads 'encrypted_content' alone.", weight=Weight.TOLD),
            }
        ),
        "web_search_call": Object(read("type", "id", "status", "action")),
    },
    hint="Send messages, calls of functions and their outputs, each as a whole and not by an id.",
)
_RESPONSES_TOOL = Object({"type": READ, **_FUNCTION})
_RESPONSES_TOOLS = Each(
    Kinds(
        "type",
        {
            "function": _RESPONSES_TOOL,
            # Its tools are taken one by one, with the name of the namespace before theirs (convertTools).
            "namespace": Object(
                read("type", "name", "description")
                | {"tools": Each(Kinds("type", {"function": _RESPONSES_TOOL, None: _RESPONSES_TOOL}, hint=HOSTED))}
            ),
        },
        hint=HOSTED,
    )
)


def _cannot_generate(body: dict[str, Any]) -> Note | None:
    # GenerateHandler takes an empty prompt as an order to load the model, and answers with finish_reason "load".
    if body.get("prompt") in (None, ""):
        return Note(
            "For an empty 'prompt' Ollama only loads the model.", path="prompt", shown=shown(body.get("prompt"))
        )
    return None


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


_PROMPT_HINT = "Send one text in each line; token ids belong to the vocabulary of one model."

TABLES = {
    table.endpoint: table
    for table in (
        Table(
            TITLE,
            "/v1/chat/completions",
            Object(
                {
                    "model": READ,
                    "messages": Each(_MESSAGE),
                    **_SAMPLING,
                    "stop": _STOP,
                    "max_tokens": READ,
                    "reasoning_effort": READ,
                    "response_format": _RESPONSE_FORMAT,
                    "tools": _CHAT_TOOLS,
                    "logprobs": READ,
                    **_STREAMING,
                    "options": options(_SAME | {"num_predict": "max_tokens"}, _OPTIONS_UNREAD),
                    **limits("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict"),
                    **thinking_members("reasoning_effort"),
                    "chat_template_kwargs": template_switch("reasoning_effort"),
                    "reasoning": reasoning("reasoning_effort"),
                    "format": native_format("response_format"),
                    "functions": FUNCTIONS,
                    "function_call": FUNCTION_CALL,
                    **_TOOLS,
                    "top_logprobs": TOP_LOGPROBS,
                    **ABOUT,
                    **_UNREAD,
                    **_SUFFIX,
                    **_SYSTEM,
                    **_PROMPT,
                }
            ),
            source="openai/openai.go: ChatCompletionRequest, Message, FromChatRequest; api/types.go: Tool",
        ),
        Table(
            TITLE,
            "/v1/completions",
            Object(
                {
                    "model": READ,
                    "prompt": Like(
                        lambda value: isinstance(value, str),
                        hint=_PROMPT_HINT,
                        first=_single,
                        says="a text, or a list of one",
                    ),
                    **_SAMPLING,
                    "top_p": Like(
                        lambda value: value != 0, hint="Ollama takes 0 for 1 here; use a small number.", says="not 0"
                    ),
                    "stop": _STOP,
                    "max_tokens": READ,
                    "suffix": READ,
                    **_STREAMING,
                    "options": options(_SAME | {"num_predict": "max_tokens"}, _OPTIONS_UNREAD),
                    **limits("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict"),
                    # Read, and left out of the answer (ToCompletion).
                    "logprobs": Dropped(False, hint="The answers of /v1/chat/completions have them."),
                    **ABOUT,
                    **_UNREAD,
                    "messages": Dropped([], hint="Use /v1/chat/completions."),
                    "system": Dropped("", hint="Use /v1/chat/completions."),
                    "images": Dropped([], hint="Use /v1/chat/completions."),
                    "tool_choice": Dropped("none", "auto", hint="Use /v1/chat/completions."),
                    "format": Unread("Use /v1/chat/completions."),
                    "response_format": Unread("Use /v1/chat/completions."),
                    "think": Unread("Use /v1/chat/completions."),
                    "reasoning_effort": Unread("Use /v1/chat/completions."),
                }
            ),
            whole=_cannot_generate,
            source="openai/openai.go: CompletionRequest, FromCompleteRequest, ToCompletion",
        ),
        Table(
            TITLE,
            "/v1/embeddings",
            Object(
                {
                    "model": READ,
                    "input": Like(
                        are_texts,
                        hint="Send texts; token ids belong to the vocabulary of one model.",
                        says="a text, or a list of texts",
                    ),
                    "dimensions": READ,
                    "encoding_format": READ,
                    **ABOUT,
                    **_UNREAD,
                    # Nothing is generated, so nothing is sampled or limited.
                    **{
                        name: Dropped()
                        for name in (*_SAME, "n", "max_tokens", "max_completion_tokens", "num_predict", "stream")
                    },
                    "options": options(_NOTHING_GENERATED, _OPTIONS_UNREAD),
                }
            ),
            source="openai/openai.go: EmbedRequest; middleware/openai.go: EmbeddingsMiddleware",
        ),
        Table(
            TITLE,
            "/v1/responses",
            Object(
                {
                    "model": READ,
                    "input": Each(_INPUT_ITEM),
                    "instructions": READ,
                    "temperature": READ,
                    "top_p": READ,
                    "max_output_tokens": READ,
                    "reasoning": Object(read("effort", "summary", "generate_summary")),
                    "tools": _RESPONSES_TOOLS,
                    "stream": READ,
                    "stream_options": Object({"include_usage": Dropped(), "include_obfuscation": Dropped()}),
                    "options": options(
                        {"temperature": "temperature", "top_p": "top_p", "num_predict": "max_output_tokens"},
                        _OPTIONS_UNREAD,
                    ),
                    **limits("max_output_tokens", "max_tokens", "max_completion_tokens", "num_predict"),
                    **thinking_members("reasoning.effort"),
                    "chat_template_kwargs": template_switch("reasoning.effort"),
                    "reasoning_effort": rename("reasoning.effort"),
                    "format": native_format("text.format"),
                    "response_format": chat_format(),
                    "text": Object({"format": _TEXT_FORMAT, "verbosity": Dropped("medium", hint=IN_THE_PROMPT)}),
                    **_TOOLS,
                    **ABOUT,
                    **_UNREAD,
                    **_SUFFIX,
                    "include": Dropped(
                        [], ["reasoning.encrypted_content"], hint="Ollama gives what is thought, and no more."
                    ),
                    "background": Dropped(False, hint=NO_WAITING),
                    "truncation": Dropped("disabled", hint=WHOLE_PROMPT),
                    "top_logprobs": Dropped(0, hint="Use /v1/chat/completions."),
                    "previous_response_id": Unread(
                        "Ollama keeps no responses; send the whole conversation as 'input'."
                    ),
                    "conversation": Unread("Ollama keeps no conversations; send the whole conversation as 'input'."),
                    "prompt": Unread("Ollama keeps no prompts; send the text itself as 'input'."),
                    "messages": Dropped([], hint="Send them as 'input'."),
                    "system": Dropped("", hint="Send it as 'instructions'."),
                    "seed": Unread("/v1/chat/completions has it."),
                    "stop": Unread("/v1/chat/completions has it."),
                    "frequency_penalty": Dropped(0, hint="/v1/chat/completions has it."),
                    "presence_penalty": Dropped(0, hint="/v1/chat/completions has it."),
                    "max_tool_calls": Unread(HOSTED),
                }
            ),
            source="openai/responses.go: ResponsesRequest, unmarshalResponsesInputItem, FromResponsesRequest",
        ),
    )
}
