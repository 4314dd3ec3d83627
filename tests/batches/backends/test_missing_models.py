"""What a person is told about a model that the server does not have: something that can be followed."""

import pytest

from batches import backends
from batches.backends.missing_models import listing

INSTALLED = ["gemma3:12b", "llama3.1:8b", "nomic-embed-text:latest"]


def hint(model, kind="ollama", listed=INSTALLED, **situation):
    return backends.missing_model_hint(kind, model, listed, **situation)


PULLED = """
    nemotron-mini command-r7b llama-guard3 all-minilm:33m bge-m3 deepseek-v3.1:671b-cloud paraphrase-multilingual
    gemini-3-flash-preview:cloud neural-chat mistral-small3.2 MFDoom/deepseek-r1-tool-calling:8b hf.co/a/B-GGUF
    qwen3:8b gemma3 gpt-oss:20b gpt-oss:120b-cloud deepseek-r1 command-r mistral-small3.1:24b phi4-mini olmo2:7b
    nomic-embed-text mxbai-embed-large snowflake-arctic-embed2 all-minilm qwen2.5-coder:7b openchat
    someone/mine:q4 hf.co/Qwen/Qwen3-8B-GGUF:Q4_K_M huggingface.co/u/r registry.ollama.ai/library/qwen3
"""
HOSTED = """
    gpt-4o-mini gpt-4o gpt-3.5-turbo-0125 GPT-4 gpt-5.1 o1 o3-mini chatgpt-4o-latest text-davinci-003 openai/gpt-4o
    openai/gpt-oss-20b claude-sonnet-4-5 anthropic/claude-3.5-sonnet gemini-2.5-flash grok-4 deepseek-chat
    mistral-large-latest GPT-4o Claude CLAUDE-3-OPUS Gemini-1.5-Pro gpt4o mistral-small-2409 open-mistral-nemo
    command-light anthropic.claude-3-5-sonnet-20241022-v2:0 us.anthropic.claude-sonnet-4-20250514-v1:0
    openrouter/cohere/aya together_ai/Qwen/Qwen2.5-7B azure/my-deployment openai:gpt-4o
    deepseek/deepseek-r1:free litellm_proxy/claude-3-haiku models/gemini-pro x-ai/grok-4
    TheBloke/zephyr-beta TheBloke/Mistral-7B-Instruct-v0.2-AWQ EleutherAI/pythia Someone/Mixtral-8x7B
    someone/phi-3-mini-it
    Phi-3-mini-4k-instruct Mixtral-8x7B-Instruct-v0.1 zephyr-7b.Q4_K_M.gguf lmstudio-community/a-GGUF/a-Q4_K_M.gguf
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
    ("name", "pulled"),
    [
        ("Llama3", "llama3"),
        (" QWEN3:8B", "qwen3:8b"),
        ("Command-R", "command-r"),
        ("Library/Phi4-Mini", "library/phi4-mini"),
    ],
)
def test_the_library_has_lower_case_names(name, pulled):
    assert hint(name) == f"Install it: ollama pull {pulled}"


@pytest.mark.parametrize("name", ["TheBloke/Llama-2-7B-GGUF", "bartowski/Qwen3-8B-GGUF:Q4_K_M", "Qwen/Qwen3-8B-GGUF"])
def test_a_repository_of_gguf_files_is_pulled_from_hugging_face_and_mapped(name):
    told = hint(name)
    assert told.startswith(f"Ollama knows it as hf.co/{name}. Install it and map the name to it")
    assert told.endswith(f": ollama pull hf.co/{name}, MODEL_ALIASES={name}=hf.co/{name}")


PREFIXES = [
    "ollama/",
    "ollama_chat/",
    "ollama:",
    "OLLAMA/",
    "openai/",
    "hosted_vllm/",
    "lm_studio/",
    "litellm_proxy/ollama/",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_a_client_library_writes_before_a_name_is_no_part_of_it(prefix):
    told = hint(f"{prefix}llama3.1:8b")
    assert told.startswith("Ollama lists it as llama3.1:8b. Use this name, or map the other one to it")
    assert told.endswith(f": MODEL_ALIASES={prefix}llama3.1:8b=llama3.1:8b")
    told = hint(f"{prefix}llama3")
    assert told.startswith("Ollama knows it as llama3. Install it and map the name to it, then restart")
    assert told.endswith(f": ollama pull llama3, MODEL_ALIASES={prefix}llama3=llama3")
    assert hint(f"{prefix}gpt-4o").endswith(f": MODEL_ALIASES={prefix}gpt-4o=gemma3:12b")
    assert hint(f"{prefix}Qwen/Qwen3-8B", "vllm", ["Qwen/Qwen3-8B"]).startswith("vLLM lists it as Qwen/Qwen3-8B.")


EMBEDDERS = """
    text-embedding-3-small text-embedding-ada-002 Text-Embedding-3-Large openai/text-embedding-3-small
    openai:text-embedding-3-large text-embedding-004 text-similarity-davinci-001 voyage-3-lite embed-english-v3.0
    BAAI/bge-small-en-v1.5 intfloat/multilingual-e5-large thenlper/gte-base all-MiniLM-L6-v2 all-mpnet-base-v2
    sentence-transformers/LaBSE jina-embeddings-v3 gemini-embedding-001 amazon.titan-embed-text-v2:0 mistral-embed
