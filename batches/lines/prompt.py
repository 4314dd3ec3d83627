"""How a request's prompt begins, and how many tokens it takes: from the body alone, before anything is sent. Pure.

A model server reads a prompt only from its first difference to a prompt that the server has just read. Lines sorted by
`order_key` stand next to the lines that they share most with: a system prompt, a few-shot header, a document. Only
`dump` raises, whatever JSON a body holds: the model server tells what is wrong with the body.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from zlib import crc32

# A key is the digest of the request's shape, then a hash of the prompt up to each cut that lies within the prompt.
SHAPE_BYTES = 4
HASH_BYTES = 3
FIRST_CUTS = (64, 128, 192, 256)
GROWTH = 1.25
# Prompts that share GROUP_BLOCKS hashes share so much that it is worth sending them one after the other.
GROUP_BLOCKS = len(FIRST_CUTS)
GROUP_BYTES = SHAPE_BYTES + GROUP_BLOCKS * HASH_BYTES
LAST_CUT = 128 * 2**10

# Members that change how a prompt is rendered, most of them at its head.
SHAPING = ("tools", "functions", "response_format", "reasoning_effort", "reasoning", "chat_template_kwargs")
# Members that are rendered too, though not part of the messages.
BESIDE_THE_PROMPT = ("tools", "functions", "suffix")
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

# Estimates tokens on the high side: most texts take four bytes for each token, dense texts three.
BYTES_PER_TOKEN = 3
MEDIA = ("image_url", "input_image", "input_audio")
TOKENS_PER_MEDIUM = 1024
MOST_TOKENS = 2**31 - 1  # what a column holds

# Made once, since json.dumps with arguments makes an encoder in each call.
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def _cuts() -> Iterator[int]:
    cut = FIRST_CUTS[-1]
    yield from FIRST_CUTS
    while (cut := int(cut * GROWTH)) <= LAST_CUT:
        yield cut


# In bytes of the prompt. Growing steps keep keys short (34 bytes for 1 KiB, 97 at most) and lose at worst a fifth of
# what two prompts share.
CUTS = tuple(_cuts())


class Prompt(NamedTuple):
    """What is stored about a line's prompt, so that the prompt need not be read again."""

    order_key: bytes
    context_tokens: int


def measure(endpoint: str, body: dict[str, Any]) -> Prompt:
    """The line's key for sorting, and an estimate of the tokens that it takes at most, prompt and answer. If a line
    sets no token limit, its prompt alone counts."""
    if endpoint == "/v1/embeddings":
        # A server uses nothing from one embedding for the next, so these lines stay in the order of the input.
        return Prompt(b"", _capped(_longest(body.get("input"))))
    media: list[int] = []
    prompt = _utf8(_render(endpoint, body, media))
    if endpoint == "/v1/completions" and isinstance(body.get("prompt"), list):
        tokens = _longest(body["prompt"])
    else:
        tokens = _tokens(len(prompt) - sum(media)) + len(media) * TOKENS_PER_MEDIUM
    tokens += sum(_tokens(_size(body[name])) for name in BESIDE_THE_PROMPT if body.get(name))
    return Prompt(_key(_shape(body), prompt), _capped(tokens + token_limit(body)))


def order_key(endpoint: str, body: dict[str, Any]) -> bytes:
    """The key for sorting, at most 255 bytes. Two lines of one shape have the first k hashes in common if their prompts
    are the same up to the k-th cut, and only by chance otherwise."""
    return measure(endpoint, body).order_key


def shared_blocks(a: bytes, b: bytes) -> int:
    """How many leading hashes two keys have in common; 0 if the shapes of the requests differ."""
    a, b = bytes(a), bytes(b)  # Postgres gives memoryviews
    if a[:SHAPE_BYTES] != b[:SHAPE_BYTES]:
        return 0
    most = min(len(a), len(b))
    blocks = 0
    for start in range(SHAPE_BYTES, most, HASH_BYTES):
        if a[start : start + HASH_BYTES] != b[start : start + HASH_BYTES]:
            break
        blocks += 1
    return blocks


