"""The names of derived models: they say what they are and whose, and none is taken for a user's model."""

import pytest

from batches.backends import kind_named, ollama_derived, ollama_names

MARK = "3f9a2c"


@pytest.mark.parametrize(
    ("origin", "derived"),
    [
        ("gemma3:12b", "obs-ctx-16384/gemma3:12b-obs3f9a2c"),
        ("smollm2:latest", "obs-ctx-16384/smollm2:latest-obs3f9a2c"),
        ("library/gemma3:12b", "obs-ctx-16384/gemma3:12b-obs3f9a2c"),
        ("mannix/llama3.1:8b-q4", "obs-ctx-16384-mannix/llama3.1:8b-q4-obs3f9a2c"),
        ("hf.co/unsloth/Gemma-3-GGUF:Q4_K_M", "hf.co/obs-ctx-16384-unsloth/Gemma-3-GGUF:Q4_K_M-obs3f9a2c"),
        ("hf.co/library/x:1", "hf.co/obs-ctx-16384-library/x:1-obs3f9a2c"),
        ("localhost:5000/a-b/c:d", "localhost:5000/obs-ctx-16384-a-b/c:d-obs3f9a2c"),
    ],
)
def test_a_derived_name_leads_back_to_its_origin(origin, derived):
    assert ollama_derived.name(origin, 16384, MARK) == derived
    read = ollama_derived.read(derived)
    assert (read.tokens, read.mark) == (16384, MARK)
    assert ollama_names.identity(read.origin) == ollama_names.identity(origin)


def test_a_name_without_a_tag_has_the_default_one():
    assert ollama_derived.name("smollm2", 2048, MARK) == "obs-ctx-2048/smollm2:latest-obs3f9a2c"


@pytest.mark.parametrize(
    "name",
    ["", "gemma 3", "gemma3:" + "x" * 75, "n" * 70 + "/m:t", "obs-ctx-16384/gemma3:12b-obs3f9a2c"],
    ids=["empty", "refused", "long tag", "long namespace", "derived already"],
)
def test_what_ollama_could_not_name_is_not_derived(name):
    assert ollama_derived.name(name, 16384, MARK) == ""


@pytest.mark.parametrize(
    "name",
    [
        "gemma3:12b",
        "obs-ctx-16384/gemma3:12b",  # a person's own, without a mark
        "obs-ctx-16384/gemma3:12b-obs3f9a2",
        "obs-ctx-16384/gemma3:12b-obs3F9A2C",
        "obs-ctx-many/gemma3:12b-obs3f9a2c",
        "my/obs-ctx-16384:12b-obs3f9a2c",
        "x-obs-ctx-16384/gemma3:12b-obs3f9a2c",
    ],
)
def test_a_users_model_is_never_taken_for_a_derived_one(name):
    assert ollama_derived.read(name) is None


class Server:
    """Answers the questions of `make`."""

    def __init__(self, show):
        self.show, self.asked = show, []

    def __call__(self, path, body):
        self.asked.append((path, body))
        return self.show if path == "/api/show" else (200, {"status": "success"})


def test_a_model_is_derived_from_its_origin_with_another_context_alone():
    server = Server((200, {"capabilities": ["completion"]}))
    assert ollama_derived.make(server, "obs-ctx-16384/gemma3:12b-obs3f9a2c")
    assert server.asked[1] == (
        "/api/create",
        {
            "model": "obs-ctx-16384/gemma3:12b-obs3f9a2c",
            "from": "gemma3:12b",
            "parameters": {"num_ctx": 16384},
            "stream": False,
        },
    )


@pytest.mark.parametrize(
    "show", [(404, {"error": "model 'gemma3:12b' not found"}), (200, {"remote_host": "https://ollama.com:443"})]
)
def test_nothing_is_derived_from_a_model_that_is_missing_or_runs_elsewhere(show):
    """From a model that is missing, Ollama would pull it first."""
    server = Server(show)
    assert not ollama_derived.make(server, "obs-ctx-16384/gemma3:12b-obs3f9a2c")
    assert [path for path, _ in server.asked] == ["/api/show"]


def test_no_derived_model_is_listed_nor_advised():
    names = ["gemma3:12b", "obs-ctx-16384/gemma3:12b-obs3f9a2c", "hf.co/obs-ctx-8192-a/b:c-obsffffff"]
    answers = {
        "/api/version": {"version": "0.33.0"},
        "/v1/models": {"data": [{"id": name} for name in names]},
        "/api/ps": {"models": [{"name": names[1]}]},
    }
    kind = kind_named("ollama")
    state = kind.recognise(lambda path: (200, answers[path]))
    assert (state.names, state.derived, state.loaded) == (names[:1], names[1:], names[1:2])
    assert [each.id for each in kind.models(lambda path: (200, answers[path]))] == names[:1]
    assert kind.install_command(names[1]) == ""
