"""Answer once: a request with one answer alone that stands several times in a batch is sent once."""

import json
import random
import re
from datetime import timedelta

import pytest
from django.utils import timezone

from batches import leases, lifecycle, registry, results, reuse, validation
from batches.dispatch import dispatcher
from batches.models import Answer, Batch, Line, LineState, Part, Status
from tests.conftest import CHAT, custom_ids, line
from tests.fake_backend import Action, error_body

EMBEDDINGS = "/v1/embeddings"


def same(custom_id, text, *, url=CHAT, **more):
    """A line that asks for `text` and has one answer alone."""
    prompt = {"messages": [{"role": "user", "content": text}]} if url == CHAT else {"input": text}
    return line(custom_id, url=url, body=prompt | {"temperature": 0} | more)


def counts(work, batch_id):
    return work.batch(batch_id)["request_counts"]


def tokens(results):
    """What the usage of all answers of a file adds up to."""
    usages = [each["response"]["body"]["usage"] for each in results]
    return sum(usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0) for usage in usages)


def test_it_is_asked_once_and_answered_everywhere(create, work, backend):
    lines = [same("a", "x"), line("b"), same("c", "x"), same("d", "y"), same("e", "x")]
    batch = work.run(create(lines)["id"])

    assert sorted(backend.arrived()) == ["b", "x", "y"]
    assert batch["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    results = work.content(batch["output_file_id"])
    assert custom_ids(results) == list("abcde")
    bodies = {each["custom_id"]: each["response"]["body"] for each in results}
    for name in "ace":
        assert bodies[name]["choices"][0]["message"]["content"] == "answer to x"
    original = Line.objects.get(custom_id="a")
    states = Line.objects.order_by("number").values_list("custom_id", "state", "original")
    assert [row for row in states if row[2]] == [
        ("c", LineState.REPEATED, original.pk),
        ("e", LineState.REPEATED, original.pk),
    ]


def test_a_copy_has_ids_of_its_own_and_cost_nothing(create, work, backend):
    batch = work.run(create([same(name, "x") for name in "abc"])["id"])
    first, *copies = work.content(batch["output_file_id"])

    assert first["response"]["body"]["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    for copy in copies:
        assert copy["response"]["body"]["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        assert copy["response"]["body"]["id"].startswith("chatcmpl-")
    for path in (("id",), ("response", "request_id"), ("response", "body", "id")):
        found = [first, *copies]
        for name in path:
            found = [each[name] for each in found]
        assert len(set(found)) == 3
    assert batch["usage"]["total_tokens"] == tokens([first, *copies]) == 10


def test_the_counts_move_as_soon_as_the_original_is_answered(create, work, backend):
    backend.always("bad", Action(400, error_body("no")))
    lines = [same("a", "x"), same("b", "x"), same("c", "bad"), same("d", "bad"), same("e", "bad")]
    batch = create(lines)["id"]
    work.validate(batch)
    assert work.drive() == [batch]
    assert Batch.objects.get().status == Status.FINALIZING
    assert counts(work, batch) == {"total": 5, "completed": 2, "failed": 3}
    work.finalize(batch)
    assert counts(work, batch) == {"total": 5, "completed": 2, "failed": 3}


def test_what_is_sampled_is_asked_each_time(create, work, backend):
    lines = [line(name, body={"messages": [{"role": "user", "content": "x"}]}) for name in "ab"]
    work.run(create(lines)["id"])
    assert backend.arrived() == ["x", "x"]


@pytest.mark.parametrize(
    "other",
    [same("b", "x", max_tokens=9), same("b", "x", seed=1), line("b", body={"messages": [], "temperature": 0})],
    ids=["limit", "seed", "messages"],
)
def test_what_differs_is_no_repeat(create, work, other):
    work.validate(create([same("a", "x"), other])["id"])
    assert not Line.objects.filter(state=LineState.REPEATED).exists()


def test_a_repeat_is_what_the_same_model_is_asked_by_any_name(create, work, settings):
    settings.MODEL_ALIASES = {"alias": "gemma3:12b"}
    names = ["gemma3:12b", "qwen3:8b", "alias", "alias"]
    work.validate(create([same(str(number), "x", model=name) for number, name in enumerate(names)])["id"])
    repeats = Line.objects.filter(state=LineState.REPEATED).order_by("number")
    assert list(repeats.values_list("custom_id", "original__custom_id")) == [
        ("2", "0"),
        ("3", "0"),
    ]  # the same model, by another name


def test_repeats_are_found_across_groups_and_slices(create, work, backend, monkeypatch):
    monkeypatch.setattr(validation, "SLICE_S", -1.0)
    monkeypatch.setattr(validation, "LEAST_GROUP_LINES", 3)
    lines = [same(f"id-{number}", f"text {number % 4}") for number in range(20)]
    batch = work.run(create(lines)["id"])
    assert sorted(backend.arrived()) == [f"text {number}" for number in range(4)]
    found = {each["custom_id"]: each for each in work.content(batch["output_file_id"])}
    assert list(found) == [f"id-{number}" for number in range(20)]
    for number in range(20):
        text = found[f"id-{number}"]["response"]["body"]["choices"][0]["message"]["content"]
        assert text == f"answer to text {number % 4}"


def test_a_duplicate_among_repeats_is_refused_all_the_same(create, work, monkeypatch):
    monkeypatch.setattr(validation, "LEAST_GROUP_LINES", 2)
    batch = create([same("a", "x"), same("b", "x"), same("c", "x"), same("a", "x"), same("b", "y")])["id"]
    work.validate(batch)
    listed = work.batch(batch)["errors"]["data"]
    assert [(error["line"], error["code"]) for error in listed] == [
        (4, "duplicate_custom_id"),
        (5, "duplicate_custom_id"),
    ]


def test_embeddings_are_asked_once_always(create, work, backend):
    lines = [line(name, url=EMBEDDINGS, body={"input": "x"}) for name in "ab"]
    batch = work.run(create(lines, endpoint=EMBEDDINGS)["id"])
    assert backend.arrived() == ["x"]
    first, copy = work.content(batch["output_file_id"])
    assert copy["response"]["body"]["data"] == first["response"]["body"]["data"]
    assert batch["usage"]["total_tokens"] == tokens([first, copy]) == 7


def test_a_failure_is_everybodys(create, work, backend):
    refusal = error_body("bad temperature", "invalid_request_error")
    backend.always("x", Action(400, refusal))
    batch = work.run(create([same("a", "x"), same("b", "x"), line("c")])["id"])
    assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    errors = work.content(batch["error_file_id"])
    assert custom_ids(errors) == ["a", "b"]
    assert [each["response"]["body"] for each in errors] == [refusal, refusal]


def test_a_missing_model_fails_repeats_with_the_lines_that_wait(create, work, backend, settings):
    settings.MODEL_MISSING_PATIENCE_S = 0
    missing = Action(404, error_body("model 'gone' not found"))
    lines = [same(f"{text}{number}", text, model="gone") for text in "xyz" for number in range(3)]
    for text in "xyz":
        backend.always(text, missing)
    batch = create(lines)["id"]
    work.validate(batch)
    work.drive()
    work.fail_lines(batch)
    assert len(backend.arrived()) < 4
    assert counts(work, batch) == {"total": 9, "completed": 0, "failed": 9}
    work.finalize(batch)
    assert counts(work, batch) == {"total": 9, "completed": 0, "failed": 9}
    assert len(work.content(work.batch(batch)["error_file_id"])) == 9


def half_done(create, work, backend):
    """A batch in which `a` is answered, with its repeat, and `x` and its repeats are not."""
    batch = create([same("a", "a"), same("x", "x"), same("x2", "x"), same("a2", "a"), same("x3", "x")])["id"]
    work.validate(batch)
    backend.on("x", Action(503))
    work.drive()
    assert counts(work, batch) == {"total": 5, "completed": 2, "failed": 0}
    counted = Batch.objects.get()
    assert (counted.repeated, counted.repeated_finished, counted.lines_to_send) == (3, 1, 1)
    return batch


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (lambda batch: lifecycle.cancel(batch), "cancelled", "batch_cancelled"),
        (lambda batch: lifecycle.move(batch, Status.FINALIZING), "expired", "batch_expired"),
    ],
    ids=["cancelled", "expired"],
)
def test_repeats_end_as_their_originals_do(create, work, backend, end, status, code):
    batch = half_done(create, work, backend)
    end(batch)
    work.finalize(batch)
    seen = work.batch(batch)
    assert (seen["status"], seen["request_counts"]) == (status, {"total": 5, "completed": 2, "failed": 0})
    assert custom_ids(work.content(seen["output_file_id"])) == ["a", "a2"]
    errors = work.content(seen["error_file_id"])
    assert [(each["custom_id"], each["error"]["code"]) for each in errors] == [
        ("x", code),
        ("x2", code),
        ("x3", code),
    ]


@pytest.mark.parametrize("seed", range(6))
def test_every_custom_id_is_once_in_the_files_whatever_happens(create, work, backend, monkeypatch, seed):
    draw = random.Random(seed)
    monkeypatch.setattr(validation, "LEAST_GROUP_LINES", draw.randint(1, 8))
    monkeypatch.setattr(results, "PAGE", draw.randint(1, 8))
    texts = [f"text {number}" for number in range(8)]
    lines = [same(f"id-{number}", draw.choice(texts)) for number in range(30)]
    for text in texts[:3]:
        backend.always(text, Action(*draw.choice([(400, error_body("no")), (200, None)])))
    batch = create(lines)["id"]
    work.validate(batch)
    if draw.random() < 0.7:
        work.drive(should_stop=lambda: draw.random() < 0.3)
    assert Batch.objects.get().lines_to_send == Line.objects.open().count()
    if Batch.objects.get().status == Status.IN_PROGRESS:
        draw.choice([lifecycle.cancel, lambda id_: lifecycle.move(id_, Status.FINALIZING)])(batch)
    work.finalize(batch)
    seen = work.batch(batch)
    good, bad = work.content(seen["output_file_id"]), work.content(seen["error_file_id"])
    assert sorted(custom_ids(good) + custom_ids(bad)) == sorted(each["custom_id"] for each in lines)
    assert seen["request_counts"]["completed"] == len(good)
    assert seen["request_counts"]["failed"] == sum(each["response"] is not None for each in bad)
    assert seen["usage"]["total_tokens"] == tokens(good)
    asked = backend.arrived()
    assert len(asked) == len(set(asked))


def test_two_finalizers_write_the_same(create, work, backend, settings):
    batch = create([same(name, "x") for name in "abc"])["id"]
    work.validate(batch)
    work.drive()
    rows = list(Line.objects.order_by("number"))

    def written():
        with leases.Keeper("finalize") as keeper:
            finalizer = results._Finalizer(Batch.objects.get(), keeper, breathe=lambda: None)
            return [results.result_line(batch, *row[:8]) for page in finalizer._pages() for row in page]

    assert len(written()) == len(rows)
    assert written() == written()


def test_a_copy_of_a_response_has_items_of_its_own_too():
    item = {"type": "message", "id": "msg_1", "content": []}
    usage = {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 3}, "output_tokens": 2}
    body = {"id": "resp_1", "output": [item, {"type": "reasoning"}, "odd"], "usage": usage, "score": 0.1}
    copy = json.loads(reuse.copied(json.dumps(body), "batch_x", 2))
    assert copy["id"].startswith("resp_")
    assert copy["output"][0]["id"].startswith("msg_")
    assert {copy["id"], copy["output"][0]["id"]}.isdisjoint({"resp_1", "msg_1"})
    assert copy["output"][1:] == [{"type": "reasoning"}, "odd"]
    assert copy["usage"] == {"input_tokens": 0, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 0}
    assert copy["score"] == 0.1
    assert reuse.copied(json.dumps(body), "batch_x", 2) == json.dumps(copy, separators=(",", ":"))


