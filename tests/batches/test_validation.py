"""From `validating` to `in_progress` or `failed`."""

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from batches import leases, lifecycle, validation
from batches.lifecycle import Outcome
from batches.lines import fingerprint, prompt
from batches.models import Backend, Batch, Lease, Line, Part, Status
from files_api.models import File, FileHold
from tests.conftest import CHAT, jsonl, line


def errors(batch):
    assert batch["status"] == "failed"
    assert batch["errors"]["object"] == "list"
    return [(error["line"], error["code"], error["param"]) for error in batch["errors"]["data"]]


def test_it_makes_a_row_of_each_line(create, work):
    batch = create([line("a"), line("b", body={"model": "qwen3:8b"})])
    work.validate(batch["id"])

    seen = work.batch(batch["id"])
    assert seen["status"] == "in_progress"
    assert seen["request_counts"] == {"total": 2, "completed": 0, "failed": 0}
    assert seen["model"] is None  # lines name several
    assert seen["in_progress_at"] is not None
    rows = Line.objects.order_by("number").values_list("number", "custom_id", "part__model", "state")
    assert list(rows) == [(1, "a", "gemma3:12b", 0), (2, "b", "qwen3:8b", 0)]
    assert not Lease.objects.exists()


def test_the_one_model_of_all_lines_becomes_the_batchs(create, work):
    batch = create([line("a"), line("b")])
    work.validate(batch["id"])
    assert work.batch(batch["id"])["model"] == "gemma3:12b"


def test_an_alias_is_resolved(create, work, settings):
    settings.MODEL_ALIASES = {"gpt-4o-mini": "gemma3:12b"}
    batch = create([line("a", body={"model": "gpt-4o-mini"})])
    work.validate(batch["id"])
    assert Line.objects.get().model == "gemma3:12b"


