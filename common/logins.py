"""Who may try a password, and how often, before it is hashed: one hash takes a core for a third of a second.

The counts are in memory: there is one web process (`batchserver/settings.py`), and no full disk or locked database lets
guessers go on. OWASP's device cookies are the source of the rule for browsers that are known.
"""

import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import admin
from django.core import signing
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponseBase

from common.addresses import ip_of, is_among, network_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.contrib.admin.forms import AdminAuthenticationForm as AuthenticationForm
else:
    from unfold.forms import AuthenticationForm

WITHIN_S = 300.0
# Failed attempts within WITHIN_S: for one name from one address, for all names from one address, and for one name from
# anywhere.
OF_BOTH, OF_ADDRESS, OF_NAME = 10, 30, 100
MOST_KEYS = 20_000
# Passwords that are hashed at once, and those that may wait for it, in places of requests. More are told to come again.
HASHED, WAITING, AGAIN_S = 2, 2, 2
KNOWN = "known_browser"  # the cookie
KNOWN_FOR_S = 365 * 86_400

Key = tuple[str, ...]


class Attempts:
    """When each key failed lately. For several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._failed: dict[Key, deque[float]] = {}

    def begin(self, limits: Sequence[tuple[Key, int]]) -> float:
        """Count an attempt as failed for all these keys, and return 0; or count nothing, and return the seconds until
        one may be made."""
        now = self.clock()
        with self._lock:
            wait_s = max((self._wait_s(key, limit, now) for key, limit in limits), default=0.0)
            if wait_s <= 0:
                for key, _ in limits:
                    self._failed.setdefault(key, deque()).append(now)
                if len(self._failed) > MOST_KEYS:
                    self._forget(now)
        return max(0.0, wait_s)

    def succeeded(self, limits: Sequence[tuple[Key, int]]) -> None:
        """The attempt that these keys began was a good one. The first of them starts anew."""
        with self._lock:
            for number, (key, _) in enumerate(limits):
                failed = self._failed.get(key)
                if failed and number:
                    failed.pop()
                else:
                    self._failed.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._failed.clear()

    def _wait_s(self, key: Key, limit: int, now: float) -> float:
        failed = self._failed.get(key, deque())
        while failed and failed[0] <= now - WITHIN_S:
            failed.popleft()
        return failed[-limit] + WITHIN_S - now if len(failed) >= limit else 0.0

    def _forget(self, now: float) -> None:
        """Keep what is not over yet; of too much of it those who failed most often. A guesser who comes with ever new
        names or addresses fails once under each."""
        recent = {key: failed for key, failed in self._failed.items() if failed and failed[-1] > now - WITHIN_S}
        if len(recent) > MOST_KEYS // 2:
            most = sorted(recent, key=lambda key: len(recent[key]), reverse=True)[: MOST_KEYS // 2]
            recent = {key: recent[key] for key in most}
        self._failed = recent


ATTEMPTS = Attempts()
_places, _hashing = threading.BoundedSemaphore(HASHED + WAITING), threading.BoundedSemaphore(HASHED)


class LoginForm(AuthenticationForm):
    """The admin's form, which refuses before it looks at the password."""

    def clean(self) -> dict[str, Any]:
        name = str(self.cleaned_data.get("username") or "")
        if not name or not self.cleaned_data.get("password"):
            return super().clean()
        assert self.request is not None
        limits = _limits(self.request, name.casefold())
        with _place_to_hash() as is_free:
            wait_s = ATTEMPTS.begin(limits) if is_free else AGAIN_S
            if wait_s:
                raise _too_many(self.request, math.ceil(wait_s))
            with _hashing:
                cleaned = super().clean()
        ATTEMPTS.succeeded(limits)
        return cleaned


def login(request: HttpRequest) -> HttpResponseBase:
    """The admin's page; a 429 for who tries too often. Who logs in has a browser that is known afterwards."""
    response = admin.site.login(request)
    if again_s := getattr(request, "login_again_s", 0):
        response.status_code = HTTPStatus.TOO_MANY_REQUESTS
        response["Retry-After"] = str(again_s)
    elif request.method == "POST" and response.status_code == HTTPStatus.FOUND:
        known = signing.dumps([request.user.get_username().casefold(), secrets.token_urlsafe(9)], salt=KNOWN)
        response.set_cookie(
            KNOWN,
            known,
            max_age=KNOWN_FOR_S,
            path=request.path,
            secure=settings.SESSION_COOKIE_SECURE,
            httponly=True,
            samesite="Strict",
        )
    return response


def client_address(request: HttpRequest) -> str:
    """Where a request comes from. A trusted proxy says so in X-Forwarded-For, whose last address that is no such proxy
    counts: what stands before it is the client's own claim."""
    address = request.META.get("REMOTE_ADDR", "")
    for claimed in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
        if not claimed.strip() or not _is_trusted(address):
            break
        address = _without_port(claimed.strip())
    return str(address)


def _without_port(address: str) -> str:
    """Some proxies name the client's port too, which is another one for each connection."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, _ = address.rpartition(":")
    return host if colon and ":" not in host else address


def _is_trusted(address: str) -> bool:
    found = ip_of(address)
    if found is None:
        return False
    return (settings.BEHIND_TLS and found.is_loopback) or is_among(found, settings.TRUSTED_PROXIES)


def _limits(request: HttpRequest, name: str) -> list[tuple[Key, int]]:
    """What is counted for an attempt. A known browser counts alone: whoever guesses beside it, or from everywhere, does
    not keep its owner out."""
    if browser := _known_browser(request, name):
        return [(("browser", browser), OF_BOTH)]
    address = _network(client_address(request))
    return [
        (("both", address, name), OF_BOTH),
        (("address", address), OF_ADDRESS),
        (("name", name), OF_NAME),
    ]


def _known_browser(request: HttpRequest, name: str) -> str:
    try:
        known_name, browser = signing.loads(request.COOKIES.get(KNOWN, ""), salt=KNOWN, max_age=KNOWN_FOR_S)
    except (signing.BadSignature, ValueError):
        return ""
    return str(browser) if known_name == name else ""


def _network(address: str) -> str:
    found = ip_of(address)
    return address[:100] if found is None else network_of(found)


@contextmanager
def _place_to_hash() -> "Iterator[bool]":
    is_free = _places.acquire(blocking=False)
    try:
        yield is_free
    finally:
        if is_free:
            _places.release()


def _too_many(request: HttpRequest, again_s: int) -> ValidationError:
    request.login_again_s = again_s  # type: ignore[attr-defined]  # for `login`, which answers
    return ValidationError(f"Too many attempts. Try again in {again_s} seconds.", code="too_many")