@pytest.mark.parametrize("response", ['{"error":{"message":"no"}}', '{"id":5,"usage":null}', '{"usage":"none"}'])
def test_a_copy_of_anything_else_says_the_same(response):
    assert json.loads(reuse.copied(response, "batch_x", 1)) == json.loads(response)


@pytest.mark.parametrize("response", ["[1]", '"x"', "{", '{"a":"ä"}', '{"a":' * 300 + "1" + "}" * 300, '{"a":NaN}'])
def test_what_no_drive_stores_is_not_copied(response):
    with pytest.raises(ValueError, match=r"\w"):
        reuse.copied(response, "batch_x", 1)


def test_the_metrics_count_what_was_not_sent(create, work, api, backend):
    def told():
        page = api.get("/metrics").content.decode()
        counted = re.findall(r"^ollama_batch_server_lines_repeated_total\{.*\} (\S+)$", page, re.MULTILINE)
        return sum(map(float, counted))

    work.validate(create([same(name, "x") for name in "abc"] + [same("d", "x", model="gone")])["id"])
    stopped = create([same(name, "x") for name in "abc"])["id"]
    work.validate(stopped)
    lifecycle.cancel(stopped)
    assert told() == 0.0  # nothing was answered yet
    work.drive()
    assert told() == 2.0


