"""Whether Ollama answered a prompt that it had cut to fit the context without saying so: HTTP 200, wrong data.

Under /v1, an over-long prompt loses its oldest messages (server/prompt.go chatPrompt), then its middle
(llm/llama_server.go). The input of an embedding loses its end (server/routes.go EmbedHandler). The native endpoints
refuse such a prompt if `truncate` is false, and say by how much it is too long. They count before they compute, so a
chat that fits costs some 50 ms more, since its prompt is in the cache; inputs that fit are embedded twice. The native
endpoint is asked only if the numbers allow that the prompt was cut.
"""

import re
import time
from collections.abc import Collection, Iterator
from typing import Any

from batches.backends import ollama_names
from batches.backends.replies import JSON, count
from batches.backends.states import Ask, CutPrompt, Exchange
from common import strict_json

Question = tuple[str, JSON]

LEAST_CONTEXT = 512  # tokens; a prompt that fits into this is not looked at
IMAGE_TOKENS = 4096  # at most, of one image
EMBEDDING_BATCH = 2048  # tokens; an input is cut to this if the context is larger
SPECIAL_TOKENS = 8
# Loading a model again, maybe with a smaller context, takes about REMEMBERED_S: until then, the sizes are still true.
REMEMBERED_S = 1.0
# A token of a whole prompt has fewer bytes on average. A token of a prompt cut to half the context seems to have more.
BYTES_PER_TOKEN = 5
# The tokens of a prompt, and those of the context that is too small for it.
NUMBERS = re.compile(r"\((\d{1,9}) tokens\)\D+\((\d{1,9}) tokens\)")
# The members of a body that the model reads.
PROMPT = ("messages", "prompt", "suffix", "input", "instructions", "tools")


class Contexts:
    """The contexts of the models that one server has loaded, asked for once a second at most. For several threads."""

    def __init__(self) -> None:
        self._told: tuple[float, dict[str, int]] = (-REMEMBERED_S, {})

    def size(self, exchange: Exchange, model: str, *, looks_cut: bool) -> int:
        """The context of `model`, in tokens; the smallest of all loaded models if none is loaded under this name.

        Asks Ollama if the context is not remembered, or if an answer looks as if the context had become smaller.
        """
        asked_at, sizes = self._told
        name = _name_in(sizes, model)
        if looks_cut or not name or time.monotonic() > asked_at + REMEMBERED_S:
            asked_at = time.monotonic()  # the reply is not older than this
            loaded = loaded_models(lambda path: exchange(path, None))
            sizes = {each: context for each in loaded if (context := count(loaded[each], "context_length"))}
            self._told = asked_at, sizes
            name = _name_in(sizes, model)
        return sizes[name] if name else min(sizes.values(), default=LEAST_CONTEXT)


def loaded_models(ask: Ask) -> dict[str, JSON]:
    """What Ollama tells about the models that it has loaded, by name."""
    return loaded_in(ask("/api/ps")[1])


def loaded_in(answer: Any) -> dict[str, JSON]:
    """The same, of Ollama's answer."""
    listed = answer.get("models") if isinstance(answer, dict) else None
    named = [each for each in listed or [] if isinstance(each, dict) and "name" in each]
    # Of two of one name, which was pulled anew, the one first in the list is used.
    return {str(each["name"]): each for each in reversed(named)}


def model_in(loaded: dict[str, JSON], model: str) -> JSON:
    """What Ollama tells about `model`; empty if the model is not loaded, or has another name."""
    return loaded.get(_name_in(loaded, model), {})


def question(contexts: Contexts, exchange: Exchange, endpoint: str, sent: JSON, prompt_tokens: int) -> Question | None:
    """The path and body of the question whether the prompt was too long; None if it was read whole, as far as the
    numbers tell. A 200 says that it fits, a 400 that it does not, or names another fault of the line's."""
    about = _about_embedding if endpoint == "/v1/embeddings" else _about_prompt
    asked = about(contexts, exchange, endpoint, sent, prompt_tokens)
    if asked is None:
        return None
    path, body = asked
    return path, body | {"model": sent["model"], "truncate": False, "stream": False}


