"""`manage.py create_api_key`: make a key; from the first key on, every call of the API needs one."""

import re
from argparse import ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from common import database
from common.models import ApiKey, Owner, Scope

LONGEST_NAME = 100
_UNITS = {"h": "hours", "d": "days"}


class Command(BaseCommand):
    help = "Create an API key and print it once. As soon as one exists, every call under /v1 and /api needs a key."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", type=_name, help="what the key is for, to tell keys apart")
        parser.add_argument(
            "--owner",
            type=_name,
            metavar="OWNER",
            help="whose files and batches it is for; made if there is none of this name (default: the first owner, "
            "who has what was made without a key)",
        )
        parser.add_argument(
            "--scopes",
            type=_scopes,
            default=(Scope.BATCHES, Scope.CHAT),
            help="what it may do, of batches, chat and admin, with commas between them (default: batches,chat)",
        )
        parser.add_argument(
            "--admin",
            action="store_true",
            help="it has the scope admin too: it may change the models of the model server, pause all batches, and "
            "read /metrics",
        )
        parser.add_argument("--expires", type=_length, metavar="90d", help="after so many hours or days: 12h, 90d")

    def handle(self, *args: Any, **options: Any) -> None:
        scopes = {*options["scopes"], *([Scope.ADMIN] if options["admin"] else [])}
        expires_at = database.now() + options["expires"] if options["expires"] else None
        try:
            owner = Owner.objects.get_or_create(name=options["owner"])[0] if options["owner"] else None
            _, secret = ApiKey.objects.make(options["name"], owner=owner, scopes=scopes, expires_at=expires_at)
        except DatabaseError as error:
            reason = str(error).strip().splitlines()[0]
            raise CommandError(
                f"The database cannot be used: {reason}. If it was never set up: python manage.py setup"
            ) from None
        self.stdout.write(secret)


def _name(text: str) -> str:
    if not text.strip() or len(text) > LONGEST_NAME or not text.isprintable():
        raise ArgumentTypeError(f"{text[:200]!r}: expected a name of 1 to {LONGEST_NAME} characters, on one line.")
    return text.strip()


def _scopes(text: str) -> tuple[Scope, ...]:
    names = [each.strip() for each in text.split(",") if each.strip()]
    if not names or set(names) - set(Scope.values):
        raise ArgumentTypeError(f"{text!r}: expected some of {', '.join(Scope.values)}, with commas between them.")
    return tuple(map(Scope, names))


def _length(text: str) -> timedelta:
    fits = re.fullmatch(r"([1-9][0-9]{0,4})([hd])", text)
    if fits is None:
        raise ArgumentTypeError(f"{text!r}: expected a number of hours or days, such as 12h or 90d.")
    return timedelta(**{_UNITS[fits[2]]: int(fits[1])})
