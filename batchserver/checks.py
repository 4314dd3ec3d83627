"""System checks: what `manage.py check` says about this machine."""

import sqlite3
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.files.storage import default_storage
from django.db import connection

from common.disk import RemoteError

FIXED = (3, 51, 3)
BACKPORTED = ((3, 44, 6), (3, 50, 7))


@register(Tags.database)
def sqlite_has_the_wal_reset_fix(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Warn if SQLite can corrupt a WAL database written by two processes (sqlite.org/wal.html#walresetbug)."""
    version = sqlite3.sqlite_version_info
    backported = any(version[:2] == fixed[:2] and version >= fixed for fixed in BACKPORTED)
    if connection.vendor != "sqlite" or version >= FIXED or backported:
        return []
    return [
        Warning(
            f"SQLite {sqlite3.sqlite_version} can lose writes when two processes write a WAL database at once.",
            hint="Install pysqlite3 0.6.1 or newer, which brings SQLite 3.53, or set DATABASE_URL to Postgres.",
            id="batchserver.W001",
        )
    ]


@register(Tags.security, deploy=True)
def others_reach_it_by_tls(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Warn if keys, prompts and the admin's password cross a network as they are."""
    if settings.BEHIND_TLS or not settings.IS_OPEN_TO_OTHERS:
        return []
    return [
        Warning(
            "Other machines reach the server without TLS: keys, prompts and passwords cross the network unencrypted.",
            hint="Put a TLS proxy in front, let the server listen on loopback alone, and set BEHIND_TLS=True.",
            id="batchserver.W002",
        )
    ]


@register(Tags.files)
def the_bucket_can_be_used(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """An error if S3 refuses what the server needs, so no command starts; a warning if it is away, which may pass."""
    if not settings.AWS_STORAGE_BUCKET_NAME:
        return []
    storage: Any = default_storage
    error = storage.trouble_at_start()
    if not isinstance(error, RemoteError):
        return []
    if error.is_of_settings:
        return [Error(f"{error.strerror}.", hint=f"{error.advice}.", id="batchserver.E001")]
    return [Warning(f"{error.strerror}.", hint=f"{error.advice}. Batches wait for it.", id="batchserver.W003")]
