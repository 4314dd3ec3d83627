"""What has to hold after every scenario. Each function gives what is wrong, or None.

The truth is not the server's word: it is the input, the model server's own log of requests, and what the watchers noted
while it happened.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

from files_api import storage_id
from tests.conftest import custom_ids
from tests.faults.world import FINAL, STUCK_AFTER_S, World

SWEPT_WITHIN_S = 120.0  # a directory with each tick, and there may be dozens
STOPPED = ("batch_cancelled", "batch_expired")
MOVES = {
    "validating": {"in_progress", "failed", "cancelling"},
    "in_progress": {"finalizing", "cancelling"},
    "finalizing": {"completed", "expired"},
    "cancelling": {"cancelled"},
}


def nothing_is_stuck(world: World) -> str | None:
    """Within 60 s of the fault's end every batch is over, and every process has let go of everything."""
    ends_at = world.fault_ended_at + STUCK_AFTER_S
    while left := _unfinished(world):
        if time.monotonic() > ends_at:
            return f"after {STUCK_AFTER_S:g} s: {left}"
        time.sleep(0.1)
    return None


def _unfinished(world: World) -> str:
    with suppress(Exception):
        for batch_id, wanted in world.batches.items():
            status = world.batch(batch_id).get("status")
            if status != wanted.status:
                return f"{batch_id} is {status}, not {wanted.status}"
        for table, where in (
            ("batches_batch", "tidied_at IS NULL"),
            ("batches_line", "state < 2"),
            ("batches_lease", "1 = 1"),
            ("files_api_filehold", "1 = 1"),
        ):
            [(count,)] = world.rows.all(f"SELECT count(*) FROM {table} WHERE {where}")
            if count:
                return f"{count} rows of {table} where {where}"
        return ""
    return "the server does not answer"


def every_id_once(world: World) -> str | None:
    """Every custom_id exactly once over output and error file, in input order; answers are the model server's."""
    answers = {(seen.key, seen.headers.get("answer")) for seen in world.backend.seen if seen.answered}
    for batch_id, wanted in world.batches.items():
        batch = world.batch(batch_id)
        output, errors = world.content(batch["output_file_id"]), world.content(batch["error_file_id"])
        times = Counter(custom_ids(output) + custom_ids(errors))
        missing, double = set(wanted.wanted) - set(times), [key for key, count in times.items() if count > 1]
        if missing or double or set(times) - set(wanted.wanted):
            return f"{batch_id}: {len(missing)} missing, {len(double)} double"
        place = {custom_id: number for number, custom_id in enumerate(wanted.wanted)}
        for file in (output, errors):
            if custom_ids(file) != sorted(custom_ids(file), key=place.__getitem__):
                return f"{batch_id}: not in the order of the input"
        for each in output:
            if (each["custom_id"], each["response"]["body"]["system_fingerprint"]) not in answers:
                return f"{each['custom_id']}: an answer that the model server did not give"
        if len(errors) < wanted.failed or (errors and not wanted.failed and wanted.status == "completed"):
            return f"{batch_id}: {len(errors)} lines in the error file, not {wanted.failed}"
    return None


def sums_are_right(world: World) -> str | None:
    """Counts and usage are those of the files, and never went down or beyond the total on the way."""
    for batch_id, wanted in world.batches.items():
        batch = world.batch(batch_id)
        output, errors = world.content(batch["output_file_id"]), world.content(batch["error_file_id"])
        failed = [each for each in errors if (each["error"] or {}).get("code") not in STOPPED]
        counted = {"total": len(wanted.wanted), "completed": len(output), "failed": len(failed)}
        if batch["request_counts"] != counted:
            return f"{batch_id}: counts {batch['request_counts']}, files {counted}"
        spent = [each["response"]["body"]["usage"] for each in output]
        usage = (sum(each["prompt_tokens"] for each in spent), sum(each["completion_tokens"] for each in spent))
        if (batch["usage"]["input_tokens"], batch["usage"]["output_tokens"]) != usage:
            return f"{batch_id}: usage {batch['usage']}, files {usage}"
        counts = world.notes.counts.get(batch_id, [])
        for before, after in pairwise(counts):
            if any(now < then for then, now in zip(before, after, strict=True)):
                return f"{batch_id}: counts went from {before} to {after}"
        if any(completed + failed > total for total, completed, failed in counts):
            return f"{batch_id}: more lines finished than there are: {max(counts)}"
    return None