def too_long(refusal: str) -> CutPrompt | None:
    """What to tell of a prompt that Ollama cut, by the words that refuse the whole prompt; None if they refuse it for
    another fault."""
    if not re.search(r"context (length|size)|exceed_context", refusal):
        return None
    numbers = NUMBERS.search(refusal)
    excess = f"has {numbers[1]} tokens and the context {numbers[2]}" if numbers else "is longer than the context"
    message = (
        f"The prompt {excess}. Ollama cut it without a word, so its answer was thrown away. Give the model a larger "
        "context (OLLAMA_CONTEXT_LENGTH, or num_ctx in its Modelfile), or shorten the prompt."
    )
    return CutPrompt(message, prompt_tokens(refusal))


def prompt_tokens(refusal: str) -> int:
    """The tokens of the prompt that these words refuse because the context is too small; 0 if they do not say."""
    numbers = NUMBERS.search(refusal)
    return int(numbers[1]) if numbers else 0


def _name_in(names: Collection[str], model: str) -> str:
    wanted = ollama_names.identity(model)
    return next((name for name in names if ollama_names.identity(name) == wanted), "")


def _about_prompt(
    contexts: Contexts, exchange: Exchange, endpoint: str, sent: JSON, prompt_tokens: int
) -> Question | None:
    # A token has at least one byte. A single message is cut to half a context or more, a history to any length.
    most_tokens = _most_tokens_in([sent.get(name) for name in PROMPT])
    if most_tokens < LEAST_CONTEXT:
        return None
    looks_cut = prompt_tokens * BYTES_PER_TOKEN < most_tokens
    context = contexts.size(exchange, sent["model"], looks_cut=looks_cut)
    if most_tokens < context:
        return None
    messages = _native_messages(endpoint, sent)
    is_history = sum(message["role"] != "system" for message in messages) > 1
    if prompt_tokens < context // 2 and not is_history:
        return None
    asked: JSON = {"options": {"num_predict": 1}}
    if endpoint == "/v1/completions":
        return "/api/generate", asked | {name: sent[name] for name in ("prompt", "suffix") if sent.get(name)}
    tools = sent.get("tools") if endpoint == "/v1/chat/completions" else None
    return "/api/chat", asked | {"messages": messages} | ({"tools": tools} if tools else {})


def _about_embedding(
    contexts: Contexts, exchange: Exchange, endpoint: str, sent: JSON, prompt_tokens: int
) -> Question | None:
    texts = sent["input"] if isinstance(sent.get("input"), list) else [sent.get("input")]
    long = [text for text in texts if isinstance(text, str) and _most_tokens(text) >= LEAST_CONTEXT]
    if not long:
        return None
    looks_cut = prompt_tokens * BYTES_PER_TOKEN < sum(map(_most_tokens, long))
    context = contexts.size(exchange, sent["model"], looks_cut=looks_cut)
    least_cut = min(context, EMBEDDING_BATCH) - SPECIAL_TOKENS
    long = [text for text in long if _most_tokens(text) >= least_cut]
    return ("/api/embed", {"input": long}) if long and prompt_tokens >= least_cut else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _most_tokens_in(value: Any) -> int:
    """Of all texts in it."""
    if isinstance(value, str):
        return _most_tokens(value)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return 0
    return sum(map(_most_tokens_in, value))


def _most_tokens(text: str) -> int:
    if text.startswith("data:"):
        return IMAGE_TOKENS
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _native_messages(endpoint: str, sent: JSON) -> list[JSON]:
    """The messages as /api/chat takes them: text, images and tool calls, near enough to be counted."""
    if endpoint == "/v1/chat/completions":
        return [_native(message) for message in sent.get("messages") or [] if isinstance(message, dict)]
    items = sent.get("input")
    said = [_native(item) for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    if isinstance(items, str):
        said = [{"role": "user", "content": items}]
    return ([{"role": "system", "content": sent["instructions"]}] if sent.get("instructions") else []) + said


def _native(message: JSON) -> JSON:
    content = message.get("content") or message.get("output") or ""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    native: JSON = {"role": message.get("role") or "tool", "content": "\n".join(texts)}
    images = [url.partition(",")[2] for url in _texts(content) if url.startswith("data:")]
    if images:
        native["images"] = images
    called = [call.get("function") for call in message.get("tool_calls") or [] if isinstance(call, dict)]
    if message.get("type") == "function_call":
        native, called = {"role": "assistant", "content": ""}, [message]
    calls = [
        {"function": {"name": each.get("name"), "arguments": _parsed(each.get("arguments"))}}
        for each in called
        if isinstance(each, dict)
    ]
    return native | ({"tool_calls": calls} if calls else {})


def _parsed(arguments: Any) -> Any:
    try:
        return strict_json.loads(arguments.encode())
    except (AttributeError, ValueError):
        return {}
