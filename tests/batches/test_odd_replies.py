"""No reply, and no damage to a stored one, keeps a batch from its end: what cannot be read becomes an error line."""

import json

import pytest
from django.db import connection

from batches.models import Answer, Batch, Line, LineState, Response
from common import strict_json
from tests.batches.conftest import results
from tests.conftest import CHAT, line
from tests.fake_backend import Action

CHOICES = b'"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]'
USAGE = b'"usage":{"prompt_tokens":7,"completion_tokens":3}'


def deep(levels, *, name=b"x", kind=b"[]"):
    """A good answer with a member that is nested as deep as this; the answer itself is a level."""
    left, right = (kind[:1], kind[1:]) if kind == b"[]" else (b'{"a":', b"}")
    inner = left * (levels - 1) + (b"" if kind == b"[]" else b"1") + right * (levels - 1)
    return b"{" + CHOICES + b"," + USAGE + b',"' + name + b'":' + inner + b"}"


def having(more, usage=USAGE):
    return b"{" + CHOICES + b"," + usage + b"," + more + b"}"


LIMIT = strict_json.MOST_LEVELS
ANSWERS = {
    "as deep as is read": deep(LIMIT),
    "a usage as deep": having(b'"x":1', USAGE[:-1] + b',"x":' + b'{"a":' * (LIMIT - 3) + b"{}" + b"}" * (LIMIT - 2)),
    "an output as deep": deep(LIMIT, name=b"output"),
    "a large integer": having(b'"id":' + b"9" * 4000),
    "tokens that are no count": having(b'"x":1', USAGE[:-1] + b',"prompt_tokens":1e300,"x":-5}'),
    "tokens beyond a column": having(b'"x":1', USAGE[:-1] + b',"prompt_tokens":' + b"9" * 30 + b"}"),
    "half a surrogate pair": having(b'"id":"\\ud800","\\udfff":"\\ud800"'),
    "a NUL": having(b'"id":"chatcmpl-\\u0000","\\u0000":"\\u0000"'),
    "ends of lines": having('"id":"a\u2028\x85\u2029","\x7f":"\x7f"'.encode()),
    "doubled members": having(b'"id":"a-1","id":{"b":[]},"id":"c-2"'),
    "odd ids": having(b'"id":{"a":1},"output":[{"id":["a-"]},null,5,"x"]'),
}
NO_ANSWERS = {
    "one level deeper": deep(LIMIT + 1),
    "objects one level deeper": deep(LIMIT + 1, kind=b"{}"),
    "as deep as Python reads": deep(930),
    "deeper than Python reads": deep(20_000),
    "an integer beyond Python": having(b'"id":' + b"9" * 5000),
    "NaN": having(b'"x":NaN'),
    "Infinity": having(b'"x":-Infinity'),
    "beyond a double": having(b'"x":1e999'),
    "no UTF-8": having(b'"x":"\xff\xfe"'),
    "UTF-16": having(b'"x":1').decode().encode("utf-16"),
    "a list": b"[" + having(b'"x":1') + b"]",
    "two answers": having(b'"x":1') * 2,
    "a raw line end": having(b'"x":"\n"'),
    "a usage that is a list": having(b'"x":1', b'"usage":[[1],"a",null]'),
    "nothing": b"",
}


@pytest.mark.slow
@pytest.mark.parametrize("across", [False, True])
def test_an_odd_reply_ends_as_a_line(create, work, backend, settings, across):
    """Each request stands in the file twice: one answer is copied."""
    settings.LINE_MAX_ATTEMPTS = 1
    settings.ANSWER_ONCE_ACROSS_BATCHES = across
    lines = []
    for name, body in (ANSWERS | NO_ANSWERS).items():
        backend.always(name, Action(body=body))
        asked = {"messages": [{"role": "user", "content": name}], "temperature": 0}
        lines += [line(name, body=asked), line(f"{name}, copied", body=asked)]

    batch = work.run(create(lines)["id"])

    assert batch["status"] == "completed"
    output, errors = results(work, batch)
    assert list(output) == [each for name in ANSWERS for each in (name, f"{name}, copied")]
    assert list(errors) == [each for name in NO_ANSWERS for each in (name, f"{name}, copied")]
    assert {each["error"]["code"] for each in errors.values()} == {"incomplete_response"}
    for each in output.values():
        assert each["response"]["body"]["choices"] == json.loads(b"{" + CHOICES + b"}")["choices"]
    if across:
        again = work.run(create(lines)["id"])
        assert again["request_counts"] == batch["request_counts"]