def test_a_batch_that_fails_has_no_repeats(create, work):
    work.validate(create([same("a", "x"), same("b", "x"), same("a", "x")])["id"])
    assert Batch.objects.values_list("status", "total", "repeated").get() == ("failed", 0, 0)


def test_the_admin_shows_what_a_line_repeats(create, work, admin_client):
    work.validate(create([same(name, "x") for name in "ab"])["id"])
    original, repeat = Line.objects.order_by("number")
    page = admin_client.get(f"/admin/batches/line/{repeat.pk}/change/").content.decode()
    assert "Repeated" in page
    assert f'href="/admin/batches/line/{original.pk}/change/"' in page
    assert "Line 1" in page
    page = admin_client.get(f"/admin/batches/line/{original.pk}/change/")
    assert page.status_code == 200


# Across batches


def test_another_batch_asks_again_unless_it_is_told_not_to(create, work, backend):
    for _ in range(2):
        work.run(create([same("a", "x")])["id"])
    assert backend.arrived() == ["x", "x"]
    assert not Answer.objects.exists()


def test_another_batch_is_answered_with_what_is_known(create, work, backend, settings):
    settings.ANSWER_ONCE_ACROSS_BATCHES = True
    first = work.run(create([same("a", "x"), line("b")])["id"])
    batch = work.run(create([same("c", "x"), same("d", "x"), same("e", "y")])["id"])

    assert sorted(backend.arrived()) == ["b", "x", "y"]
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    known, copy, asked = work.content(batch["output_file_id"])
    original = work.content(first["output_file_id"])[0]
    assert known["response"]["body"]["choices"] == original["response"]["body"]["choices"]
    assert len({each["response"]["body"]["id"] for each in (original, known, copy, asked)}) == 4
    assert batch["usage"]["total_tokens"] == tokens([known, copy, asked]) == 10
    assert Answer.objects.count() == 2


