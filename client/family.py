"""A batch with those that retried its lines, and those whose lines it retries."""

from typing import Any

from client.api import FINAL, Server


def of(server: Server, batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole family, the first batch first. A line that was answered is never retried, so no custom_id has an answer
    twice."""
    family = [batch]
    while parent := family[0].get("retry_of"):
        family.insert(0, server.batch(parent))
    known = {each["id"] for each in family}
    # The oldest first: a retry is younger than what it retries.
    for each in reversed(list(server.objects("batches"))):
        if each.get("retry_of") in known and each["id"] not in known:
            known.add(each["id"])
            family.append(each)
    return family


def running(family: list[dict[str, Any]]) -> list[str]:
    """The ids of those that have not ended."""
    return [each["id"] for each in family if each["status"] not in FINAL]
