"""`manage.py restore DIRECTORY`: play a backup back, as batchserver/backup.py says."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from batchserver import backup, first_start, locks


class Command(BaseCommand):
    help = "Play a backup back into the configured database, storage and DATA_DIR, which must be empty."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("directory", type=Path, help="as `manage.py backup` made it")

    def handle(self, *args: Any, **options: Any) -> None:
        first_start.make_directories()
        if (lock := locks.take(settings.DATA_DIR / locks.SERVER)) is None:
            raise CommandError(f"A server runs with DATA_DIR={settings.DATA_DIR}. Stop it first.")
        with lock:
            try:
                listed = backup.restore(options["directory"].absolute())
            except (backup.CannotGoOn, OSError, DatabaseError) as error:
                raise CommandError(f"Nothing was restored, or not all: {error}") from None
            first_start.prepare(with_admin=False)
        self.stdout.write(
            f"Restored what version {listed.version} had at {listed.made_at}: {listed.files} files, and all rows. "
            "Batches that were at work go on when the server starts."
        )
