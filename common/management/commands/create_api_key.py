"""`manage.py create_api_key`: make a key; from the first key on, every call of the API needs one."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from common.models import ApiKey


class Command(BaseCommand):
    help = "Create an API key and print it once. As soon as one exists, every call under /v1 and /api needs a key."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what the key is for, to tell keys apart in the admin")
        parser.add_argument(
            "--admin", action="store_true", help="it may also pull, create, copy and delete models of the model server"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            _, secret = ApiKey.objects.make(options["name"], is_admin=options["admin"])
        except DatabaseError as error:
            reason = str(error).strip().splitlines()[0]
            raise CommandError(
                f"The database cannot be used: {reason}. If it was never set up: python manage.py setup"
            ) from None
        self.stdout.write(secret)
