"""Events for the operator's WEBHOOK_URL and for the address that an owner has: a row each, signed as Standard Webhooks
says, sent until they are accepted.

    lifecycle.move ── row ──> due ── reserve ──> sending ── 2xx ──> delivered
                               ^                    │ └── 410, or GIVEN_UP_AFTER is over ──> given up
                               └── anything else ───┘  after a growing backoff

Delivery is at least once: if a sender is killed before it has stored the answer, its row is sent again. The event's id
and every byte of its body stay the same, so a receiver can recognise it.
"""

import base64
import hmac
import json
import logging
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import requests
from django.conf import settings
from django.db import Error, connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from batches.models import Figures, WebhookDelivery
from batches.models.figures import NO_LABELS
from common import database
from common.database import from_now, retrying
from common.signing import key_of
from common.sockets import CONNECT_TIMEOUT_S, NotPublic, WatchedSocket, public_addresses, watched_pools

logger = logging.getLogger(__name__)

THREAD = "webhooks"
# Addresses to which one process sends at the same time.
MOST_AT_ONCE = 8
WARNING = "batch.warning"
DEADLINE_S = 20.0
# How long an event is reserved for one sender: longer than any attempt takes.
RESERVED_FOR = timedelta(seconds=60)
# After the first attempt, the second, and so on; the last value repeats.
BACKOFF_S = (5, 30, 120, 600, 1800, 3600, 7200)
GIVEN_UP_AFTER = timedelta(hours=24)
KEPT_FOR = timedelta(days=30)
FORGOTTEN_AT_ONCE = 1000


# Those too that wait for a WEBHOOK_URL which was taken away.
DUE = database.Asked(lambda: WebhookDelivery.objects.filter(next_at__lte=Now()))


def deliver_due() -> None:
    """Let threads of this process send due events, one thread for each address; returns at once.

    A target that does not answer holds up the events for its own address alone: its thread ends, and of more than
    MOST_AT_ONCE addresses those that are next are drawn by lot. For processes that do not fork. An event that becomes
    due while its thread is ending waits for the next call.
    """
    if not DUE.is_true():
        return
    addresses = WebhookDelivery.objects.all().due().addresses()
    running = {thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD)}
    names = {f"{THREAD} {'of all' if each is None else each}": each for each in addresses}
    waiting = sorted(names.keys() - running)
    for name in random.sample(waiting, max(0, min(len(waiting), MOST_AT_ONCE - len(running)))):
        threading.Thread(target=_deliver, args=(names[name],), name=name, daemon=True).start()


def _deliver(address: int | None) -> None:
    try:
        send_due(address)
    except Error as error:
        logger.warning("webhooks: the database did not answer: %s", error)
    finally:
        connection.close()


def send_due(address: int | None) -> None:
    """Send due events for one address, one after the other, until none is due or one was not taken. Safe to run in many
    processes at once.

    Raises the database's errors; the event that was being sent is sent again.
    """
    while delivery := retrying(_reserve, address):
        values = _send(delivery)
        retrying(_store, delivery, values)
        if not values.get("delivered_at"):
            return


def send_again(deliveries: QuerySet[WebhookDelivery]) -> None:
    """Make these events due, delivered or not. An event older than GIVEN_UP_AFTER gets a single attempt."""
    deliveries.update(next_at=Now())


def warn(batch_id: str, code: str, about: str) -> None:
    """Make the event batch.warning due, in the caller's transaction, if WEBHOOK_WARNINGS asks for it. Safe to run
    twice: there is one event for each code and what it is `about`, such as the end of the window."""
    if settings.WEBHOOK_WARNINGS:
        WebhookDelivery.announce(batch_id, WARNING, code, about)


def forget_old() -> None:
    """Forget events older than KEPT_FOR that are delivered or given up, FORGOTTEN_AT_ONCE at most."""
    over = WebhookDelivery.objects.filter(next_at=None, created_at__lt=database.now() - KEPT_FOR)
    WebhookDelivery.objects.filter(pk__in=list(over.values_list("pk", flat=True)[:FORGOTTEN_AT_ONCE])).delete()


def _reserve(address: int | None) -> WebhookDelivery | None:
    """The event for this address that has been due for longest, not due for others for RESERVED_FOR; None if none is
    due."""
    while delivery := WebhookDelivery.objects.all().due().to(address).order_by("next_at").first():
        unreserved = WebhookDelivery.objects.all().due().filter(pk=delivery.pk, attempts=delivery.attempts)
        delivery.attempts += 1
        if unreserved.update(attempts=delivery.attempts, next_at=from_now(RESERVED_FOR)):
            return delivery
    return None


def _store(delivery: WebhookDelivery, values: dict[str, Any]) -> None:
    """Store the result of an attempt, unless another sender has reserved the event since: its result is newer. Counts
    the attempt in Figures, since old deliveries are deleted."""
    with transaction.atomic():
        stored = WebhookDelivery.objects.filter(pk=delivery.pk, attempts=delivery.attempts).update(**values)
        delivered = int(bool(stored and values.get("delivered_at")))
        counts = {"webhook_attempts": {NO_LABELS: 1}, "webhooks_delivered": {NO_LABELS: delivered}}
        Figures.add(Figures.WEBHOOKS, counts)


