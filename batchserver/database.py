"""What SQLite and Postgres are asked for beyond the ORM: the database's clock, and how durable a commit is."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import ParamSpec, TypeVar

from django.db import InterfaceError, OperationalError, connection
from django.db.models import DateTimeField, ExpressionWrapper
from django.db.models.expressions import CombinedExpression
from django.db.models.functions import Now

logger = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")

RETRY_FOR_S = 20.0


def from_now(delay: timedelta) -> "ExpressionWrapper[CombinedExpression]":
    """`delay` from now by the database's clock: the hosts' own clocks may differ, and deadlines are compared in SQL."""
    return ExpressionWrapper(Now() + delay, output_field=DateTimeField())


@contextmanager
def relaxed_commits() -> Iterator[None]:
    """On SQLite let commits of this connection survive kill -9 but not a power cut, and wait at most 5 s for a lock.

    For what a drive writes: a lost result is asked again, and a lost move to finalizing is made again. An accepted
    batch and the final moves keep the full fsync. So does everything on Postgres: without it, commits of the last
    moments are in the server's own memory, and one of its processes that is killed takes them along.
    """
    if connection.vendor != "sqlite":
        yield
        return
    _execute(["PRAGMA synchronous=NORMAL", "PRAGMA busy_timeout=5000"])
    try:
        yield
    finally:
        # A connection that was lost meanwhile took its settings with it.
        if connection.connection is not None and connection.is_usable():
            _execute(["PRAGMA synchronous=FULL", "PRAGMA busy_timeout=20000"])


def _execute(statements: list[str]) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def retrying(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` gives, tried again while the database is locked or away, for RETRY_FOR_S; then its last error.

    `work` must be one transaction that can be run again.
    """
    ends_at = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            return work(*args, **kwargs)
        except (OperationalError, InterfaceError) as error:
            if time.monotonic() > ends_at:
                raise
            logger.warning("the database did not answer, trying again: %s", error)
            connection.close_if_unusable_or_obsolete()
            time.sleep(0.5)
