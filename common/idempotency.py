"""`Idempotency-Key`: a create that is sent twice with one key happens once, and both get the same answer."""

import hashlib
from collections.abc import Callable

from django.db import IntegrityError, transaction
from rest_framework.request import Request
from rest_framework.response import Response

from common import database, errors
from common.models import Owner, RememberedAnswer
from common.owners import owner_of

LONGEST_KEY = 255


def once(request: Request, asked: str, create: Callable[[], Response]) -> Response:
    """The answer of `create`, or the answer that the same key got within the last 24 hours.

    `asked` is the whole request, as text: the same key with another text is a 409. Without the header this is `create`.
    The key is stored in the transaction of what it creates. So a request that fails leaves no key behind, and the
    second of two at once waits for the first and gets its answer: `create` stores rows and nothing else. What takes
    long, such as bytes of a file, is made ready before, and taken back if `create` was not called.
    """
    key = _key(request)
    if not key:
        return create()
    RememberedAnswer.forget_old()
    try:
        with transaction.atomic():
            row = RememberedAnswer.objects.create(scope=_scope(request), key=key, fingerprint=_fingerprint(asked))
            response = create()
            row.body = response.data
            row.save(update_fields=["body"])
            return response
    except IntegrityError:
        remembered = answered(request, asked)
        if remembered is None:
            raise
        return remembered


def is_repeated(request: Request) -> bool:
    """The key of this request got an answer before, whatever was asked then; for what is decided before the request is
    read whole."""
    return _remembered(request) is not None


def answered(request: Request, asked: str) -> Response | None:
    """The answer that the key of this request got before, if any; for creates that prepare at length what they store.

    Raises a 409 if the key came with another text.
    """
    remembered = _remembered(request)
    if remembered is None:
        return None
    if remembered.fingerprint != _fingerprint(asked):
        raise errors.conflict(
            f"The Idempotency-Key '{remembered.key}' was used for another request within the last 24 hours. Use a new "
            "key.",
            code="idempotency_key_reused",
        )
    return Response(remembered.body)


def _remembered(request: Request) -> RememberedAnswer | None:
    key = _key(request)
    if not key:
        return None
    newer = RememberedAnswer.objects.filter(created_at__gte=database.now() - RememberedAnswer.KEPT_FOR)
    return newer.filter(scope=_scope(request), key=key).first()


def _key(request: Request) -> str:
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > LONGEST_KEY:
        raise errors.too_long("Idempotency-Key", key, LONGEST_KEY)
    return key


def _scope(request: Request) -> str:
    """The address and whose request it is. An owner's keys are one client, which may change its key between tries."""
    owner = owner_of(request)
    return f"{request.path} " + ("" if owner.pk == Owner.FIRST else f"owner {owner.pk}")


def _fingerprint(asked: str) -> str:
    return hashlib.sha256(asked.encode()).hexdigest()
