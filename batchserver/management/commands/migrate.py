"""`manage.py migrate`: Django's own, on a machine where nothing was started yet too."""

from typing import Any

from django.core.management.commands import migrate

from batchserver import first_start


class Command(migrate.Command):
    def execute(self, *args: Any, **options: Any) -> str | None:
        # SQLite makes its file, but not the directory that it stands in; the checks before `handle` open it already.
        first_start.make_directories()
        return super().execute(*args, **options)