def test_a_failure_is_not_remembered(create, work, backend, settings):
    settings.ANSWER_ONCE_ACROSS_BATCHES = True
    backend.on("x", Action(400, error_body("no")))
    work.run(create([same("a", "x")])["id"])
    batch = work.run(create([same("a", "x")])["id"])
    assert batch["request_counts"]["completed"] == 1


def test_an_answer_is_forgotten_after_a_while(create, work, backend, settings):
    settings.ANSWER_ONCE_ACROSS_BATCHES = True
    work.run(create([same("a", "x"), same("b", "y")])["id"])
    old, young = Answer.objects.all()
    Answer.objects.filter(pk=old.pk).update(created_at=timezone.now() - reuse.KEPT_FOR - timedelta(seconds=1))
    work.run(create([same("a", "x"), same("b", "y")])["id"])
    assert len(backend.arrived()) == 3  # though the old one is still there
    reuse.forget_old()
    assert list(Answer.objects.values_list("pk", flat=True)) == [young.pk]


def test_a_drive_that_knows_all_answers_sends_nothing(create, work, backend, settings):
    settings.ANSWER_ONCE_ACROSS_BATCHES = True
    work.run(create([same("a", "x")])["id"])
    backend.seen.clear()
    batch = create([same("a", "x")])["id"]
    work.validate(batch)
    closed = []
    dispatcher.Dispatcher(registry.report_backend(), should_stop=lambda: False, wake_control=closed.append).run()
    assert (closed, backend.seen) == ([batch], [])
    assert Part.objects.filter(batch=batch).count() == 1
