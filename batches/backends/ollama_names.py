"""Which names are one model to Ollama: types/model/name.go, internal/modelref and getExistingName in server/routes.go.

A name is `{host}/{namespace}/{model}:{tag}`. What is left out is registry.ollama.ai, library, latest; each part is
compared without regard to case, and a part with any other letter or sign is refused.
"""

import re
from functools import lru_cache

DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
PARTS = (
    re.compile(r"[a-z0-9_][a-z0-9_.:-]{0,349}"),
    re.compile(r"[a-z0-9_][a-z0-9_-]{0,79}"),
    re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}"),
    re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}"),
)


@lru_cache(maxsize=1024)  # asked for each answer, of the few models that a server has loaded
def identity(name: str) -> str:
    """The whole name in lower case, which is the same for all names of one model; empty if Ollama refuses the name."""
    if not name.strip().isascii():
        return ""  # before the case is ignored: some letters of other alphabets have an ASCII letter as lower case
    parts = split(name.lower())
    if not all(pattern.fullmatch(part) for pattern, part in zip(PARTS, parts, strict=True)):
        return ""
    host, namespace, model, tag = parts
    return f"{host}/{namespace}/{model}:{tag}"


def split(name: str) -> tuple[str, str, str, str]:
    """Host, namespace, model and tag of a name, with the defaults for what is left out."""
    return _parts(_without_source(name.strip()))


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
    r"gpt(?!-oss)|chatgpt|o\d+(-|$)|(text|code)-(embedding|davinci|curie|babbage|ada|moderation|search|similarity)"
    r"|text-?(multilingual-)?embedding|davinci|babbage|curie|ada(-|$)|dall-e|whisper|tts-|codex|computer-use"
    r"|omni-moderation|claude|gemini|grok|palm|sonar|nova-|titan|deepseek-(chat|reasoner)$|jina-|voyage-"
    r"|qwen[\d.]*-(max|plus|turbo|long|flash)|embed-(english|multilingual)|command(-light|-nightly|-text|$)"
    r"|mistral-(tiny|medium|embed)|open-mi[sx]tral|[a-z]*[sx]tral-.*-?(latest|\d{4})$|command-.*-\d{2}-\d{4}$"
    r"|((us|eu|apac|global)\.)?(anthropic|meta|amazon|mistral|cohere|ai21|deepseek|openai|qwen)\."
)
# Whose models have names of that form at a service or on Hugging Face, where `ollama pull` does not look for them.
_VENDORS = re.compile(
    r"openai|anthropic|azure(_ai)?|google|gemini|vertex_ai|bedrock|amazon|cohere(forai|labs)?|x-?ai(-org)?|groq|models"
    r"|openrouter|together(_ai|computer)?|fireworks(_ai)?|perplexity|deepinfra|cerebras|sambanova|replicate|meta|facebook"
    r"|meta-llama|mistral(ai)?|qwen|microsoft|deepseek(-ai)?|nvidia|baai|intfloat|thenlper|z-?ai(-org)?|moonshot(ai)?"
    r"|minimax(ai)?|ai21(labs)?|sentence-transformers|huggingface(tb|h4)?|tiiuae|allenai|nousresearch|ibm-granite|thudm"
    r"|thebloke|bartowski|unsloth|lmstudio-community|mlx-community|ggml-org|maziyarpanahi|mradermacher|redhatai"
    r"|eleutherai|bigscience|bigcode|stabilityai|lmsys|01-ai|internlm|openbmb|nomic-ai|mixedbread-ai|jinaai|alibaba-nlp"
)
# Ollama's library has size and variant in the tag, as in llama3.1:8b-instruct; Hugging Face has them in the name.
_IN_TAG = re.compile(
    r"-(\d+x)?\d+(\.\d+)?[bm]([-_.]|$)|[-_.](instruct|it|hf|gguf|awq|gptq|exl2|mlx|fp8|bf16|[48]-?bit)([-_.]|$)"
    r"|-latest$|-\d+k-|^(all|paraphrase|multi-qa|msmarco)-.*-v\d$|^bge-(small|base|large)-|^(multilingual-)?e5-|^gte-"
    r"|^(nomic|mxbai|snowflake)-.*-v[\d.]+$",
    re.IGNORECASE,
)
_GGUF_REPOSITORY = re.compile(r"[-_.]gguf$", re.IGNORECASE)


def name_to_pull(name: str) -> str:
    """The name by which `ollama pull` may find the model, as far as the form of `name` tells; empty if it finds none.

    Nobody is asked. Repositories of GGUF files on Hugging Face are pulled by another name: `hf.co/{name}`.
    """
    known, name = identity(name), name.strip()
    if not known:
        return ""
    path, _, tag = known.rpartition(":")
    host, namespace, model = path.rsplit("/", 2)
    if tag == "cloud" or tag.endswith("-cloud"):
        return name  # Ollama lists models that its own service runs, of vendors too
    if host != DEFAULT_HOST:
        # Three parts are also a service's name for a model of a vendor: openrouter/meta-llama/llama-3.
        return name if re.search(r"[.:]|^localhost$", host) else ""
    if namespace == DEFAULT_NAMESPACE:
        return "" if _HOSTED.match(model) or _IN_TAG.search(model) else name.lower()
    if _GGUF_REPOSITORY.search(model):
        return f"hf.co/{name.rpartition('://')[2].removeprefix(DEFAULT_HOST + '/')}"
    if _VENDORS.fullmatch(namespace) or _HOSTED.match(model) or _is_of_hugging_face(name, model):
        return ""
    return name


def _is_of_hugging_face(name: str, model: str) -> bool:
    """Whether a name with a namespace looks like one of Hugging Face, where names have no tag."""
    return not _has_tag(name) and (_IN_TAG.search(model) is not None or model not in name)
