"""What the first start makes: tables, and an administrator. Safe to run at every start, and by several at once."""

import secrets

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import IntegrityError, transaction

ADMIN_NAME = "admin"


def prepare(*, with_admin: bool = True) -> str | None:
    """Bring the database up to date; the new administrator's password if one was made, else None."""
    call_command("migrate", verbosity=0, interactive=False)
    users = get_user_model().objects
    if not with_admin or users.filter(is_superuser=True).exists():
        return None
    password = secrets.token_urlsafe(12)
    try:
        with transaction.atomic():
            users.create_superuser(ADMIN_NAME, password=password)
    except IntegrityError:
        return None  # another first start was faster
    return password