def group(key: bytes) -> bytes:
    """Equal for lines of one shape whose prompts begin alike for GROUP_BLOCKS cuts; empty for shorter prompts."""
    return key[:GROUP_BYTES] if len(key) >= GROUP_BYTES else b""


def dump(value: Any) -> bytes:
    """Compact JSON in which structure and order count."""
    return _utf8(_encode(value))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _key(shape: bytes, prompt: bytes) -> bytes:
    hashes = [shape]
    view = memoryview(prompt)
    crc = start = 0
    for cut in CUTS:
        if cut > len(prompt):
            break
        # Each hash is a checksum of all bytes before its cut, though only the bytes since the last cut are read.
        crc = crc32(view[start:cut], crc)
        hashes.append(crc.to_bytes(4, "big")[-HASH_BYTES:])
        start = cut
    return b"".join(hashes)


def _shape(body: dict[str, Any]) -> bytes:
    shaping = [body.get(name) for name in SHAPING]
    text = body.get("text")
    shaping.append(text.get("format") if isinstance(text, dict) else None)
    if not any(shaping):
        return bytes(SHAPE_BYTES)
    return crc32(dump(shaping)).to_bytes(SHAPE_BYTES, "big")


def _render(endpoint: str, body: dict[str, Any], media: list[int]) -> str:
    """The prompt as one text. Appends to `media` the length of each image or sound in the prompt (they are ASCII)."""
    if endpoint == "/v1/completions":
        prompt = body.get("prompt")
        return prompt if isinstance(prompt, str) else _encode(prompt)
    texts: list[str] = []
    if endpoint == "/v1/responses":
        messages = body.get("input")
        if instructions := body.get("instructions"):
            texts.append(instructions if isinstance(instructions, str) else _encode(instructions))
    else:
        messages = body.get("messages")
    if isinstance(messages, list):
        texts += [_message(message, media) for message in messages]
    elif messages:
        texts.append(messages if isinstance(messages, str) else _encode(messages))
    return "\n".join(texts)


def _message(message: Any, media: list[int]) -> str:
    if not isinstance(message, dict):
        return _encode(message)
    content = message.get("content")
    text = f"{message.get('role')}\n{content if isinstance(content, str) else _parts(content, media)}"
    if len(message) > 2:  # calls of tools, names
        text += _encode({name: value for name, value in message.items() if name not in ("role", "content")})
    return text


def _parts(content: Any, media: list[int]) -> str:
    if not isinstance(content, list):
        return _encode(content) if content else ""
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            text = _encode(part)
            if isinstance(part, dict) and part.get("type") in MEDIA:
                media.append(len(text))
        texts.append(text)
    return "\n".join(texts)


def _longest(input_: Any) -> int:
    """Tokens of the longest of several texts that the model reads one by one; each may be a list of tokens."""
    if not isinstance(input_, list):
        return _tokens(_size(input_)) if input_ else 0
    if all(isinstance(token, int) for token in input_):
        return len(input_)
    return max(len(each) if isinstance(each, list) else _tokens(_size(each)) for each in input_)


def _tokens(bytes_: int) -> int:
    return -(-bytes_ // BYTES_PER_TOKEN)


def _size(value: Any) -> int:
    return len(_utf8(value)) if isinstance(value, str) else len(dump(value))


def token_limit(body: dict[str, Any]) -> int:
    """The tokens that an answer to `body` may have, by the lowest limit that `body` sets; 0 if it sets none.

    `true` is no number, though Python takes it for 1.
    """
    asked = [body.get(name) for name in LIMITS]
    return min((limit for limit in asked if type(limit) is int and limit > 0), default=0)


def _capped(tokens: int) -> int:
    return min(tokens, MOST_TOKENS)