@pytest.mark.slow
@pytest.mark.parametrize("status", [400, 404, 500])
def test_an_odd_error_ends_as_a_line(create, work, backend, settings, status):
    settings.LINE_MAX_ATTEMPTS = 1
    bodies = (
        ANSWERS | NO_ANSWERS | {"error with a NUL": b'{"error":{"message":"\\u0000\\ud800"}}', "raw NUL": b"\x00\xff"}
    )
    for name, body in bodies.items():
        backend.always(name, Action(status, body))
    batch = work.run(create([line(name) for name in bodies])["id"])
    assert batch["status"] == "completed"
    assert batch["request_counts"]["failed"] == len(bodies)
    assert list(results(work, batch)[1]) == list(bodies)


DAMAGE = {
    "cut": lambda text: text[:40],
    "its begin is gone": lambda text: text[40:],
    "another text": lambda text: "damaged",
    "a list": lambda text: f"[{text}]",
    "a line end": lambda text: text.replace(",", ",\n", 1),
    "another line end": lambda text: text.replace(",", ",\x1d", 1),
    "a letter of no ASCII": lambda text: text.replace("answer", "änswer"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_answer_is_an_error_line_and_so_are_its_copies(create, work, backend, damage):
    asked = {"messages": [{"role": "user", "content": "x"}], "temperature": 0}
    batch = create([line("a"), line("b", body=asked), line("c", body=asked), line("d")])["id"]
    work.validate(batch)
    work.drive()
    row = Response.objects.get(line__custom_id="b")
    Response.objects.filter(pk=row.pk).update(body=damage(row.body))

    work.finalize(batch)

    ended = work.batch(batch)
    assert (ended["status"], ended["request_counts"]) == ("completed", {"total": 4, "completed": 2, "failed": 2})
    output, errors = results(work, ended)
    assert (list(output), list(errors)) == (["a", "d"], ["b", "c"])
    assert {each["error"]["code"] for each in errors.values()} == {"answer_unreadable"}


def test_a_copy_of_an_answer_that_only_looks_whole_is_an_error_line(create, work, backend):
    asked = {"messages": [{"role": "user", "content": "x"}], "temperature": 0}
    batch = create([line("a", body=asked), line("b", body=asked)])["id"]
    work.validate(batch)
    work.drive()
    Response.objects.filter(line__custom_id="a").update(body='{"a":' * 5000 + "1" + "}" * 5000)
    work.finalize(batch)
    output, errors = results_unread(work, batch)
    assert (output, errors) == (1, ["b"])


def results_unread(work, batch_id):
    """How many lines the output file has, and the custom_ids of the error file: no client reads the former's JSON."""
    batch = work.batch(batch_id)
    answer = work.api.get(f"/v1/files/{batch['output_file_id']}/content")
    return len(answer.getvalue().splitlines()), [each["custom_id"] for each in work.content(batch["error_file_id"])]


@pytest.mark.skipif(connection.vendor != "sqlite", reason="Postgres keeps no text that is not UTF-8")
@pytest.mark.parametrize(("table", "column"), [("response", "body"), ("line", "error_message")])
def test_a_text_that_is_no_utf_8_in_the_database_is_an_error_line(create, work, backend, table, column):
    batch = create([line(name) for name in "abcd"])["id"]
    work.validate(batch)
    work.drive()
    with connection.cursor() as cursor:
        key = {"line": "id", "response": "line_id"}[table]
        cursor.execute(
            f"UPDATE batches_{table} SET {column} = CAST(x'7bff7d' AS TEXT) "
            f"WHERE {key} = (SELECT id FROM batches_line WHERE custom_id = 'b')"
        )

    work.finalize(batch)

    output, errors = results(work, work.batch(batch))
    assert (list(output), list(errors)) == (["a", "c", "d"], ["b"])
    assert errors["b"]["error"]["code"] == "answer_unreadable"
    assert Batch.objects.get().stalls == 0


@pytest.mark.parametrize("damage", [*DAMAGE.values(), None], ids=[*DAMAGE, "no UTF-8"])
def test_a_damaged_answer_of_another_batch_is_asked_again(create, work, backend, settings, damage):
    settings.ANSWER_ONCE_ACROSS_BATCHES = True
    lines = [line("a", url=CHAT, body={"temperature": 0})]
    work.run(create(lines)["id"])
    kept = Answer.objects.get()
    if damage is not None:
        Answer.objects.update(response=damage(kept.response))
    elif connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("UPDATE batches_answer SET response = CAST(x'7bff7d' AS TEXT)")

    batch = work.run(create(lines)["id"])

    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert Line.objects.filter(batch=batch["id"], state=LineState.SUCCEEDED).exists()
    output, _ = results(work, batch)
    assert output["a"]["response"]["body"]["choices"][0]["message"]["content"] == "answer to a"
