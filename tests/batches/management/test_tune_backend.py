"""`manage.py tune_backend`: what it finds out, what it advises, and what it leaves behind."""

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from batches.backends.ollama import Ollama
from batches.backends.speed import Speed
from batches.management.tuning import Found, Tuner, contexts_to_try, steps, without_file
from batches.models import Hold
from tests.conftest import line
from tests.fake_backend import COUNTING, MODEL, Action, error_body


def found(slots, context, fits, tokens_per_s, *, is_full=True, spilled=None):
    """`tokens_per_s`: by the number of calls."""
    speeds = [Speed(calls, tokens, 1.0, 1) for calls, tokens in tokens_per_s.items()]
    now = Speed(slots, spilled, 1.0, 1) if spilled else None
    return Found(slots, context, fits, is_full, speeds, now)


@pytest.mark.parametrize(
    ("what", "slots", "context", "gain"),
    [
        # Each slot pays, and more fit.
        (found(2, 8192, 65_536, {1: 30, 2: 55}), 8, 8192, 1.0),
        # The second slot does not pay.
        (found(2, 8192, 65_536, {1: 30, 2: 24}), 1, 8192, 1.25),
        (found(4, 8192, 65_536, {1: 30, 2: 58, 4: 59}), 2, 8192, 58 / 59),
        # Four do not fit, two do: those of now are slow.
        (found(4, 8192, 16_384, {1: 30, 2: 50, 4: 70}, spilled=10), 2, 8192, 5.0),
        # Not even one slot fits.
        (found(1, 32_768, 16_384, {1: 30}, spilled=5), 1, 16_384, 6.0),
        # Without a GPU nothing is known of the room.
        (found(2, 8192, None, {1: 30, 2: 55}, is_full=False), 2, 8192, 1.0),
        (found(2, 2048, 2048 * 64, {1: 30, 2: 55}, is_full=False), 16, 2048, 1.0),
    ],
)
def test_the_advice_follows_from_what_fits_and_what_pays(what, slots, context, gain):
    assert (what.best_slots, what.best_context) == (slots, context)
    assert what.gain == pytest.approx(gain)


def test_what_is_tried_and_measured():
    assert contexts_to_try(8192, 1, 131_072) == [8192, 16_384, 32_768, 65_536, 131_072]
    assert contexts_to_try(8192, 4, 131_072) == [8192, 16_384, 32_768]
    assert contexts_to_try(8192, 1, 8192) == [8192]
    assert contexts_to_try(2048, 32, 8192) == [2048]
    assert [steps(slots) for slots in (1, 2, 4, 6)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 6]]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [line(f"id-{number}", body={"max_tokens": 6000}) for number in range(3)]
    path.write_text("".join(json.dumps(each) + "\n" for each in [*lines, line("other", body={"model": "other:1b"})]))
    return path


def tuned(*args, **options):
    out = StringIO()
    call_command("tune_backend", *args, stdout=out, seconds=0.3, **options)
    return out.getvalue()


@pytest.mark.slow
def test_it_finds_what_fits_measures_and_prints_lines_for_the_environment(file, backend, db):
    backend.slots, backend.on_gpu_up_to = 2, 16_384
    told = tuned(file)
    assert f"{MODEL}: 3 lines of {file}; the longest may need about 6,003 tokens" in told
    assert "It has 2 slots, and a context of 4,096 each as it is." in told
    assert "With 32,768 tokens in all slots, 100 % of it is on the GPU." in told
    assert "With 65,536 tokens in all slots, 90 % of it is on the GPU." in told
    assert "1 at once, with a context of 8,192: " in told
    assert "2 at once, with a context of 8,192: " in told
    assert 'Environment="OLLAMA_NUM_PARALLEL=' in told
    assert 'Environment="OLLAMA_CONTEXT_LENGTH=8192"' in told
    assert 'Environment="OLLAMA_KV_CACHE_TYPE=q8_0"' in told
    assert "Gain, as far as it can be measured before a restart: " in told
    asked = {seen.key for seen in backend.seen if seen.key != COUNTING}
    assert asked <= {"id-0", "id-1", "id-2"}
    assert backend.derived == {}
    assert not Hold.objects.exists()  # batches go on


@pytest.mark.parametrize("own", [2048, 4096, 32_768])
def test_the_context_that_the_model_has_as_it_is_needs_no_derived_model(backend, own):
    backend.context = own
    tuner = Tuner(Ollama(), without_file(MODEL), mark="0" * 6, look=lambda: None)
    try:
        assert tuner.load(0)[0] == MODEL
        name, state = tuner.load(own)
        assert (name, state.context_tokens) == (MODEL, own)
        assert tuner.load(2 * own)[1].context_tokens == 2 * own
        assert tuner.load(own)[1].context_tokens == own  # loaded again, since another context was in between
        assert list(backend.derived.values()) == [2 * own]
    finally:
        tuner.close()


@pytest.mark.slow
def test_a_context_that_does_not_fit_is_measured_as_it_is_and_as_it_could_be(file, backend, db):
    backend.slots, backend.on_gpu_up_to = 2, 4096
    told = tuned(file)
    assert "2 slots of 8,192 do not fit. So fast they are all the same:" in told
    assert "2 at once, with a context of 8,192: " in told
    assert "2 at once, with a context of 4,096: " in told
    assert 'Environment="OLLAMA_NUM_PARALLEL=1"' in told
    assert 'Environment="OLLAMA_CONTEXT_LENGTH=8192"' in told
    assert backend.derived == {}


@pytest.mark.slow
def test_without_a_file_short_chats_are_measured(backend, db, settings):
    backend.sizes = (8_000_000_000, 0)
    told = tuned()
    assert "on the GPU" not in told
    assert 'Environment="OLLAMA_CONTEXT_LENGTH=4096"' in told
    assert "FLASH" not in told


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ("", {}, "holds no lines"),
        ("{", {}, "holds no lines"),
        (json.dumps(line("a", url="/v1/embeddings")), {}, "computes embeddings one at a time"),
        (json.dumps(line("a")) + "\n{}", {}, "line 2: "),
        (json.dumps(line("a")), {"model": "other:1b"}, "has no line for other:1b"),
        (json.dumps(line("a", body={"model": "gone:1b"})), {}, "ollama pull gone:1b"),
    ],
)
def test_what_cannot_be_tuned_is_told_before_anything_is_loaded(tmp_path, backend, db, content, options, reason):
    path = tmp_path / "in.jsonl"
    path.write_text(content)
    with pytest.raises(CommandError, match=reason):
        tuned(path, **options)
    assert backend.loads == []


def test_a_file_that_is_not_there_and_a_time_that_is_none_are_told(tmp_path, backend, db):
    with pytest.raises(CommandError, match="FileNotFoundError"):
        tuned(tmp_path / "none.jsonl")
    with pytest.raises(CommandError, match="--seconds has to be above 0"):
        call_command("tune_backend", seconds=0.0)


@pytest.mark.slow
def test_a_failure_leaves_no_model_behind(file, backend, db):
    for name in ("id-0", "id-1", "id-2"):
        backend.always(name, Action(500, error_body("no")))
    with pytest.raises(CommandError, match="No token came back"):
        tuned(file)
    assert backend.derived == {}
