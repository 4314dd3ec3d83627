"""`Idempotency-Key`: a create that is sent twice with one key happens once, and both get the same answer."""

import hashlib
from collections.abc import Callable
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from common import errors
from common.models import ApiKey, RememberedAnswer

KEPT_FOR = timedelta(hours=24)
LONGEST_KEY = 255


def once(request: Request, asked: str, create: Callable[[], Response]) -> Response:
    """The answer of `create`, or the answer that the same key got within the last 24 hours.

    `asked` is the whole request, as text: the same key with another text is a 409. Without the header this is `create`.
    The key is stored in the transaction of what it creates. So a request that fails leaves no key behind, and the
    second of two at once waits for the first and gets its answer.
    """
    key = request.headers.get("Idempotency-Key", "")
    if not key:
        return create()
    if len(key) > LONGEST_KEY:
        raise errors.too_long("Idempotency-Key", key, LONGEST_KEY)
    fingerprint = hashlib.sha256(asked.encode()).hexdigest()
    scope = f"{request.path} {request.auth.pk if isinstance(request.auth, ApiKey) else ''}"
    forget_old()
    try:
        with transaction.atomic():
            row = RememberedAnswer.objects.create(scope=scope, key=key, fingerprint=fingerprint)
            response = create()
            row.body = response.data
            row.save(update_fields=["body"])
            return response
    except IntegrityError:
        remembered = RememberedAnswer.objects.filter(scope=scope, key=key).first()
        if remembered is None:
            raise
    if remembered.fingerprint != fingerprint:
        raise errors.conflict(
            f"The Idempotency-Key '{key}' was used for another request within the last 24 hours. Use a new key.",
            code="idempotency_key_reused",
        )
    return Response(remembered.body)


def forget_old() -> None:
    RememberedAnswer.objects.filter(created_at__lt=timezone.now() - KEPT_FOR).delete()
