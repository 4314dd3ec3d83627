"""Claim, send, record: what becomes of lines, against a model server that answers or misbehaves at its socket."""

import json
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from batches import lifecycle
from batches.models import Batch, Lease, Line, LineState, Status
from common import strict_json
from tests.batches.conftest import results
from tests.conftest import custom_ids, line
from tests.fake_backend import TRIAL, Action, error_body


def test_it_answers_every_line_in_input_order(create, work, backend):
    batch = work.run(create([line(each) for each in "abc"])["id"])

    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert (batch["usage"]["input_tokens"], batch["usage"]["output_tokens"], batch["usage"]["total_tokens"]) == (
        21,
        9,
        30,
    )
    assert batch["error_file_id"] is None
    output, _ = results(work, batch)
    assert list(output) == ["a", "b", "c"]
    assert output["a"]["error"] is None
    assert output["a"]["response"]["status_code"] == 200
    assert output["a"]["response"]["body"]["choices"][0]["message"]["content"] == "answer to a"
    assert sorted(backend.arrived()) == ["a", "b", "c"]
    assert not Lease.objects.exists()


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/embeddings", "/v1/responses"])
def test_it_serves_the_other_endpoints(create, work, backend, endpoint):
    batch = work.run(create([line("a", url=endpoint)], endpoint=endpoint)["id"])
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert batch["usage"]["input_tokens"] == 7
    assert backend.seen[0].path == endpoint


def test_it_uses_one_connection_and_no_secret_of_the_environment(create, work, backend, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    work.run(create([line(each) for each in "abc"])["id"])
    assert sorted(backend.arrived()) == ["a", "b", "c"]
    assert "Authorization" not in backend.seen[0].headers


def test_it_sends_the_backends_key(create, work, backend, settings):
    settings.BACKEND_API_KEY = "k"
    work.run(create([line("a")])["id"])
    assert backend.seen[0].headers["Authorization"] == "Bearer k"


def test_a_refused_line_goes_to_the_error_file_with_the_reply(create, work, backend):
    refusal = error_body("bad temperature", "invalid_request_error")
    backend.always("b", Action(400, refusal))

    batch = work.run(create([line(each) for each in "abc"])["id"])

    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 3, "completed": 2, "failed": 1})
    output, errors = results(work, batch)
    assert list(output) == ["a", "c"]
    assert errors["b"]["error"] is None
    assert errors["b"]["response"]["status_code"] == 400
    assert errors["b"]["response"]["body"] == refusal
    assert backend.arrived().count("b") == 1


def test_a_batch_of_failures_is_completed_without_an_output_file(create, work, backend):
    backend.always("a", Action(400, error_body("no")))
    batch = work.run(create([line("a")])["id"])
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    assert batch["error_file_id"] is not None


def test_a_500_is_tried_again(create, work, backend):
    backend.on("a", Action(500, error_body("template failed")), Action(500, b"not even json"))
    batch = work.run(create([line("a")])["id"])
    assert batch["request_counts"]["completed"] == 1
    # Each time after a trial; the first failure, before which nothing had shown the model to be in order, is free.
    assert backend.arrived() == ["a", TRIAL, "a", TRIAL, "a"]
    assert Line.objects.get().attempts == 1


