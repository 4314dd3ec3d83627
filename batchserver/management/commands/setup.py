"""`manage.py setup`: what `serve` does first, for deployments that start the processes themselves."""

from typing import Any

from django.core.management.base import BaseCommand

from batchserver import first_start


class Command(BaseCommand):
    help = "Create or update the database, and an administrator if there is none; prints the new password once."

    def handle(self, *args: Any, **options: Any) -> None:
        password = first_start.prepare()
        self.stdout.write("The database is up to date.")
        if told := first_start.who_may_call():
            self.stdout.write(told)
        if password:
            self.stdout.write(f"Administrator: {first_start.ADMIN_NAME}, password {password} (shown only this once)")
