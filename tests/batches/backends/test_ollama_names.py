"""Which names are one model: to Ollama by its own rules, to every other server byte by byte."""

import pytest

from batches import backends
from batches.backends import ollama_names

LISTED = ["gemma3:12b", "tiny:latest", "hf.co/user/Repo-GGUF:Q4_K_M", "Someone/mine:latest", "gpt-oss:20b-cloud"]
LISTED += ["localhost:5000/team/own:latest", "_x/a.b-c_d:v1.0"]


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("gemma3:12b", "gemma3:12b"),
        ("Gemma3:12B", "gemma3:12b"),
        (" gemma3:12b\n", "gemma3:12b"),
        ("library/gemma3:12b", "gemma3:12b"),
        ("LIBRARY/gemma3:12b", "gemma3:12b"),
        ("registry.ollama.ai/library/gemma3:12b", "gemma3:12b"),
        ("https://Registry.Ollama.AI/library/gemma3:12b", "gemma3:12b"),
        ("gemma3:12b:local", "gemma3:12b"),
        ("tiny", "tiny:latest"),
        ("tiny:LATEST", "tiny:latest"),
        ("Tiny:local", "tiny:latest"),
        ("hf.co/user/repo-gguf:q4_k_m", "hf.co/user/Repo-GGUF:Q4_K_M"),
        ("someone/Mine", "Someone/mine:latest"),
        ("gpt-oss:20b:cloud", "gpt-oss:20b-cloud"),
        ("GPT-OSS:20b-Cloud", "gpt-oss:20b-cloud"),
        ("localhost:5000/team/own", "localhost:5000/team/own:latest"),
        ("_X/A.B-C_D:V1.0", "_x/a.b-c_d:v1.0"),
        # Other models
        ("gemma3", ""),
        ("gemma3:12b:cloud", ""),
        ("user/gemma3:12b", ""),
        ("hf.co/library/gemma3:12b", ""),
        ("huggingface.co/user/Repo-GGUF:Q4_K_M", ""),
        ("hf.co/user/Repo-GGUF", ""),
        ("gpt-oss:20b", ""),
        ("localhost:5001/team/own", ""),
    ],
)
def test_the_names_of_one_model_to_ollama(name, listed):
    assert backends.listed_name("ollama", LISTED, name) == listed


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", ":", "/", ":12b", "gemma3:", "/gemma3:12b", "library/:12b", "//gemma3:12b", "a/b/c/gemma3:12b"),
        *("gemma3@sha256:ab", "gemma3:12b@x", "gemma 3:12b", "-gemma3:12b", "gemma3:.12b", "gem,ma", "a=b"),
        *("us.er/gemma3", "g\u00e9mma3", "gemma\u212a:12b", "\u017f", "x" * 81, "x:" + "y" * 81),
        *("gemma3:local:cloud", "gemma3:cloud:local", "gemma3:20b-cloud:local"),
    ],
)
def test_what_ollama_refuses_is_the_name_of_no_model(name):
    assert ollama_names.identity(name) == ""
    assert backends.listed_name("ollama", ["gemma3:12b"], name) == ""


def test_the_longest_names_that_ollama_takes():
    assert ollama_names.identity("x" * 80) == f"registry.ollama.ai/library/{'x' * 80}:latest"
    assert ollama_names.identity(f"{'h' * 350}/{'n' * 80}/{'m' * 80}:{'t' * 80}") != ""


@pytest.mark.parametrize("kind", ["vllm", "llama-server", "openai"])
def test_another_server_has_a_model_under_its_own_name_alone(kind):
    listed = ["Qwen/Qwen3-8B", "tiny:latest"]
    names = {"Qwen/Qwen3-8B": "Qwen/Qwen3-8B", "qwen/qwen3-8b": "", "tiny": "", "Tiny:latest": "", "": ""}
    assert {name: backends.listed_name(kind, listed, name) for name in names} == names