def test_every_bad_line_is_named_and_nothing_is_sent(create, work, backend):
    content = jsonl([line("a"), line("b", method="GET")]) + b"{broken\n" + jsonl([line("a"), line("c")]) + b"\xff\n"
    batch = create(content)

    seen = work.run(batch["id"])

    assert errors(seen) == [
        (2, "invalid_method", "method"),
        (3, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (6, "invalid_json_line", None),
    ]
    assert seen["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert (seen["failed_at"] is not None, seen["output_file_id"], seen["error_file_id"]) == (True, None, None)
    assert backend.seen == []
    assert not Line.objects.exists()
    assert not FileHold.objects.exists()


def test_a_hundred_bad_lines_are_listed_and_the_rest_counted(create, work):
    batch = create(b"{}\n" * 250)
    work.validate(batch["id"])
    listed = work.batch(batch["id"])["errors"]["data"]
    assert [error["line"] for error in listed] == [*range(1, 101), None]
    assert listed[-1]["message"] == "150 more lines are invalid and not listed."


def test_a_duplicate_far_away_is_found(create, work):
    lines = [line(f"id-{n}") for n in range(validation.LEAST_GROUP_LINES + 5)]
    batch = create([*lines, line("id-3")])
    work.validate(batch["id"])
    assert errors(work.batch(batch["id"])) == [(validation.LEAST_GROUP_LINES + 6, "duplicate_custom_id", "custom_id")]


def test_the_more_lines_a_batch_has_the_more_are_stored_at_once():
    least, most = validation.LEAST_GROUP_LINES, validation.MOST_GROUP_LINES
    groups = [validation._group_lines(stored) for stored in (0, 100_000, 200_000, 300_000, 10**6)]
    assert groups == [least, least, 10_000, 15_000, most]


@pytest.mark.parametrize("content", [b'""\n', b'"\xc3\xa4"'])
def test_a_file_of_no_request_fails(create, work, content):
    batch = create(content)
    work.validate(batch["id"])
    assert [code for _, code, _ in errors(work.batch(batch["id"]))] == ["invalid_json_line"]


def test_an_unknown_input_file_fails_the_batch(api, work):
    body = {"input_file_id": "file-nope", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = api.post("/v1/batches", body, format="json").json()
    work.validate(batch["id"])
    assert errors(work.batch(batch["id"])) == [(None, "invalid_request", "file_id")]


def test_a_file_with_another_purpose_fails_the_batch(api, upload, work):
    file = upload([line("a")], purpose="user_data")
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = api.post("/v1/batches", body, format="json").json()
    work.validate(batch["id"])
    seen = work.batch(batch["id"])
    assert errors(seen) == [(None, "invalid_request", "file_id")]
    assert "purpose" in seen["errors"]["data"][0]["message"]


def test_an_input_file_deleted_after_creation_does_no_harm(api, create, work, backend):
    batch = create([line("a")])
    api.delete(f"/v1/files/{batch['input_file_id']}")
    seen = work.run(batch["id"])
    assert (seen["status"], seen["request_counts"]["completed"]) == ("completed", 1)


def test_more_lines_than_allowed_fail_the_batch(create, work, settings):
    settings.MAX_BATCH_LINES = 2
    batch = create([line(each) for each in "abc"])
    work.validate(batch["id"])
    assert errors(work.batch(batch["id"])) == [(None, "too_many_lines", None)]


def test_an_over_long_line_fails_the_batch(create, work, settings):
    settings.MAX_LINE_BYTES = 1024
    batch = create([line("a"), line("b", body={"padding": "x" * 2000}), line("c")])
    work.validate(batch["id"])
    assert errors(work.batch(batch["id"])) == [(2, "line_too_long", None)]


def test_no_model_at_all_fails_the_batch(create, work, settings):
    settings.MODEL_NAME = ""
    batch = create([line("a", body={"model": None})])
    work.validate(batch["id"])
    assert errors(work.batch(batch["id"])) == [(1, "invalid_request", "body.model")]


def known_backend(*, seen_at, kind="ollama"):
    Backend.objects.create(
        name="b", url="http://b", kind=kind, listed=[{"id": "gemma3:12b"}, {"id": "tiny:latest"}], seen_at=seen_at
    )


def test_a_model_that_a_live_backend_lacks_fails_the_batch_with_what_to_type(create, work):
    known_backend(seen_at=timezone.now())
    batch = create([line("a"), line("b", body={"model": "tiny"}), line("c", body={"model": "qwen3:8b"})])
    work.validate(batch["id"])
    seen = work.batch(batch["id"])
    assert errors(seen) == [(3, "model_not_found", "body.model")]
    assert "ollama pull qwen3:8b" in seen["errors"]["data"][0]["message"]


@pytest.mark.parametrize(
    ("kind", "aliases", "name", "told"),
    [
        ("ollama", {}, "gpt-4o-mini", ": MODEL_ALIASES=gpt-4o-mini=gemma3:12b"),
        (
            "ollama",
            {"o1": "qwen3:8b"},
            "o1",
            "MODEL_ALIASES maps it to qwen3:8b, which is not there. Install it: ollama",
        ),
        ("vllm", {}, "gemma-3-12b", "such as gemma3:12b and tiny:latest, or map"),
    ],
)
def test_it_says_of_any_name_what_can_be_done(create, work, settings, kind, aliases, name, told):
    settings.MODEL_ALIASES = aliases
    known_backend(seen_at=timezone.now(), kind=kind)
    batch = create([line("a", body={"model": name})])
    work.validate(batch["id"])
    [error] = work.batch(batch["id"])["errors"]["data"]
    assert f"'{name}' is not supported" in error["message"]
    assert told in error["message"]


NAMES_OF_ONE = ["gemma3:12b", "Gemma3:12B", "library/gemma3:12b", "registry.ollama.ai/library/gemma3:12b", "gpt-4o"]


@pytest.mark.parametrize("fresh", [True, False])
def test_all_names_of_one_model_are_one_part_under_the_listed_name(create, work, settings, fresh):
    settings.MODEL_ALIASES = {"gpt-4o": "Library/Gemma3:12b"}
    known_backend(seen_at=timezone.now() - Backend.FRESH * (0 if fresh else 2))
    names = [*NAMES_OF_ONE, "TINY", "tiny:latest"]
    batch = create([line(f"id-{number}", body={"model": name}) for number, name in enumerate(names)])
    work.validate(batch["id"])
    assert work.batch(batch["id"])["status"] == "in_progress"
    parts = Batch.objects.get().parts.order_by("model")
    assert [(part.model, part.lines.count()) for part in parts] == [("gemma3:12b", 5), ("tiny:latest", 2)]


def test_a_batch_that_names_its_model_in_several_ways_has_one_model(create, work):
    known_backend(seen_at=timezone.now())
    batch = create([line("a", body={"model": "Tiny"}), line("b", body={"model": "tiny:LATEST"})])
    work.validate(batch["id"])
    assert work.batch(batch["id"])["model"] == "tiny:latest"


def test_another_server_takes_names_as_they_are(create, work):
    known_backend(seen_at=timezone.now(), kind="vllm")
    batch = create([line("a", body={"model": "gemma3:12b"}), line("b", body={"model": "Gemma3:12b"})])
    work.validate(batch["id"])
    assert errors(work.batch(batch["id"])) == [(2, "model_not_found", "body.model")]


def test_an_old_list_of_models_refuses_nobody(create, work):
    known_backend(seen_at=timezone.now() - Backend.FRESH * 2)
    batch = create([line("a", body={"model": "qwen3:8b"})])
    work.validate(batch["id"])
    assert work.batch(batch["id"])["status"] == "in_progress"


def test_it_goes_on_where_a_slice_stopped(create, work, monkeypatch):
    monkeypatch.setattr(validation, "SLICE_S", -1.0)
    monkeypatch.setattr(validation, "LEAST_GROUP_LINES", 2)
    batch = create([line(each) for each in "abcde"])

    assert validation.validate(batch["id"]) is Outcome.MORE
    assert Batch.objects.get().validated_lines == 2
    work.validate(batch["id"])
    assert list(Line.objects.order_by("number").values_list("custom_id", flat=True)) == list("abcde")
    assert work.batch(batch["id"])["request_counts"]["total"] == 5


def test_blank_lines_are_read_in_slices_too(create, work, monkeypatch):
    monkeypatch.setattr(validation, "SLICE_S", -1.0)
    batch = create(jsonl([line("a")]) + b"\n" * 3 * validation.LEAST_GROUP_LINES + jsonl([line("b")]))
    assert validation.validate(batch["id"]) is Outcome.MORE
    assert Batch.objects.get().validated_lines == validation.LEAST_GROUP_LINES
    work.validate(batch["id"])
    assert set(Line.objects.values_list("number", flat=True)) == {1, 3 * validation.LEAST_GROUP_LINES + 2}
    assert work.batch(batch["id"])["request_counts"]["total"] == 2


def test_it_stops_when_cancelled_and_sends_nothing(api, create, work, backend):
    batch = create([line("a")])
    api.post(f"/v1/batches/{batch['id']}/cancel")
    work.validate(batch["id"])
    work.drive()
    work.finalize(batch["id"])
    assert work.batch(batch["id"])["status"] == "cancelled"
    assert backend.seen == []


def test_input_bytes_that_are_not_on_this_host_are_waited_for(create, work, settings):
    batch = create([line("a")])
    [path] = settings.FILES_DIR.rglob("file-*")
    path.rename(settings.FILES_DIR / "elsewhere")
    for _ in range(2):
        assert work.validate(batch["id"]) is Outcome.LATER
    stored = Batch.objects.get()
    assert (stored.status, stored.errors) == ("validating", [])
    assert stored.stall_reason.startswith("The input file cannot be read: No such file or directory.")
    (settings.FILES_DIR / "elsewhere").rename(path)
    assert work.validate(batch["id"]) is Outcome.DONE
    assert Batch.objects.get().status == "in_progress"


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.75, 0.99])
def test_a_file_that_is_there_in_part_is_waited_for_and_no_line_is_left_out(part, create, work, settings):
    batch = create([line("a"), line("b")])
    [path] = settings.FILES_DIR.rglob("file-*")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert work.validate(batch["id"]) is Outcome.LATER
    assert "A part of the file is missing" in Batch.objects.get().stall_reason
    path.write_bytes(content)
    assert work.validate(batch["id"]) is Outcome.DONE
    assert (Batch.objects.get().status, Line.objects.count()) == ("in_progress", 2)


def test_input_bytes_that_were_removed_on_purpose_fail_the_batch(create, work):
    batch = create([line("a")])
    File.objects.update(content="")
    work.validate(batch["id"])
    assert errors(work.batch(batch["id"])) == [(None, "invalid_request", "file_id")]


def test_two_at_once_do_not_mix(create, work):
    batch = create([line("a")])
    other = Lease.objects.create(purpose="validate", host="h", pid=1, started="1", expires_at=timezone.now())
    Batch.objects.update(lease=other)
    assert validation.validate(batch["id"]) is Outcome.HELD
    assert not Line.objects.exists()
    Batch.objects.update(lease=None)
    work.validate(batch["id"])
    work.validate(batch["id"])
    assert Line.objects.count() == 1
    assert lifecycle.move(batch["id"], Status.IN_PROGRESS) is False


def test_the_body_that_is_sent_means_what_the_line_said(create, work, backend):
    body = {"messages": [{"role": "user", "content": "ä\u2028\U0001f600"}], "seed": 12345678901234567890}
    body |= {"temperature": 1e-7}
    raw = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}).encode()
    batch = create(raw)
    work.run(batch["id"])
    assert backend.seen[0].body == body | {"model": "gemma3:12b"}


