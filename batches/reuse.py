"""Reuse: a request that has one answer alone is asked once, and its answer used again.

The first of several equal lines of a batch is the `original`. The others are REPEATED: never claimed, counted when the
original finishes, and written to the result files with the answer of the original.

With ANSWER_ONCE_ACROSS_BATCHES, answers are kept for KEPT_FOR, for other batches of the same owner too. An answer
belongs to the name of a model: it stays if the name is given to another model.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import Count

from batches.models import Answer, Batch, Line, LineState, Part
from common import database, ids, strict_json
from common.database import readable, retrying
from common.models import Owner

KEPT_FOR = timedelta(days=30)
FORGOTTEN_AT_ONCE = 5000  # by one sweep: other writers must not wait long for it


def originals(part: Part, digests: Collection[bytes]) -> dict[bytes, int]:
    """The digests among these that lines of the part have, with the lines' ids. Repeats have no digest of their own."""
    found = Line.objects.filter(part=part, digest__in=digests).values_list("digest", "pk")
    return {bytes(digest): pk for digest, pk in found if digest is not None}


def counts(originals: Collection[int]) -> dict[int, int]:
    """How many repeats each of these lines has, by its id; lines without repeats are left out."""
    if not originals:
        return {}
    repeats = Line.objects.filter(original__in=originals).order_by()
    return dict(repeats.values_list("original").annotate(Count("pk")))


def exist_in(batch: Batch) -> bool:
    return Line.objects.filter(part__batch=batch, state=LineState.REPEATED).exists()


def copied(response: str, batch_id: str, number: int) -> str:
    """The response for another line: its ids depend on that line alone, and its usage is 0, for nothing was spent.

    Raises ValueError if the response is not what a drive stores: a row can be damaged.
    """
    body = strict_json.loads(response.encode("ascii"))
    if not isinstance(body, dict):
        raise ValueError("the response is no JSON object")
    for index, item in enumerate([body, *_items(body)]):
        if isinstance(item, dict) and (kept := re.match(r"[a-z]+[-_]", str(item.get("id")))):
            item["id"] = ids.derived_id(kept[0], batch_id, number, index)
    if "usage" in body:
        body["usage"] = _zeroed(body["usage"])
    return json.dumps(body, separators=(",", ":"))


def _items(body: dict[str, Any]) -> list[Any]:
    """The items of a response of /v1/responses, which have ids too."""
    items = body.get("output")
    return items if isinstance(items, list) else []


def _zeroed(usage: Any) -> Any:
    if isinstance(usage, dict):
        return {name: _zeroed(value) for name, value in usage.items()}
    return 0 if type(usage) in (int, float) else usage


# Across batches


def remember(answered: Iterable[tuple[Line, str]]) -> None:
    """Keep the responses of answered lines that have one answer alone. Safe to run twice: the first answer stays."""
    if not settings.ANSWER_ONCE_ACROSS_BATCHES:
        return
    known = {_key(line): response for line, response in answered if line.digest is not None}
    # Sorted, or two drives that store the same answers could deadlock.
    rows = [Answer(digest=digest, response=response) for digest, response in sorted(known.items())]
    Answer.objects.bulk_create(rows, ignore_conflicts=True)


def _key(line: Line) -> str:
    """The name of a line's answer. Each owner has names of its own: nobody learns what others asked. Those of the first
    owner are as they were before there were owners."""
    digest = bytes(line.digest or b"")
    if line.batch.owner_id == Owner.FIRST:
        return digest.hex()
    return hashlib.sha256(f"owner {line.batch.owner_id} ".encode() + digest).hexdigest()[:32]


def recall(line: Line) -> str | None:
    """The response to a line that was answered in another batch, with the line's own ids and a usage of 0; None if
    none is kept, or none that can be read."""
    if line.digest is None or not settings.ANSWER_ONCE_ACROSS_BATCHES:
        return None
    oldest = database.now() - KEPT_FOR
    known = Answer.objects.filter(pk=_key(line), created_at__gt=oldest)
    try:
        response = retrying(readable, known.values_list("response", flat=True).first)
        return copied(response, line.batch_id, line.number) if response else None
    except ValueError:
        return None  # asked again, as if there were no answer


def forget_old() -> None:
    """Forget answers older than KEPT_FOR, FORGOTTEN_AT_ONCE at most. Each sweep calls it."""
    old = Answer.objects.filter(created_at__lt=database.now() - KEPT_FOR).order_by("created_at")
    if digests := list(old.values_list("pk", flat=True)[:FORGOTTEN_AT_ONCE]):
        Answer.objects.filter(pk__in=digests).delete()
