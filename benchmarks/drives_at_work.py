"""`python -m benchmarks.drives_at_work SECONDS ROUNDS CASES`: claim and store lines in many processes at once.

Prints as JSON, for each case (drives, lines in a transaction), the lines a second of each round: `one` if all drives
are on one batch, `own` if each is on a batch of its own.
"""

import json
import multiprocessing
import queue
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

CLAIMED = 64
MOST_LINES_PER_S = 12_000  # of all drives
ANSWER = json.dumps({"choices": [{"message": {"content": "word " * 40}}]}, separators=(",", ":"))


def main() -> None:
    import django
    from django.core.management import call_command

    django.setup()
    from batchserver import first_start

    first_start.make_directories()
    call_command("migrate", verbosity=0)
    seconds, rounds, cases = float(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    found = []
    for count, group in cases:
        speeds: dict[str, list[float]] = {"one": [], "own": []}
        for number in range(rounds):
            for name in sorted(speeds, reverse=bool(number % 2)):
                batches = 1 if name == "one" else count
                speeds[name].append(_stored(count, batches, group, seconds) / seconds)
        found.append((count, group, speeds))
    sys.stdout.write(json.dumps(found))


def _stored(count: int, batches: int, group: int, seconds: float) -> int:
    """How many lines so many drives stored, on so many batches."""
    from django.db import connection

    parts = _make(batches, round(MOST_LINES_PER_S * seconds))
    connection.close()  # no connection may cross into a child
    context = multiprocessing.get_context("fork")
    begin, stored = context.Barrier(count), context.Queue()
    drives = [
        context.Process(target=_drive, args=(parts[number % batches], group, seconds, begin, stored))
        for number in range(count)
    ]
    for drive in drives:
        drive.start()
    try:
        return sum(_next(stored, drives) for _ in drives)
    finally:
        for drive in drives:
            drive.kill()  # those that wait for one that has died; the others are over
            drive.join()


def _next(stored: Any, drives: Sequence[Any]) -> int:
    """What the next drive stored. Raises SystemExit if a drive dies, whose lines would be waited for in vain."""
    while True:
        try:
            lines: int = stored.get(timeout=0.5)
            return lines
        except queue.Empty:
            if any(drive.exitcode for drive in drives):
                raise SystemExit("A drive died.") from None


def _make(batches: int, lines: int) -> list[int]:
    """The parts of new batches in progress, with so many lines in all."""

    from batches import lifecycle
    from batches.models import Batch, Line, Part, Status
    from common import database
    from common.database import insert

    now = database.now()
    parts = []
    for _ in range(batches):
        batch = Batch.objects.create(
            **{"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "7d", "model": "m"},
            **{"expires_at": now + timedelta(days=7), "total": lines // batches},
        )
        lifecycle.move(batch.pk, Status.IN_PROGRESS)
        part = Part.objects.create(batch=batch, model="m")
        names = ("batch", "part", "number", "custom_id", "offset", "length", "order_key")
        rows = (
            (batch.pk, part.pk, number, f"line-{number}", 0, 100, b"%08d" % number)
            for number in range(1, 1 + lines // batches)
        )
        insert(Line, names, rows)
        parts.append(part.pk)
    return parts


def _drive(part_id: int, group: int, seconds: float, begin: Any, stored: Any) -> None:
    from django.db import connection

    from batches import leases
    from batches.backends.in_flight import Call
    from batches.backends.replies import Reply, Usage, Verdict
    from batches.dispatch import claims
    from batches.models import Part
    from batches.scheduling import turns
    from common.database import relaxed_commits, retrying

    reply = Reply(Verdict.ANSWERED, 200, ANSWER, usage=Usage(input_tokens=30, output_tokens=40))
    lines = 0
    with relaxed_commits(), leases.Keeper("drive") as keeper:
        turn = turns.Turn(Part.objects.select_related("batch").get(pk=part_id))
        begin.wait()
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and (claimed := retrying(claims.claim, keeper.lease, turn, CLAIMED)):
            for first in range(0, len(claimed), group):
                some = claimed[first : first + group]
                if time.monotonic() >= ends_at:
                    break
                retrying(claims.store, keeper.lease, [Call(line, "", {}, 0.1, reply=reply) for line in some])
                lines += len(some)
    connection.close()
    stored.put(lines)


if __name__ == "__main__":
    main()