"""
WRITERS = ["gpt-4o-mini", "o3", "claude-sonnet-4-5", "meta-llama/Llama-3.1-8B-Instruct", "GPT-4o", "my,model"]


@pytest.mark.parametrize("kind", ["ollama", "vllm", "llama-server", "openai"])
@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (EMBEDDERS.split(), ["gemma3:12b", "text-small:3", "whisper-1", "bge-reranker-v2"]),
        (WRITERS, ["nomic-embed-text:latest", "gpt-4o-mini-embeddings", "whisper-1"]),
    ],
)
def test_no_model_stands_in_for_one_of_another_purpose(kind, names, listed, settings):
    settings.MODEL_NAME = listed[0]
    for name in names:
        for lines_wait in (False, True):
            told = hint(name, kind, listed, lines_wait=lines_wait)
            assert not any(f"={each}" in told or f"cp {each}" in told for each in listed), told
            assert not any(f"such as {each}" in told for each in listed), told


@pytest.mark.parametrize("name", EMBEDDERS.split())
def test_without_a_model_for_embeddings_there_is_one_to_install(name):
    told = hint(name, listed=["gemma3:12b"])
    assert told.startswith("Ollama knows no such name. Install a model for embeddings and map the name to it")
    assert told.endswith(f": ollama pull nomic-embed-text, MODEL_ALIASES={name}=nomic-embed-text")
    assert hint(name, "vllm", ["gemma"]) == "vLLM lists no model for embeddings. Give it one."


LISTED_EMBEDDERS = """
    snowflake-arctic-embed2:latest bge-m3:latest granite-embedding:30m embeddinggemma:latest all-minilm:33m
    paraphrase-multilingual:latest qwen3-embedding:0.6b znbang/bge:small-en-v1.5-q8_0 hf.co/BAAI/bge-m3-GGUF:Q8_0
    intfloat/e5-mistral-7b-instruct Alibaba-NLP/gte-Qwen2-7B sentence-transformers/LaBSE togethercomputer/m2-bert-80M
    dunzhang/stella_en_1.5B_v5 WhereIsAI/UAE-Large-V1 nomic-ai/modernbert-embed-base distilbert/distilroberta
