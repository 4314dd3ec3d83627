"""Whose rows a request may see. Every row that a view shows, changes or names comes from `rows`, and from nowhere else
(tests/common/test_owners.py), so another owner's row is the same to a client as one that does not exist."""

from typing import Any, TypeVar

from django.db.models import QuerySet
from rest_framework.request import Request

from common.models import ApiKey, Owner

Rows = TypeVar("Rows", bound=QuerySet[Any])


def owner_of(request: Request) -> Owner:
    """The owner of the request's key; the first owner if no key is needed."""
    if isinstance(request.auth, ApiKey):
        owner: Owner = request.auth.owner
        return owner
    known = getattr(request._request, "first_owner", None)
    if known is None:
        known = request._request.first_owner = Owner.objects.first_one()  # type: ignore[attr-defined]  # kept for this request
    return known


def rows(request: Request, among: Rows) -> Rows:
    """Of these rows, those that the request may see: its owner's. An administrator's key is for the server, and sees no
    more; the admin's pages show all rows."""
    return among.filter(owner=owner_of(request))
