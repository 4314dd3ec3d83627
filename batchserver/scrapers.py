"""Who may read /metrics: anybody while there is no key, and an administrator from then on."""

from django.db import DatabaseError
from django.http import HttpRequest

from common.authentication import require, secret_of
from common.bounded import Bounded
from common.errors import ApiError
from common.models import ApiKey, Scope, digest_of

WITHIN_S = 2.0  # a monitor gives up after 10, and the figures take their time too


class Scrapers:
    """While the database does not answer, the keys are those of its last answer. Before the first answer anybody may
    look: then there are no figures but those of the process itself."""

    def __init__(self) -> None:
        self._ask = Bounded(ApiKey.objects.by_digest, within_s=WITHIN_S)
        self._known: dict[str, ApiKey] | None = None

    def refusal(self, request: HttpRequest) -> ApiError | None:
        """Why this request gets no figures; None if it does, by an administrator's key or session."""
        if getattr(getattr(request, "user", None), "is_superuser", False):
            return None
        is_there = True
        try:
            self._known = self._ask.ask()
        except (DatabaseError, TimeoutError):
            is_there = False
        if self._known is None:
            return None
        key = self._known.get(digest_of(secret_of(request)))
        if key is None:
            return ApiError(f"{_NEEDED}, and this is none." if secret_of(request) else f"{_NEEDED}.", status=401)
        if is_there:
            key.note_use()
        try:
            require(key, [Scope.ADMIN])
        except ApiError as error:
            return error
        return None


_NEEDED = "Once API keys exist, /metrics needs one of an administrator, as `Authorization: Bearer sk-…`"
