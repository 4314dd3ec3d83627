"""Answer once: a request with one answer alone that stands in a batch several times is asked once.

Its first line is the `original`. The others are REPEATED: never claimed, counted when the original finishes, and
written to the result files with what the original was answered with.
"""

import json
import re
from collections.abc import Collection
from typing import Any

from django.db.models import Count

from batches.models import Batch, Line, LineState, Part
from common import ids


def originals(part: Part, digests: Collection[bytes]) -> dict[bytes, int]:
    """Of these digests those of lines that the part has, with the lines' ids. Repeats have no digest of their own."""
    found = Line.objects.filter(part=part, digest__in=digests).values_list("digest", "pk")
    return {bytes(digest): pk for digest, pk in found if digest is not None}


def counts(originals: Collection[int]) -> dict[int, int]:
    """Of these lines those that have repeats, by id, with how many."""
    if not originals:
        return {}
    repeats = Line.objects.filter(original__in=originals).order_by()
    return dict(repeats.values_list("original").annotate(Count("pk")))


def exist_in(batch: Batch) -> bool:
    return Line.objects.filter(part__batch=batch, state=LineState.REPEATED).exists()


def copied(response: str, batch_id: str, number: int) -> str:
    """A response for another line: with ids that depend on that line alone, and a usage of 0, for nothing was spent."""
    body = json.loads(response)
    if not isinstance(body, dict):
        return response
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
