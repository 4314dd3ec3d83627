"""Which names are one model to Ollama: types/model/name.go, internal/modelref and getExistingName in server/routes.go.

A name is `{host}/{namespace}/{model}:{tag}`. What is left out is registry.ollama.ai, library, latest; each part is
compared without regard to case, and a part with any other letter or sign is refused.
"""

import re

DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
PARTS = (
    re.compile(r"[a-z0-9_][a-z0-9_.:-]{0,349}"),
    re.compile(r"[a-z0-9_][a-z0-9_-]{0,79}"),
    re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}"),
    re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}"),
)


def identity(name: str) -> str:
    """The whole name in lower case, which is the same for all names of one model; empty if Ollama refuses the name."""
    if not name.strip().isascii():
        return ""  # before the case is ignored: some letters of other alphabets have an ASCII letter as lower case
    parts = _parts(_without_source(name.strip()).lower())
    if not all(pattern.fullmatch(part) for pattern, part in zip(PARTS, parts, strict=True)):
        return ""
    host, namespace, model, tag = parts
    return f"{host}/{namespace}/{model}:{tag}"


def _without_source(name: str) -> str:
    """`name` as the list has it: without `:local`, and with `:20b:cloud` written as `:20b-cloud`. Empty if the name
    says twice where the model runs, which Ollama refuses."""
    base, source = _split_source(name)
    if source and _split_source(base)[1]:
        return ""
    if source != "cloud":
        return base
    return f"{base}-cloud" if _has_tag(base) else f"{base}:cloud"


def _split_source(name: str) -> tuple[str, str]:
    """The name without what says where the model runs, and `local`, `cloud`, or empty if it does not say."""
    base, colon, suffix = name.rpartition(":")
    suffix = suffix.strip()
    if not colon:
        return name, ""
    if suffix.lower() in ("local", "cloud"):
        return base, suffix.lower()
    if suffix.lower().endswith("-cloud") and "/" not in suffix:
        return f"{base}:{suffix[: -len('-cloud')]}", "cloud"
    return name, ""


def _has_tag(name: str) -> bool:
    return name.rfind(":") > name.rfind("/")  # a colon before the last slash belongs to the host


def _parts(name: str) -> tuple[str, str, str, str]:
    """Host, namespace, model and tag, with the defaults for what is left out. A part is empty if a `/` or `:` announces
    it and nothing follows."""
    host, namespace, tag = DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG
    if _has_tag(name):
        name, _, tag = name.rpartition(":")
    rest, slash, model = name.rpartition("/")
    if slash:
        rest, slash, namespace = rest.rpartition("/")
    if slash:
        host = (rest.partition("://")[2] or DEFAULT_HOST) if "://" in rest else rest
    return host, namespace, model, tag


# Names of hosted services, whose weights nobody can pull.
_HOSTED = re.compile(
    r"gpt-(?!oss)|chatgpt|o\d+(-|$)|(text|code)-(embedding|davinci|curie|babbage|ada|moderation|search|similarity)"
    r"|davinci|babbage|curie|ada(-|$)|dall-e|whisper|tts-|codex|omni-moderation|computer-use"
    r"|claude|gemini|grok|palm|sonar|nova-|titan|deepseek-(chat|reasoner)$|qwen[\d.]*-(max|plus|turbo|long|flash)"
    r"|mistral-(tiny|medium|embed)|(open-)?mi[sx]tral-.*-?latest$|voyage-|embed-(english|multilingual)"
)
# Whose models have names of that form at a service or on Hugging Face, where `ollama pull` does not look for them.
_VENDORS = re.compile(
    r"openai|anthropic|azure|google|gemini|vertex_ai|bedrock|amazon|cohere|x-?ai|groq|openrouter|together(_ai|computer)?"
    r"|fireworks(_ai)?|perplexity|meta-llama|mistralai|qwen|microsoft|deepseek-ai|nvidia|baai|intfloat|thenlper"
    r"|sentence-transformers|huggingfacetb|huggingfaceh4|tiiuae|allenai|nousresearch|ibm-granite|moonshotai|zai-org"
)
# Ollama's library has the size in the tag, as in llama3.1:8b.
_SIZE = re.compile(r"-\d+(\.\d+)?[bm](-|$)")


def may_be_pulled(name: str) -> bool:
    """Whether `ollama pull` may know this name, as far as its form tells; nobody is asked."""
    known = identity(name)
    if not known:
        return False
    host, namespace, model = known.rpartition(":")[0].rsplit("/", 2)
    if host != DEFAULT_HOST:
        return True
    if namespace == DEFAULT_NAMESPACE:
        return not (_HOSTED.match(model) or _SIZE.search(model) or model.endswith("-latest"))
    return not (_VENDORS.fullmatch(namespace) or _HOSTED.match(model))
