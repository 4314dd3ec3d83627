"""A model is loaded before its first line is sent."""

from batches.models import Batch, Part, PausedModel
from tests.batches.dispatch.failures import NO_ROOM, UNCHARGED, charges, prepared
from tests.conftest import line
from tests.fake_backend import Action


def test_a_model_is_loaded_before_its_first_line_and_its_lines_stay_together(create, work, backend):
    backend.models = ["gemma3:12b", "other:1b"]
    models = ["gemma3:12b", "gemma3:12b", "other:1b", "gemma3:12b"]
    batch = work.run(create([line(f"id-{n}", body={"model": model}) for n, model in enumerate(models)])["id"])
    assert batch["request_counts"]["completed"] == 4
    assert backend.loads == ["gemma3:12b", "other:1b"]


def test_a_model_that_lines_name_in_several_ways_is_loaded_once(create, work, backend):
    """The server was never seen when the file was read, so the lines keep the names that they have."""
    backend.models = backend.loaded = ["gemma3:12b", "other:1b"]
    names = ["Gemma3:12b", "library/gemma3:12b", "gemma3:12b"]
    batch = create([line(f"id-{n}", body={"model": name}) for n, name in enumerate([*names, "other:1b", *names])])["id"]
    work.validate(batch)
    assert Part.objects.count() == 4
    work.drive()
    assert Batch.objects.get().completed == 7
    loads = [name.lower().removeprefix("library/") for name in backend.loads]
    assert sorted(loads) == ["gemma3:12b", "other:1b"]
    assert len(backend.unloads) == 1


def test_a_model_for_embeddings_is_loaded_by_its_own_way(create, work, backend):
    work.run(create([line("a", url="/v1/embeddings")], endpoint="/v1/embeddings")["id"])
    assert backend.loads == ["gemma3:12b"]
    assert backend.load_paths == ["/api/embed"]


def test_a_model_that_cannot_be_loaded_pauses_before_any_line_is_sent(create, work, backend):
    backend.on_load.extend([NO_ROOM] * 3)
    batch = prepared(create, work, "ab")
    work.drive()
    assert backend.arrived() == []
    assert charges() == UNCHARGED
    reason = PausedModel.objects.get().reason
    assert reason.startswith("Ollama cannot load gemma3:12b (HTTP 500: model requires more system memory")
    assert work.run(batch)["request_counts"]["completed"] == 2


def test_loading_has_a_time_limit_of_its_own(create, work, backend, settings):
    settings.LINE_TIMEOUT_S, settings.MODEL_LOAD_TIMEOUT_S = 0.2, 30
    backend.on_load.append(Action(delay_s=1))
    assert work.run(prepared(create, work, "a"))["request_counts"]["completed"] == 1

    settings.MODEL_LOAD_TIMEOUT_S = 0.3
    backend.on_load.append(Action(delay_s=3))
    prepared(create, work, "b")
    work.drive()
    assert "Restart it: systemctl restart ollama" in PausedModel.objects.get().reason
