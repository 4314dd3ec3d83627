"""Fill an empty database with rows as a server makes them, and time the admin's pages."""

import json
import statistics
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from django.conf import settings
from django.contrib.admin.utils import quote
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.core.management.base import CommandError
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from batches import lifecycle
from batches.models import Backend, Batch, Lease, Line, LineState, Part, Pulse, Response, Status
from batches.results import result_line
from common import database
from files_api.models import RESULTS, File, row_id, stored_name
from files_api.storage import temporary_file

SMALL_OPEN = 10  # small batches that wait
EVERY_FAILED = 20  # of the lines, one in so many failed
FAILURES = ("context_length_exceeded", "model_not_found", "timeout")
PART_ROWS = 50_000


def measure(lines: int, batches: int, rounds: int) -> list[dict[str, Any]]:
    """Name, times, queries and size of each page. The database has to be empty but for one user."""
    return _times(_fill(lines, batches), rounds)


def _fill(lines: int, batches: int) -> dict[str, Batch]:
    """Rows as a server would have made them; the ids that pages are asked for."""
    now = database.now()
    backend = Backend.objects.create(
        name="measured",
        url="http://localhost:11434",
        kind="ollama",
        version="0.33.0",
        listed=[{"id": f"model{number}:12b", "created": 0, "owned_by": "ollama"} for number in range(50)],
        loaded_names=["model0:12b"],
        loaded_model="model0:12b",
        worker="here",
        worker_seen_at=now + timedelta(hours=1),
        seen_at=now + timedelta(hours=1),
    )
    Pulse.objects.create(name="ticked", at=now + timedelta(hours=1))
    running = _batch(lines // 2, done=lines // 4, hours=20, is_over=False)
    ended = _batch(lines * 4 // 10, done=lines * 4 // 10, hours=60, is_over=True)
    _write_results(ended)
    each = max(2, (lines - running.total - ended.total) // max(1, batches - 2))
    for number in range(batches - 2):
        is_open = number < SMALL_OPEN
        _batch(each, done=0 if is_open else each, hours=100, is_over=not is_open)
    lease = Lease.objects.create(purpose="drive", host="here", pid=1, started="", expires_at=now, backend=backend)
    sent = running.lines.filter(state=LineState.PENDING).order_by("number").values_list("pk", flat=True)[:8]
    Line.objects.filter(pk__in=list(sent)).update(state=LineState.RUNNING, lease=lease)
    assert Part.objects.count() == Batch.objects.count()
    return {"running": running, "ended": ended}


def _batch(lines: int, *, done: int, hours: int, is_over: bool) -> Batch:
    now = database.now()
    file = _input_file()
    failed = done // EVERY_FAILED
    ended = now - timedelta(hours=hours / 2) if is_over else None
    began = now - timedelta(hours=hours)
    batch = Batch.objects.create(
        **{"input_file": file, "endpoint": "/v1/chat/completions", "completion_window": "7d", "model": "model0:12b"},
        **{"created_at": began, "expires_at": now + timedelta(days=7), "folded_output_tokens": 100 * done},
        **{"total": lines, "folded_completed": done - failed, "folded_failed": failed, "last_place": done},
    )
    ways = [Status.IN_PROGRESS, Status.FINALIZING, Status.COMPLETED] if is_over else [Status.IN_PROGRESS]
    for status in ways:
        lifecycle.move(batch.pk, status)
    # The moves were stamped just now.
    stamps = {"completed_at": ended, "finalizing_at": ended, "tidied_at": ended, "in_progress_at": began}
    Batch.objects.filter(pk=batch.pk).update(**stamps)
    batch.refresh_from_db()
    part = Part.objects.create(batch=batch, model="model0:12b", turn_at=now if done else None)
    end = ended or now
    _insert(_rows(batch, part, lines, done, began, end))
    if not ended:
        answered = batch.lines.filter(state=LineState.SUCCEEDED).values_list("pk", flat=True)
        Response.store((pk, _REPLY) for pk in answered.iterator())
    return batch


def _input_file() -> File:
    """One prompt, which all lines have."""
    if (file := File.objects.filter(purpose="batch").first()) is None:
        file = File(filename="profiles.jsonl", purpose="batch", bytes=len(_PROMPT), sha256="")
        file.content.save("", ContentFile(_PROMPT), save=False)
        file.save()
    return file


_PROMPT = json.dumps(
    {"body": {"model": "model0:12b", "messages": [{"role": "user", "content": "Score this profile. " * 20}]}}
).encode()
_REPLY = json.dumps({"choices": [{"message": {"role": "assistant", "content": '{"score": 7}'}}]}, separators=(",", ":"))
_COLUMNS = (
    *("batch_id", "part_id", "number", "custom_id", "offset", "length", "order_key", "state", "attempts"),
    *("backend_crashes", "needs_trial", "lost_claims", "http_status", "error_code", "error_message"),
    *("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "duration_ms", "finished_at", "place"),
)


def _rows(
    batch: Batch, part: Part, lines: int, done: int, began: datetime, ended: datetime
) -> Iterator[tuple[int | str | bytes | None, ...]]:
    for number in range(1, lines + 1):
        row = (batch.pk, part.pk, number, f"profile-{number:07}", 0, len(_PROMPT), number.to_bytes(4, "big"))
        if number > done:
            yield (*row, 0, 0, 0, 0, 0, None, "", "", 0, 0, 0, 0, None, None, None)
            continue
        at = str(began + (ended - began) * (number / done))[:26]
        is_failed = number % EVERY_FAILED == 0
        if is_failed:
            code = FAILURES[number % len(FAILURES)]
            yield (*row, 3, 1, 0, 0, 0, None, code, f"This is why: {code}.", 0, 0, 0, 0, 900, at, number)
        else:
            yield (*row, 2, 0, 0, 0, 0, 200, "", "", 300, 0, 100, 0, 900, at, number)


def _insert(rows: Iterator[tuple[int | str | bytes | None, ...]]) -> None:
    """By the database's own way: the ORM takes minutes for a million rows."""
    marks = ", ".join(["%s"] * len(_COLUMNS))
    names = ", ".join(f'"{name}"' for name in _COLUMNS)
    while part := list(islice(rows, PART_ROWS)):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO batches_line ({names}) VALUES ({marks})", part)


def _write_results(batch: Batch) -> None:
    """The output file, with a line for each that succeeded, as results.py writes it."""
    with temporary_file(stored_name(File(), "")) as content:
        for number in range(1, batch.total + 1):
            if number % EVERY_FAILED:
                text = result_line(batch.pk, number, f"profile-{number:07}", 2, 200, _REPLY, "", "")
                content.write(text.encode())
        made = {"bytes": content.size, "sha256": content.sha256}
        file = File(id=row_id(content.stored_as), filename="output.jsonl", purpose=RESULTS, **made)
        file.content.save("", content, save=False)
        file.save()
    batch.output_file = file
    batch.save(update_fields=["output_file"])


def _addresses(filled: dict[str, Batch]) -> Iterator[tuple[str, str]]:
    running, ended = filled["running"], filled["ended"]
    batches, lines = "/admin/batches/batch/", "/admin/batches/line/"
    middle = running.lines.get(number=running.completed // 2)
    late = running.lines.filter(state=0).order_by("-number")[0]
    old = ended.lines.get(number=ended.total // 3 | 1)
    yield "first page", "/admin/"
    yield "… its moving part", f"{batches}now/"
    yield "… the banner", f"{batches}banner/"
    yield "batches", batches
    yield "… page 40", f"{batches}?p=40"
    yield "… search", f"{batches}?q=profiles"
    yield "… of one status", f"{batches}?status__exact=completed"
    ids = [running.pk, *Batch.objects.exclude(pk=running.pk).values_list("pk", flat=True)[:10]]
    yield "… their moving cells", f"{batches}moves/?" + "&".join(f"id={each}" for each in ids)
    yield "batch that runs", f"{batches}{quote(running.pk)}/change/"
    yield "… its moving part", f"{batches}{quote(running.pk)}/moves/"
    yield "… its last answers", f"{batches}{quote(running.pk)}/answers/"
    yield "batch that is over", f"{batches}{quote(ended.pk)}/change/"
    yield "… its last answers", f"{batches}{quote(ended.pk)}/answers/"
    yield "lines of a batch", f"{lines}?batch={running.pk}"
    yield "… in the middle", f"{lines}?batch={running.pk}&after={middle.pk}"
    for state in ("pending", "running", "succeeded", "failed", "expired"):
        yield f"… {state}", f"{lines}?batch={running.pk}&state={state}"
    yield "… pending, at the end", f"{lines}?batch={running.pk}&state=pending&before={late.pk}"
    yield "… succeeded, in the middle", f"{lines}?batch={running.pk}&state=succeeded&after={middle.pk}"
    yield "… of one reason", f"{lines}?batch={running.pk}&reason={FAILURES[1]}"
    yield "… by custom_id", f"{lines}?batch={running.pk}&custom_id={middle.custom_id}"
    yield "… by custom_id, in all batches", f"{lines}?custom_id=profile-{ended.total:07}"
    yield "line", f"{lines}{middle.pk}/change/"
    yield "line, from the result file", f"{lines}{old.pk}/change/"
    yield "next line", f"{lines}{middle.pk}/change/?way=on&state=succeeded"
    yield "files", "/admin/files_api/file/"


def _times(filled: dict[str, Batch], rounds: int) -> list[dict[str, Any]]:
    person = Client(SERVER_NAME=settings.OWN_NAMES[0])
    person.force_login(User.objects.get())
    found = []
    for name, address in _addresses(filled):
        times = []
        for _ in range(rounds + 1):
            start = time.monotonic()
            answer = person.get(address)
            times.append((time.monotonic() - start) * 1000)
            if answer.status_code not in (200, 302):
                raise CommandError(f"{address} answered {answer.status_code}")
        with CaptureQueriesContext(connection) as queries:
            size = len(person.get(address).content)
        first, *others = times
        page = {"name": name, "first_ms": first, "ms": statistics.median(others), "kib": size / 1024}
        found.append(page | {"queries": len(queries)})
    return found