def nothing_finished_again(world: World) -> str | None:
    """No line was sent or written again once its row was finished. A kill costs the calls in flight at most. So does a
    process that was stopped, with the answers in hand and the line that it is about to send when it wakes. In hand are
    those of MOST_GROUP_S (batches.dispatch.answer_buffer), within which the backend answers twice."""
    if world.notes.rewritten:
        return f"written again: {sorted(set(world.notes.rewritten))}"
    late = [
        seen.key
        for seen in world.backend.seen
        if (row := world.notes.finished.get(seen.key)) is not None and seen.at > row.seen_at
    ]
    if len(late) > world.stops:
        return f"sent after they were finished: {late}"
    good = Counter(seen.key for seen in world.backend.seen if seen.answered and "answer" in seen.headers)
    wasted = sum(count - 1 for key, count in good.items() if key in world.notes.finished)
    if wasted > world.kills * world.lines_per_kill + (3 * world.lines_per_kill + 1) * world.stops:
        return f"{wasted} answers were wasted by {world.kills} kills and {world.stops} stops"
    return None


def no_way_back(world: World) -> str | None:
    """Statuses moved along the diagram alone, and never out of a final one."""
    for batch_id, statuses in world.notes.statuses.items():
        for before, after in pairwise(statuses):
            reachable, new = {before}, MOVES.get(before, set())
            while new:  # the watcher may have missed some
                reachable |= new
                new = set().union(*(MOVES.get(status, set()) for status in new)) - reachable
            if before in FINAL or after not in reachable:
                return f"{batch_id} went from {before} to {after}"
    return None


def refused_never_ran(world: World) -> str | None:
    """Of a create that was answered by a 5xx there is no batch."""
    labels = [label for (label,) in world.rows.all("SELECT metadata FROM batches_batch")]
    for refused in world.refused:
        if any(refused in str(label) for label in labels):
            return f"{refused} was refused and exists"
    if len(labels) != len(world.batches):
        return f"{len(labels)} batches exist, {len(world.batches)} were created"
    return None


def api_answered(world: World) -> str | None:
    """Every read got its 200 in time, but for outages that the scenario announced."""
    late_s = world.reads_within_s
    bad = [read for read in world.notes.reads if not read.allowed and (read.problem or read.took_s > late_s)]
    if bad:
        worst = max(bad, key=lambda read: (bool(read.problem), read.took_s))
        return (
            f"{len(bad)} of {len(world.notes.reads)} reads, such as {worst.problem or 'a 200'} in {worst.took_s:.1f} s"
        )
    return None


def disk_is_sound(world: World) -> str | None:
    """On disk lie the files that have rows; what a killed process left there goes when it is a day old. SQLite's
    database is in order."""
    if not world.rows.is_postgres and world.rows.all("PRAGMA integrity_check") != [("ok",)]:
        return "the database is damaged"
    files = world.server.data_dir / "files"
    rows = {name for (name,) in world.rows.all("SELECT content FROM files_api_file WHERE content != ''")}
    if world.s3 is not None:
        # Nobody can make an object older: what the sweep does with old ones is tested elsewhere.
        lost = rows - world.s3.names()
        return f"rows without bytes: {lost}" if lost else None
    two_days_ago = time.time() - 2 * 24 * 3600
    # The sweep leaves alone what is older than the database.
    world.rows.execute("UPDATE django_migrations SET applied = '2020-01-01 00:00:00+00:00'")
    ends_at = time.monotonic() + SWEPT_WITHIN_S
    while True:
        stored = {str(path.relative_to(files)): path for path in files.rglob("*") if path.is_file()}
        if lost := rows - set(stored):
            return f"rows without bytes: {lost}"
        orphans = sorted(set(stored) - rows - {storage_id.OBJECT})
        if not orphans:
            return None
        if time.monotonic() > ends_at:
            return f"bytes without rows: {orphans}"
        for name in orphans:
            with suppress(FileNotFoundError):
                os.utime(stored[name], (two_days_ago, two_days_ago))
        time.sleep(0.5)


Invariant = Callable[[World], str | None]
# In this order: until nothing is stuck there is nothing to check. The key is the column of the table.
ALL: dict[str, Invariant] = {
    "stuck": nothing_is_stuck,
    "once": every_id_once,
    "sums": sums_are_right,
    "again": nothing_finished_again,
    "final": no_way_back,
    "5xx": refused_never_ran,
    "api": api_answered,
    "disk": disk_is_sound,
}
