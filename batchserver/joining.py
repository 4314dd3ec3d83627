"""What must hold before parts of a server start without the part control: they join a server that has it.

A worker with a database or a broker of its own would wait for ever for batches that nobody can give it, so it does not
start, and the person who starts it is told what to set. docs/second-machine.md has the whole way.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection

from batchserver import first_start
from batchserver.celery import app, ask_broker
from common import schema
from files_api import storage, storage_id

PAGE = "docs/second-machine.md"


def check(parts: Sequence[str], *, beside_server: bool) -> None:
    """Raise ImproperlyConfigured, with what to set, if these parts cannot join a server.

    `beside_server`: a server runs here with the same DATA_DIR, whose SQLite and embedded broker they share. Safe to
    run again.
    """
    if missing := [] if beside_server else _of_their_own():
        raise ImproperlyConfigured(
            f"{' and '.join(parts)} alone would have {' and '.join(what for _, what in missing)} of its own, which no "
            f"other part of the server uses. Set {' and '.join(how for how, _ in missing)}, as the server that it "
            f"joins has them; or start that server first, if it is on this machine with DATA_DIR={settings.DATA_DIR}. "
            f"See {PAGE}."
        )
    for reason in (_database_trouble, _broker_trouble, _storage_trouble):
        if told := reason():
            raise ImproperlyConfigured(told)
    first_start.settle_storage()


def described() -> list[tuple[str, str]]:
    """What the parts use of the server that they joined, for the person who starts them: name and place, without
    passwords."""
    return [("Database", _database()), ("Broker", app.connection_for_write().as_uri())]


def unreachable_backend() -> str:
    """Why persons' chats do not come to our model server from other machines, and what to set; empty if they may."""
    if not settings.BACKEND_IS_LOCAL:
        return ""
    ports = [f":{port}" if (port := urlsplit(url).port) else "" for url in settings.BACKEND_URL.split(",")]
    setting = "OLLAMA_BASE_URL" if settings.BACKEND_IS_OLLAMA else "BACKEND_URL"
    listening = " (OLLAMA_HOST=0.0.0.0 in Ollama's environment)" if settings.BACKEND_IS_OLLAMA else ""
    return (
        f"lines of batches alone: {settings.BACKEND_URL} is an address of this machine alone. For chats from elsewhere "
        f"set {setting} to {','.join(f'http://ADDRESS-OF-THIS-MACHINE{port}' for port in ports)}, and let the model "
        f"server listen there{listening}."
    )


def _of_their_own() -> list[tuple[str, str]]:
    """What these parts would have of their own: how to set it, and what it is."""
    found = []
    if connection.vendor == "sqlite":
        found.append(("DATABASE_URL (postgres://user:password@host/name)", "a SQLite database"))
    if settings.EMBEDDED_BROKER:
        found.append(("CELERY_BROKER_URL (redis://:password@host:6379/0)", "a broker"))
    return found


def _database() -> str:
    named = connection.settings_dict
    host = named.get("HOST") or ""
    return f"{connection.vendor} {f'{host}/' if host else ''}{named['NAME']}"


def _database_trouble() -> str:
    try:
        reason = schema.trouble() or ""
    except DatabaseError as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        return (
            f"The database ({_database()}) cannot be used: {told[0]} Check DATABASE_URL, and that the database lets "
            "this machine in."
        )
    if reason == schema.OLDER:
        return (
            "The database is older than this code. Update the machine that runs the part control first: its start "
            "brings the database up to date."
        )
    return reason


def _broker_trouble() -> str:
    try:
        ask_broker()
    except Exception as error:  # noqa: BLE001  (each transport has errors of its own; a text may hold a password)
        place = app.connection_for_write().as_uri()
        return (
            f"The broker ({place}) does not answer ({type(error).__name__}). Check CELERY_BROKER_URL, and that the "
            "broker listens for this machine."
        )
    return ""


def _storage_trouble() -> str:
    if reason := storage.why_not_writable():
        return f"{reason} The files are in {storage_id.where()}, which every machine of a server has to share."
    return ""