def test_a_line_that_fails_every_time_is_given_up(create, work, backend):
    work.in_flight = 1
    backend.always("a", Action(500, b"oops"))
    batch = work.run(create([line("b"), line("a")])["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    _, errors = results(work, batch)
    assert errors["a"]["response"]["status_code"] == 500
    assert errors["a"]["response"]["body"]["error"]["message"] == "oops"
    assert backend.arrived().count("a") == 3


@pytest.mark.parametrize(
    "action",
    [
        Action(body=b"garbage"),
        Action(body=b"[1]"),
        Action(body={"choices": []}),
        Action(body=b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"x":NaN}}'),
        Action(body={"choices": [{"message": {"content": "x"}, "finish_reason": None}], "usage": {}}),
        Action(body={"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {}}),
    ],
    ids=["garbage", "array", "no choices", "NaN", "no finish_reason", "no tokens"],
)
def test_a_200_that_is_no_answer_is_tried_again_and_then_given_up(create, work, backend, action):
    work.in_flight = 1
    backend.always("a", action)
    batch = work.run(create([line("b"), line("a")])["id"])
    _, errors = results(work, batch)
    assert errors["a"]["response"] is None
    assert errors["a"]["error"]["code"] == "incomplete_response"
    # Before each further try, a trial shows that the model is in order.
    assert backend.arrived() == ["b", "a", TRIAL, "a", TRIAL, "a"]


@pytest.mark.parametrize("action", [Action(reset=True), Action(cut_after=20)], ids=["reset", "cut short"])
def test_a_broken_connection_is_tried_again_uncharged(create, work, backend, action):
    backend.on("b", action)
    batch = work.run(create([line(each) for each in "abc"])["id"])
    assert batch["request_counts"]["completed"] == 3
    assert set(Line.objects.values_list("attempts", flat=True)) == {0}
    answered = [key for key in backend.arrived(answered=True) if key != TRIAL]
    assert answered in (["a", "b", "c"], ["a", "c", "b"])


def test_a_line_under_which_the_backend_always_breaks_is_given_up(create, work, backend):
    backend.always("a", Action(cut_after=20))
    batch = work.run(create([line("a")])["id"])
    _, errors = results(work, batch)
    assert errors["a"]["error"]["code"] == "backend_crash"


def test_a_busy_backend_charges_nobody(create, work, backend):
    backend.on("a", *[Action(503, error_body("server busy, please try again."))] * 5)
    batch = work.run(create([line("a")])["id"])
    assert batch["request_counts"]["completed"] == 1
    assert Line.objects.get().attempts == 0


def test_a_busy_backend_says_when_to_come_back(create, work, backend):
    backend.on("a", Action(429, error_body("slow down"), headers={"Retry-After": "40"}))
    work.validate(create([line("a")])["id"])
    work.drive()
    assert Line.objects.get().not_before - timezone.now() > timedelta(seconds=35)


def test_a_missing_model_that_is_not_waited_for_fails_all_its_lines_at_once(create, work, backend, settings):
    settings.MODEL_MISSING_PATIENCE_S = 0
    missing = Action(404, error_body("model 'gone' not found", "not_found_error"))
    lines = [line(f"gone-{n}", body={"model": "gone"}) for n in range(20)] + [line("a")]
    for each in lines[:-1]:
        backend.always(each["custom_id"], missing)
    batch = create(lines)
    work.validate(batch["id"])  # no backend has reported, so nothing is known of models

    seen = work.run(batch["id"])

    assert seen["request_counts"] == {"total": 21, "completed": 1, "failed": 20}
    _, errors = results(work, seen)
    assert {each["response"]["status_code"] for each in errors.values()} == {404}
    assert len(backend.seen) < 7  # two were in flight


@pytest.mark.slow
def test_an_answer_that_takes_too_long_is_cut_and_charged(create, work, backend, settings):
    settings.LINE_TIMEOUT_S = 0.3
    settings.LINE_MAX_ATTEMPTS = 1
    backend.always("a", Action(hang=True))
    backend.always("b", Action(drip_s=0.05))  # each read is quick: only a total deadline ends it

    batch = work.run(create([line(each) for each in "abc"])["id"])

    _, errors = results(work, batch)
    assert [each["error"]["code"] for each in errors.values()] == ["request_timeout"] * 2
    assert errors["a"]["error"]["message"] == "The underlying call to the model did not finish within 0.3 seconds."
    assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    assert all(seen.gone for seen in backend.seen if seen.key == "a")


def test_a_reply_that_is_too_large_is_not_taken_into_memory(create, work, backend, settings):
    settings.MAX_REPLY_BYTES = 2**17
    backend.always("a", Action(body=b" " * 2**20))
    batch = work.run(create([line("a")])["id"])
    _, errors = results(work, batch)
    assert errors["a"]["error"]["code"] == "reply_too_large"


@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"tools": []}])
def test_a_line_is_taken_up_to_the_limit_of_nesting_and_then_answered(create, work, backend, more):
    def nested(name, depth):
        """A line whose members are nested as deep as this; it is a level itself, and so is its body."""
        changed = {"messages": [{"role": "user", "content": name}]} | more
        deep = "[" * (depth - 2) + "]" * (depth - 2)
        return json.dumps(line(name, body=changed)).replace('"max_tokens": 8', f'"seed": {deep}').encode() + b"\n"

    limit = strict_json.MOST_LEVELS
    batch = work.run(create(nested("a", limit) + nested("b", limit))["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}

    batch = create(nested("a", limit) + b"".join(nested(f"b-{n}", n) for n in (limit + 1, 700, 960, 990, 5000)))
    work.validate(batch["id"])
    told = [(error["line"], error["message"]) for error in work.batch(batch["id"])["errors"]["data"]]
    assert told == [(number, f"This line is nested deeper than {limit} levels.") for number in range(2, 7)]


@pytest.mark.slow
def test_a_cancel_ends_the_call_within_a_second_and_delivers_what_is_done(create, work, backend):
    work.in_flight = 1  # c is not sent beside b
    backend.always("b", Action(hang=True))
    batch = create([line(each) for each in "abc"])
    work.validate(batch["id"])
    # The cancel comes in while the drive waits for the second answer, as from another process.
    seen_b = threading.Event()
    stopped_at = []

    def should_stop():
        if "b" in backend.arrived() and not seen_b.is_set():
            seen_b.set()
            lifecycle.cancel(batch["id"])
            stopped_at.append(time.monotonic())
        return False

    work.drive(should_stop=should_stop)

    assert time.monotonic() - stopped_at[0] < 2.5
    work.finalize(batch["id"])
    seen = work.batch(batch["id"])
    assert seen["status"] == "cancelled"
    assert seen["request_counts"] == {"total": 3, "completed": 1, "failed": 0}
    output, errors = results(work, seen)
    assert list(output) == ["a"]
    assert [each["error"]["code"] for each in errors.values()] == ["batch_cancelled"] * 2
    assert all(seen.gone for seen in backend.seen if seen.key == "b")


@pytest.mark.slow
def test_a_window_that_ends_expires_the_open_lines_and_delivers_the_rest(create, work, backend):
    work.in_flight = 1  # c is not sent beside b
    backend.always("b", Action(hang=True))
    batch = create([line(each) for each in "abc"])
    work.validate(batch["id"])

    def should_stop():
        if "b" in backend.arrived():
            Batch.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        return False

    closed = work.drive(should_stop=should_stop)

    assert closed == [batch["id"]]
    work.finalize(batch["id"])
    seen = work.batch(batch["id"])
    assert (seen["status"], seen["expired_at"] is not None) == ("expired", True)
    assert seen["request_counts"] == {"total": 3, "completed": 1, "failed": 0}
    output, errors = results(work, seen)
    assert list(output) == ["a"]
    assert {each["error"]["code"] for each in errors.values()} == {"batch_expired"}


@pytest.mark.slow
def test_the_order_to_stop_lets_the_call_finish_and_hands_back_the_rest(create, work, backend):
    work.in_flight = 1  # b is claimed, and waits for its call
    backend.always("a", Action(delay_s=1.5))
    batch = create([line("a"), line("b")])
    work.validate(batch["id"])
    work.drive(should_stop=lambda: "a" in backend.arrived())
    assert list(Line.objects.order_by("number").values_list("state", "lost_claims")) == [
        (LineState.SUCCEEDED, 0),
        (LineState.PENDING, 0),
    ]
    assert backend.arrived() == ["a"]


@pytest.mark.slow
def test_the_order_to_stop_cuts_a_call_after_the_grace(create, work, backend, settings):
    settings.SHUTDOWN_GRACE_S = 0.5
    backend.on("a", Action(hang=True))
    batch = create([line("a")])
    work.validate(batch["id"])
    started = time.monotonic()
    work.drive(should_stop=lambda: backend.arrived() == ["a"])
    assert time.monotonic() - started < 5
    assert Line.objects.values_list("state", "attempts").get() == (LineState.PENDING, 0)
    assert work.run(batch["id"])["request_counts"]["completed"] == 1


def test_the_oldest_batch_goes_first(create, work, backend):
    second, first = create([line("late")]), create([line("early")])
    Batch.objects.filter(pk=first["id"]).update(created_at=timezone.now() - timedelta(hours=1))
    for batch in (first, second):
        work.validate(batch["id"])
    work.in_flight = 1
    work.drive()
    assert backend.arrived() == ["early", "late"]


def test_fast_answers_are_stored_in_groups_and_none_is_lost(create, work, backend):
    batch = work.run(create([line(f"id-{n}") for n in range(300)])["id"])
    assert batch["request_counts"] == {"total": 300, "completed": 300, "failed": 0}
    output, _ = results(work, batch)
    assert list(output) == [f"id-{n}" for n in range(300)]
    assert sorted(backend.arrived()) == sorted(f"id-{n}" for n in range(300))


def test_an_input_file_that_was_damaged_fails_its_lines_only(create, work, backend, settings):
    batch = create([line("a"), line("b")])
    work.validate(batch["id"])
    path = next(path for path in settings.FILES_DIR.rglob("file-*"))
    path.write_bytes(b"x" * path.stat().st_size)
    seen = work.run(batch["id"])
    assert (seen["status"], seen["request_counts"]["failed"]) == ("completed", 2)
    _, errors = results(work, seen)
    assert errors["a"]["error"]["code"] == "input_unreadable"


def in_the_way(path):
    path.unlink()
    path.mkdir()


def without_its_directory(path):
    path.unlink()
    path.parent.rmdir()


NOT_THERE = {
    "something else in its place": in_the_way,
    "no file": Path.unlink,
    "no directory": without_its_directory,
    "an empty file": lambda path: path.write_bytes(b""),
    "half of a file": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 5]),
}


