"""What the first start makes: directories, the secret key, the instance's name, tables, and an administrator.

Safe to run at every start, and by several processes at once.
"""

import secrets
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import IntegrityError, transaction

from batchserver import installation, private
from common import disk
from common.models import ApiKey
from files_api import storage_id

ADMIN_NAME = "admin"
# No directory of ours has one of these in it.
SHARED = tuple(map(Path, ("/etc", "/home", "/root", "/tmp", "/usr", "/var/lib", "/var/tmp")))


def make_directories() -> None:
    """Make DATA_DIR and the directories of files, if missing, and see that this user alone gets into them. Raises
    ImproperlyConfigured."""
    holds_others = any(each.is_relative_to(settings.DATA_DIR) for each in SHARED)
    # The home of a user of a service's own is often its DATA_DIR, and lies elsewhere.
    is_a_persons_home = settings.DATA_DIR.parent == Path("/home")
    if holds_others or is_a_persons_home or settings.DATA_DIR == settings.BASE_DIR:
        raise ImproperlyConfigured(
            f"DATA_DIR={str(settings.DATA_DIR)!r}: expected a directory of its own, which is closed to other users."
        )
    private.from_now_on()
    try:
        # Each by itself: `parents` makes parents without the mode.
        for directory in (settings.DATA_DIR, settings.FILES_DIR, settings.UPLOAD_DIR):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(f"DATA_DIR={str(settings.DATA_DIR)!r} cannot be used: {error.strerror}.") from error
    private.make(settings.DATA_DIR)


def who_may_call() -> str:
    """Who may call the API, for the person who starts the server; empty if there is nothing to say: keys are needed, or
    other machines do not reach us."""
    if not settings.IS_OPEN_TO_OTHERS or ApiKey.objects.exists():
        return ""
    if settings.ALLOW_ANONYMOUS:
        return "Everybody who reaches this server may use /v1 and /api: ALLOW_ANONYMOUS=True, and no API key."
    return (
        "While there is no API key, /v1 and /api answer this machine alone. Make a key, which works at once: "
        f"{installation.manage('create_api_key NAME', settings.DATA_DIR)}"
    )


def settle_storage(*, take: bool = False) -> None:
    """See that the storage of files is that of the database, or make it so. `take`: whatever it lacks. Raises
    ImproperlyConfigured, with what to do."""
    try:
        storage_id.take() if take else storage_id.settle()
    except storage_id.WrongStorage as error:
        raise ImproperlyConfigured(storage_id.at_start(error)) from error
    except OSError as error:
        raise ImproperlyConfigured(f"The storage of files cannot be used: {disk.trouble(error)}") from error


def prepare(*, with_admin: bool = True, take_storage: bool = False) -> str | None:
    """Make what is missing and bring the database up to date; the new administrator's password if one was made.

    `take_storage`: let the storage be that of the database, whatever it lacks. Raises ImproperlyConfigured.
    """
    make_directories()
    # Made here if they are missing, before any other process needs them.
    try:
        str(settings.SECRET_KEY), str(settings.INSTANCE_ID)
    except OSError as error:
        raise ImproperlyConfigured(f"{error.strerror}.") from error
    call_command("migrate", verbosity=0, interactive=False)
    settle_storage(take=take_storage)
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