def test_a_line_is_stored_with_what_sorts_it_and_what_it_takes(create, work):
    say = [{"role": "user", "content": "x" * 295}]
    lines = [
        line("a", body={"messages": say}),
        line("b", body={"messages": say, "max_tokens": 100}),
        line("c", body={"messages": say, "model": "qwen3:8b", "temperature": 0}),
    ]
    batch = create(lines)
    work.validate(batch["id"])

    rows = list(Line.objects.order_by("number"))
    for row, given in zip(rows, lines, strict=True):
        assert bytes(row.order_key) == prompt.order_key(CHAT, given["body"])
    assert [row.digest is None for row in rows] == [True, True, False]
    assert bytes(rows[2].digest) == fingerprint.digest(CHAT, "qwen3:8b", lines[2]["body"])
    needs = Part.objects.order_by("model").values_list("model", "context_tokens")
    assert list(needs) == [("gemma3:12b", 200), ("qwen3:8b", 108)]


def test_a_part_needs_as_much_as_its_longest_line_in_any_slice(create, work, monkeypatch):
    monkeypatch.setattr(validation, "SLICE_S", -1.0)
    monkeypatch.setattr(validation, "LEAST_GROUP_LINES", 1)
    batch = create(
        [line(name, body={"max_tokens": limit}) for name, limit in zip("abcd", (50, 900, 10, 60), strict=True)]
    )
    work.validate(batch["id"])
    assert Part.objects.get().context_tokens == 900 + 2