"""
WRITERS_LISTED = [
    "gemma3:12b",
    "albert-7b",
    "embers:3b",
    "sdk-llama:1b",
    "robert:latest",
    "llama3.1:8b-instruct-q4_K_M",
]


@pytest.mark.parametrize("embedder", LISTED_EMBEDDERS.split())
def test_a_listed_model_is_known_to_make_embeddings_by_its_name(embedder):
    for kind in ("ollama", "vllm"):
        listed = [*WRITERS_LISTED, embedder]
        assert hint("text-embedding-3-small", kind, listed).endswith(f"=text-embedding-3-small={embedder}")
        assert embedder not in hint("gpt-4o", kind, listed)


def test_without_a_model_for_texts_there_is_one_to_install(settings):
    told = hint("gpt-4o", listed=["nomic-embed-text:latest"])
    assert told.endswith("Install a model for texts and map the name to it, then restart: "
                         "ollama pull gemma3:12b, MODEL_ALIASES=gpt-4o=gemma3:12b")  # fmt: skip
    settings.MODEL_NAME = "nomic-embed-text"
    assert hint("gpt-4o", listed=[]).endswith("ollama pull gemma3:12b, MODEL_ALIASES=gpt-4o=gemma3:12b")


def test_the_endpoint_of_the_lines_tells_what_the_name_does_not():
    told = hint("our vectors", endpoint="/v1/embeddings")
    assert told == "Write a name into the lines that Ollama lists, such as nomic-embed-text:latest."
    told = hint("text-embedding-3-small", endpoint="/v1/chat/completions")
    assert told == "Write a name into the lines that Ollama lists, such as gemma3:12b and llama3.1:8b."
    assert hint("text-embedding-3-small", endpoint="/v1/embeddings").endswith("=nomic-embed-text:latest")
    told = hint("our vectors", listed=["gemma3:12b"], endpoint="/v1/embeddings")
    assert told.endswith(
        "Install a model for embeddings and write the name nomic-embed-text into the lines: "
        "ollama pull nomic-embed-text"
    )


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("ft:gpt-4o-mini:my-org::x1", "MODEL_ALIASES=ft:gpt-4o-mini:my-org::x1=gemma3:12b"),
        ("my model", "MODEL_ALIASES='my model=gemma3:12b'"),
        ("it's", """MODEL_ALIASES='it'"'"'s=gemma3:12b'"""),
    ],
)
def test_a_name_that_ollama_refuses_is_to_be_mapped_too(name, typed):
    assert hint(name).endswith(f": {typed}")


@pytest.mark.parametrize("kind", ["ollama", "vllm", "openai"])
@pytest.mark.parametrize("name", ["a=b", "a,b", "=", "*", " my model", "my model\t", "a\nb", "a\x00b", "gpt-4o,"])
@pytest.mark.parametrize("aliases", [{}, {"other": "x"}])
def test_a_name_that_an_alias_cannot_hold_is_to_be_replaced_in_the_lines(kind, name, aliases, settings):
    settings.MODEL_ALIASES = aliases
    title = backends.kind_named(kind).title
    told = hint(name, kind, ["gemma3:12b", "nomic-embed-text"])
    assert told == f"Write a name into the lines that {title} lists, such as gemma3:12b."
    assert "MODEL_ALIASES" not in hint(name, kind, [])


def test_a_listed_name_that_an_alias_cannot_hold_is_to_be_written_into_the_lines():
    assert hint("gpt-4o", "vllm", ["a,b"]) == "Write a name into the lines that vLLM lists, such as a,b."


@pytest.mark.parametrize("alias", ["gpt-4o", "*"])
def test_what_an_alias_stands_for_is_to_be_replaced_there(alias, settings):
    settings.MODEL_ALIASES = {alias: "claude-3-opus"}
    told = hint("claude-3-opus", listed=["gemma3:12b"])
    assert told.endswith(": put gemma3:12b in place of claude-3-opus in MODEL_ALIASES")


def test_lines_that_wait_are_told_of_no_name_that_ollama_refuses():
    told = hint("my model", lines_wait=True)
    assert told.startswith("Create it again. Or send the lines again.")
    assert "ollama cp" not in told


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
