"""How many requests a minute an owner may send. Each web process asks the owner's row, so there is one count of all."""

from typing import Any

from django.db.models import Case, F, Q, Value, When
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from common import database, errors
from common.database import relaxed_commits
from common.middleware import LIMIT_HEADERS
from common.models import Owner
from common.owners import owner_of

MINUTE_S = 60.0


class RequestsPerMinute(BaseThrottle):
    """Raises a 429 for an owner whose requests of the last minute reach the limit. Without a limit nothing is stored.

    Each request uses the rate up for its part of a minute (GCRA): as many as the limit may come at once, and then one
    whenever such a part is over. A request that is refused uses nothing up. Any restart finds the row as it was.
    """

    def allow_request(self, request: Request, view: Any) -> bool:
        owner = owner_of(request)
        limit = owner.limit("requests_per_minute")
        if limit is None:
            return True
        now = database.now().timestamp()
        was_taken, until = _take(owner, MINUTE_S / limit, now)
        left = int((now + MINUTE_S - until) * limit / MINUTE_S + 0.01)
        headers = {
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(max(0, left)),
            "x-ratelimit-reset-requests": _duration(max(0.0, until - now)),
        }
        setattr(request._request, LIMIT_HEADERS, headers)
        if not was_taken:
            wait_s = max(0.0, until + MINUTE_S / limit - MINUTE_S - now)
            raise errors.too_many_requests(
                f"Rate limit reached for requests per minute (RPM) of '{owner.name}': Limit {limit}. Please try again "
                f"in {_duration(wait_s)}.",
                retry_after_s=wait_s,
            )
        return True


def _take(owner: Owner, each_s: float, now: float) -> tuple[bool, float]:
    """Whether the request fits in, and the time until which all so far use the rate up. In one UPDATE, so that of many
    at once as many fit as may."""
    # A stamp beyond two minutes is from before the clock went back.
    is_old = Q(requests_until__lte=now) | Q(requests_until__gt=now + 2 * MINUTE_S)
    fits = is_old | Q(requests_until__lte=now + MINUTE_S - each_s * 0.99)
    begins = Case(When(is_old, then=Value(now)), default=F("requests_until"))
    rows = Owner.objects.filter(pk=owner.pk)
    with relaxed_commits():
        was_taken = rows.filter(fits).update(requests_until=begins + each_s) == 1
    return was_taken, rows.values_list("requests_until", flat=True).get()


def _duration(seconds: float) -> str:
    """As OpenAI writes one: 120ms, 7.66s, 1m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.2f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{text}s" if minutes else f"{text}s"