def test_every_field_that_is_not_given_has_its_default(create, work):
    """Rows are stored without instances: what the model says of them must be so all the same."""
    batch = create([line("a")])
    work.validate(batch["id"])
    stored = Line.objects.get()
    made = Line(batch_id=batch["id"], part=stored.part, number=1, custom_id="a")
    given = {"id", "batch", "part", "number", "custom_id", "offset", "length", "order_key"}
    for field in Line._meta.concrete_fields:
        if field.name not in given:
            assert getattr(stored, field.attname) == getattr(made, field.attname), field.name


def test_what_was_read_before_a_duplicate_is_not_read_again(create, work, monkeypatch):
    monkeypatch.setattr(validation, "LEAST_GROUP_LINES", 2)
    names = ["a", "b", "c", "a", "d", "b", "e", "e"]
    batch = create([line(name) for name in names])
    work.validate(batch["id"])
    assert [number for number, _, _ in errors(work.batch(batch["id"]))] == [4, 6, 8]
    assert Batch.objects.get().validated_lines == 8
    assert list(Line.objects.order_by("number").values_list("number", flat=True)) == [1, 2, 3, 5, 7]


def test_a_slice_whose_lease_has_run_out_stores_nothing(create, work, monkeypatch):
    """Neither lines nor the cursor: a cursor without its lines would lose them."""
    batch = create([line(name) for name in "abc"])
    monkeypatch.setattr(leases, "LIFETIME", timedelta(seconds=-1))
    assert validation.validate(batch["id"]) is Outcome.HELD
    assert (Batch.objects.get().validated_lines, Line.objects.count()) == (0, 0)
    monkeypatch.undo()
    work.validate(batch["id"])
    assert Line.objects.count() == 3