def _send(delivery: WebhookDelivery) -> dict[str, Any]:
    """One attempt; the new values of the row. Neither the row nor the log has the URL, which may contain a key."""
    target = Target.of(delivery)
    if not target.url:
        return _given_up(delivery, "its owner has no address any more")
    try:
        status, wait_s = _post(delivery, target)
    except _TooSlow:
        return _again(delivery, f"no answer within {DEADLINE_S:g} s")
    except NotPublic:
        return _again(delivery, "the address is none of the internet (OWNER_WEBHOOKS_TO_PRIVATE_ADDRESSES)")
    except (requests.RequestException, HTTPError, ValueError, OSError) as error:
        return _again(delivery, f"no answer ({_kind(error)})")
    if 200 <= status < 300:
        logger.info("%s: %s was delivered", delivery.batch_id, delivery.event)
        return {"next_at": None, "delivered_at": database.now(), "last_error": ""}
    if status == 410:
        return _given_up(delivery, "HTTP 410")
    return _again(delivery, f"HTTP {status}", wait_s)


def _again(delivery: WebhookDelivery, problem: str, wait_s: float = 0.0) -> dict[str, Any]:
    backoff_s = BACKOFF_S[min(delivery.attempts, len(BACKOFF_S)) - 1] * random.uniform(0.75, 1.25)
    backoff = timedelta(seconds=max(backoff_s, min(wait_s, BACKOFF_S[-1])))
    if database.now() + backoff > delivery.created_at + GIVEN_UP_AFTER:
        return _given_up(delivery, problem)
    logger.warning("%s: %s was not delivered: %s", delivery.batch_id, delivery.event, problem)
    return {"next_at": from_now(backoff), "last_error": problem}


def _given_up(delivery: WebhookDelivery, problem: str) -> dict[str, Any]:
    logger.error("%s: %s is given up: %s", delivery.batch_id, delivery.event, problem)
    return {"next_at": None, "last_error": f"{problem}; given up"}


def _kind(error: Exception) -> str:
    """The name of the error that requests wrapped: NameResolutionError says more than ConnectionError."""
    cause = error.args[0] if error.args else None
    return type(getattr(cause, "reason", None) or error).__name__


# The request


@dataclass(frozen=True)
class Target:
    """Where an event goes. An owner's address may name a server of the machine's own network by mistake, or on purpose:
    it has to be one of the internet, unless the settings allow others."""

    url: str
    secret: str
    is_checked: bool

    @classmethod
    def of(cls, delivery: WebhookDelivery) -> "Target":
        if not delivery.is_for_owner:
            return cls(settings.WEBHOOK_URL, settings.WEBHOOK_SECRET, is_checked=False)
        owner = delivery.batch.owner
        is_checked = not settings.OWNER_WEBHOOKS_TO_PRIVATE_ADDRESSES
        return cls(owner.webhook_url, owner.webhook_secret, is_checked)


def _content(delivery: WebhookDelivery) -> bytes:
    event = {
        "id": delivery.pk,
        "object": "event",
        "type": delivery.event,
        "created_at": int(delivery.created_at.timestamp()),
        "data": {"id": delivery.batch_id},
    }
    return json.dumps(event).encode("ascii")


def _signature(secret: str, event_id: str, timestamp: str, content: bytes) -> str:
    signed = f"{event_id}.{timestamp}.".encode() + content
    return "v1," + base64.b64encode(hmac.digest(key_of(secret), signed, "sha256")).decode()


def _post(delivery: WebhookDelivery, target: Target) -> tuple[int, float]:
    """The target's status, and the seconds that it asks to wait. The body is not read, and no redirect followed.

    Raises _TooSlow, requests' own errors or OSError.
    """
    content = _content(delivery)
    timestamp = str(int(database.now().timestamp()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "ollama-batch-server",
        "webhook-id": delivery.pk,
        "webhook-timestamp": timestamp,
        "webhook-signature": _signature(target.secret, delivery.pk, timestamp, content),
    }
    # Without a session: the environment (a proxy, a .netrc) has no effect.
    request = requests.Request("POST", target.url, headers, data=content).prepare()
    sock = WatchedSocket()
    with _Deadline(sock):
        adapter = _WatchedAdapter(sock, addresses=_checked_addresses(request.url) if target.is_checked else ())
        try:
            with adapter.send(request, stream=True, timeout=(CONNECT_TIMEOUT_S, None)) as response:
                wait = response.headers.get("Retry-After", "")
                return response.status_code, float(wait) if wait.isascii() and wait.isdigit() else 0.0
        finally:
            adapter.close()


def _checked_addresses(url: str | None) -> list[str]:
    """The addresses to connect to. Raises NotPublic, or OSError if the name stands for none."""
    found = parse_url(url or "")
    port = found.port or (443 if found.scheme == "https" else 80)
    return public_addresses((found.host or "").strip("[]"), port)


class _WatchedAdapter(HTTPAdapter):
    """Gives `sock` the connection of the one request that it sends."""

    def __init__(self, sock: WatchedSocket, *, addresses: Sequence[str]) -> None:
        self._socket = sock
        self._addresses = addresses
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = watched_pools(self._socket.connected, addresses=self._addresses)


class _TooSlow(Exception):
    pass


class _Deadline:
    """Shuts the socket of the request in the block after DEADLINE_S; the block then raises _TooSlow.

    A timeout of `requests` is no deadline: it starts anew with each byte that arrives.
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
            # The answer may be cut off.
            raise _TooSlow
