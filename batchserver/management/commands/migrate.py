"""`manage.py migrate`: Django's own, which works before the first start too."""

from typing import Any

from django.core.management.commands import migrate

from batchserver import first_start


class Command(migrate.Command):
    def execute(self, *args: Any, **options: Any) -> str | None:
        # SQLite makes its file, but not the directory of the file; the checks before `handle` open the file already.
        first_start.make_directories()
        return super().execute(*args, **options)
