"""Events to the operator's WEBHOOK_URL: a row each, signed as Standard Webhooks says, sent until they are taken.

    lifecycle.move ── row ──> due ── claim ──> sending ── 2xx ──> delivered
                               ^                  │ └── 410, or the day is over ──> given up
                               └── anything else ─┘  later each time

At least once: a sender that is killed before it stored the answer leaves a row that is sent again. The event's id and
every byte of its body stay the same, so a receiver can tell.
"""

import base64
import hmac
import json
import logging
import random
import threading
import time
from datetime import timedelta
from typing import Any

import requests
from django.conf import settings
from django.db import Error, connection
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from batches.models import WebhookDelivery
from common.database import from_now, retrying
from common.sockets import CONNECT_TIMEOUT_S, WatchedSocket, watched_pools

logger = logging.getLogger(__name__)

THREAD = "webhooks"
DEADLINE_S = 20.0
# How long a claim keeps others off: longer than any attempt takes.
CLAIMED_FOR = timedelta(seconds=60)
# After the first attempt, the second, and so on; the last one from there on.
BACKOFF_S = (5, 30, 120, 600, 1800, 3600, 7200)
GIVEN_UP_AFTER = timedelta(hours=24)


def deliver_due() -> None:
    """Let a thread of this process send what is due, one thread at most; returns at once.

    For processes that do not fork. What comes while the thread is ending waits for the next call.
    """
    if not settings.WEBHOOK_URL or not WebhookDelivery.objects.all().due().exists():
        return
    if not any(thread.name == THREAD for thread in threading.enumerate()):
        threading.Thread(target=_deliver, name=THREAD, daemon=True).start()


def _deliver() -> None:
    try:
        send_due()
    except Error as error:
        logger.warning("webhooks: the database did not answer: %s", error)
    finally:
        connection.close()


def send_due() -> None:
    """Send what is due, one event after the other, until nothing is. Safe to run in many processes at once.

    Raises the database's errors; what was being sent then is sent again.
    """
    while settings.WEBHOOK_URL and (delivery := retrying(_claim)):
        retrying(_store, delivery, _send(delivery))


def send_again(deliveries: QuerySet[WebhookDelivery]) -> None:
    """Make them due, whatever became of them. One that is older than a day gets a single attempt."""
    deliveries.update(next_at=Now())


def _claim() -> WebhookDelivery | None:
    """What has been due for longest, not due for others until CLAIMED_FOR is over; None if nothing is due."""
    while delivery := WebhookDelivery.objects.all().due().order_by("next_at").first():
        unclaimed = WebhookDelivery.objects.all().due().filter(pk=delivery.pk, attempts=delivery.attempts)
        delivery.attempts += 1
        if unclaimed.update(attempts=delivery.attempts, next_at=from_now(CLAIMED_FOR)):
            return delivery
    return None


def _store(delivery: WebhookDelivery, values: dict[str, Any]) -> None:
    """Nothing is stored if the claim ran out and somebody else has it: theirs is the newer word."""
    WebhookDelivery.objects.filter(pk=delivery.pk, attempts=delivery.attempts).update(**values)


def _send(delivery: WebhookDelivery) -> dict[str, Any]:
    """One attempt; the new values of the row. Neither they nor the log hold the URL, which may contain a key."""
    try:
        status, wait_s = _post(delivery)
    except _TooSlow:
        return _again(delivery, f"no answer within {DEADLINE_S:g} s")
    except (requests.RequestException, HTTPError, ValueError, OSError) as error:
        return _again(delivery, f"no answer ({_kind(error)})")
    if 200 <= status < 300:
        logger.info("%s: %s was delivered", delivery.batch_id, delivery.event)
        return {"next_at": None, "delivered_at": timezone.now(), "last_error": ""}
    if status == 410:
        return _given_up(delivery, "HTTP 410")
    return _again(delivery, f"HTTP {status}", wait_s)


def _again(delivery: WebhookDelivery, problem: str, wait_s: float = 0.0) -> dict[str, Any]:
    backoff_s = BACKOFF_S[min(delivery.attempts, len(BACKOFF_S)) - 1] * random.uniform(0.75, 1.25)
    backoff = timedelta(seconds=max(backoff_s, min(wait_s, BACKOFF_S[-1])))
    if timezone.now() + backoff > delivery.created_at + GIVEN_UP_AFTER:
        return _given_up(delivery, problem)
    logger.warning("%s: %s was not delivered: %s", delivery.batch_id, delivery.event, problem)
    return {"next_at": from_now(backoff), "last_error": problem}


def _given_up(delivery: WebhookDelivery, problem: str) -> dict[str, Any]:
    logger.error("%s: %s is given up: %s", delivery.batch_id, delivery.event, problem)
    return {"next_at": None, "last_error": f"{problem}; given up"}


def _kind(error: Exception) -> str:
    """The name of what went wrong below requests' own wrapping: NameResolutionError says more than ConnectionError."""
    cause = error.args[0] if error.args else None
    return type(getattr(cause, "reason", None) or error).__name__


# The request


def _content(delivery: WebhookDelivery) -> bytes:
    event = {
        "id": delivery.pk,
        "object": "event",
        "type": delivery.event,
        "created_at": int(delivery.created_at.timestamp()),
        "data": {"id": delivery.batch_id},
    }
    return json.dumps(event).encode("ascii")


def _signature(event_id: str, timestamp: str, content: bytes) -> str:
    key = base64.b64decode(settings.WEBHOOK_SECRET.removeprefix("whsec_"))
    signed = f"{event_id}.{timestamp}.".encode() + content
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def _post(delivery: WebhookDelivery) -> tuple[int, float]:
    """The target's status, and the seconds that it asks to wait. Its body is not read, and no redirect followed.

    Raises _TooSlow, requests' own errors or OSError.
    """
    content = _content(delivery)
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "ollama-batch-server",
        "webhook-id": delivery.pk,
        "webhook-timestamp": timestamp,
        "webhook-signature": _signature(delivery.pk, timestamp, content),
    }
    # Without a session: nothing of the environment, such as a proxy or a .netrc, comes in.
    request = requests.Request("POST", settings.WEBHOOK_URL, headers, data=content).prepare()
    sock = WatchedSocket()
    with _Deadline(sock):
        adapter = _WatchedAdapter(sock)
        try:
            with adapter.send(request, stream=True, timeout=(CONNECT_TIMEOUT_S, None)) as response:
                wait = response.headers.get("Retry-After", "")
                return response.status_code, float(wait) if wait.isascii() and wait.isdigit() else 0.0
        finally:
            adapter.close()


class _WatchedAdapter(HTTPAdapter):
    """Tells `sock` of the connection of the one request that it sends."""

    def __init__(self, sock: WatchedSocket) -> None:
        self._socket = sock
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = watched_pools(self._socket.connected)


class _TooSlow(Exception):
    pass


class _Deadline:
    """Shuts the socket of the request inside after DEADLINE_S, wherever it stands: _TooSlow comes out of it then.

    A timeout of requests' starts anew with each byte that arrives.
    """

    def __init__(self, sock: WatchedSocket) -> None:
        self._socket = sock
        self._timer = threading.Timer(DEADLINE_S, sock.shut)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._socket.is_shut:
            # Whatever was read until then may be half of it.
            raise _TooSlow
