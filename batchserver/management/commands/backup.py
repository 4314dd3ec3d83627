"""`manage.py backup DIRECTORY`: rows and files of a server that may run, as batchserver/backup.py says."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from batchserver import backup, private


class Command(BaseCommand):
    help = "Write a backup of the server, which may run, into a directory: its rows, its files and its keys."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("directory", type=Path, help="is made; must be empty if it is there")

    def handle(self, *args: Any, **options: Any) -> None:
        private.from_now_on()
        directory = options["directory"].absolute()
        try:
            listed = backup.take(directory, tell=self._tell)
        except (backup.CannotGoOn, OSError, DatabaseError) as error:
            raise CommandError(f"There is no backup: {error}") from None
        self.stdout.write(
            f"{directory}: {listed.files} files with {listed.bytes} bytes, and the rows of {listed.vendor}."
        )
        if listed.missing:
            named = ", ".join(listed.missing[:3])
            self.stderr.write(f"The storage does not have the bytes of {len(listed.missing)} files: {named}…")

    def _tell(self, progress: str) -> None:
        """Not in the red of an error."""
        self.stderr.write(progress, str)