@pytest.mark.parametrize("away", NOT_THERE)
def test_a_storage_that_fails_for_a_while_costs_no_line(away, create, work, backend, settings):
    batch = create([line(each) for each in "abcd"])
    work.validate(batch["id"])
    path = next(path for path in settings.FILES_DIR.rglob("file-*"))
    content = path.read_bytes()
    NOT_THERE[away](path)
    ends_at = time.monotonic() + 1.5
    work.drive(should_stop=lambda: time.monotonic() > ends_at)
    arrived = len(backend.seen)
    assert arrived <= (away == "half of a file")
    assert Line.objects.filter(state=LineState.PENDING, attempts=0, lost_claims=0).count() == 4 - arrived
    assert Line.objects.exclude(not_before=None).count() < 4  # it is not asked for each line, one after the other
    assert "Look at the storage" in Batch.objects.get().stall_reason
    if path.is_dir():
        path.rmdir()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert work.run(batch["id"])["request_counts"]["completed"] == 4


def test_result_lines_hold_nothing_that_splits_a_line(create, work, backend):
    tricky = {"choices": [{"message": {"content": "a\u2028b\u0085c\ud800"}, "finish_reason": "stop"}]}
    backend.always("a", Action(body=tricky | {"usage": {"completion_tokens": 1}}))
    batch = work.run(create([line("a")])["id"])
    raw = work.api.get(f"/v1/files/{batch['output_file_id']}/content").getvalue()
    assert raw.isascii()
    assert len(raw.decode().splitlines()) == 1
    assert custom_ids(work.content(batch["output_file_id"])) == ["a"]


def test_statuses_seen_on_the_way(create, work, backend):
    batch = create([line("a")])
    assert work.batch(batch["id"])["status"] == "validating"
    work.validate(batch["id"])
    assert work.batch(batch["id"])["status"] == "in_progress"
    work.drive()
    finalizing = work.batch(batch["id"])
    assert (finalizing["status"], finalizing["output_file_id"]) == ("finalizing", None)
    work.finalize(batch["id"])
    done = work.batch(batch["id"])
    assert done["status"] == Status.COMPLETED
    assert all(done[name] for name in ("in_progress_at", "finalizing_at", "completed_at", "output_file_id"))


def test_a_drive_without_a_line_to_claim_asks_for_one_once_a_second(create, work, backend):
    """And not each time that it wakes up while the last answers are computed."""
    backend.on("a", Action(delay_s=1.5))
    work.validate(create([line("a")])["id"])
    asked = 0

    def note(execute, sql, params, many, context):
        nonlocal asked
        asked += backend.arrived() == ["a"] and sql.startswith("SELECT") and 'FROM "batches_part"' in sql
        return execute(sql, params, many, context)

    began = time.monotonic()
    with connection.execute_wrapper(note):
        work.drive()
    assert asked <= 4 * (time.monotonic() - began + 1)
