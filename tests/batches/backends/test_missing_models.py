"""What a person is told about a model that the server does not have: something that can be followed."""

import pytest

from batches import backends
from batches.backends.missing_models import listing

INSTALLED = ["gemma3:12b", "llama3.1:8b", "nomic-embed-text:latest"]


def hint(model, kind="ollama", listed=INSTALLED):
    return backends.missing_model_hint(kind, model, listed)


PULLED = """
    qwen3:8b gemma3 gpt-oss:20b gpt-oss:120b-cloud deepseek-r1 command-r mistral-small3.1:24b phi4-mini olmo2:7b
    nomic-embed-text mxbai-embed-large snowflake-arctic-embed2 all-minilm qwen2.5-coder:7b openchat
    someone/mine:q4 hf.co/Qwen/Qwen3-8B-GGUF:Q4_K_M huggingface.co/u/r registry.ollama.ai/library/qwen3
"""
HOSTED = """
    gpt-4o-mini gpt-4o gpt-3.5-turbo-0125 GPT-4 gpt-5.1 o1 o3-mini chatgpt-4o-latest text-davinci-003 openai/gpt-4o
    openai/gpt-oss-20b claude-sonnet-4-5 anthropic/claude-3.5-sonnet gemini-2.5-flash grok-4 deepseek-chat
    mistral-large-latest
"""


@pytest.mark.parametrize("name", PULLED.split())
def test_what_ollama_may_have_is_to_be_pulled(name):
    assert hint(name) == f"Install it: ollama pull {name}"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, "gemma3:12b") for name in HOSTED.split()),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1:8b"),
        ("llama-3.1-8b-instant", "llama3.1:8b"),
        ("google/gemma-3-12b-it", "gemma3:12b"),
        *((f"text-embedding-{name}", "nomic-embed-text:latest") for name in ("3-small", "3-large", "ada-002")),
        ("BAAI/bge-small-en-v1.5", "nomic-embed-text:latest"),
    ],
)
def test_what_ollama_does_not_have_is_to_be_mapped_to_what_is_installed(name, target):
    told = hint(name)
    assert told.startswith("Ollama knows no such name.")
    assert told.endswith(f": MODEL_ALIASES={name}={target}")


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("ft:gpt-4o-mini:my-org::x1", "MODEL_ALIASES=ft:gpt-4o-mini:my-org::x1=gemma3:12b"),
        ("my model", "MODEL_ALIASES='my model=gemma3:12b'"),
        ("it's", """MODEL_ALIASES='it'"'"'s=gemma3:12b'"""),
        ("a=b", "MODEL_ALIASES='*=gemma3:12b'"),
        ("a,b", "MODEL_ALIASES='*=gemma3:12b'"),
    ],
)
def test_a_name_that_ollama_refuses_is_to_be_mapped_too(name, typed):
    assert hint(name).endswith(f": {typed}")


def test_with_nothing_installed_there_is_something_to_install_first(settings):
    settings.MODEL_NAME = "qwen3:14b"
    told = hint("gpt-4o-mini", listed=[])
    assert told.endswith(": ollama pull qwen3:14b, MODEL_ALIASES=gpt-4o-mini=qwen3:14b")


def test_an_alias_is_added_to_those_that_are_set(settings):
    settings.MODEL_ALIASES = {"gpt-4o": "gemma3:12b"}
    assert hint("gpt-4o-mini").endswith(": add gpt-4o-mini=gemma3:12b to MODEL_ALIASES")


@pytest.mark.parametrize("kind", ["vllm", "llama-server", "openai"])
def test_elsewhere_the_nearest_names_are_named(kind):
    served = ["qwen2.5-7b", "Qwen/Qwen3-8B", "BAAI/bge-m3", "Qwen/Qwen3-4B", "other"]
    told = hint("qwen3-8b", kind, served)
    assert "such as Qwen/Qwen3-8B, Qwen/Qwen3-4B and qwen2.5-7b" in told
    assert told.endswith(": MODEL_ALIASES=qwen3-8b=Qwen/Qwen3-8B")
    assert hint("gpt-4o-mini", kind, ["tiny"]).endswith(": MODEL_ALIASES=gpt-4o-mini=tiny")
    assert "lists no model" in hint("gpt-4o-mini", kind, [])


def test_a_list_of_models_in_a_sentence():
    assert listing([]) == "It lists no model."
    assert listing(["a"]) == "It lists a."
    assert listing(["a", "b"]) == "It lists a and b."
    assert listing([f"m{n}" for n in range(12)]).endswith("m8, m9 and 2 more.")
