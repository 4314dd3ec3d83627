"""`manage.py setup`: what `serve` does first, for deployments that start the processes themselves."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from batchserver import first_start


class Command(BaseCommand):
    help = "Create or update the database, and an administrator if there is none; prints the new password once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--take-storage",
            action="store_true",
            help="use the storage of files as it is, if it is not the one that the database had: files that it lacks "
            "are lost",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        password = first_start.prepare(take_storage=options["take_storage"])
        self.stdout.write("The database is up to date.")
        if told := first_start.who_may_call():
            self.stdout.write(told)
        if password:
            self.stdout.write(f"Administrator: {first_start.ADMIN_NAME}, password {password} (shown only this once)")
