"""`manage.py time_pages`: one half of `manage.py benchmark pages`, in a process whose DATA_DIR is empty."""

import json
import logging
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from batches.models import Batch
from batchserver import first_start
from benchmarks import page_times


class Command(BaseCommand):
    help = "Used by `manage.py benchmark pages`: fill an empty database and time the admin's pages; prints JSON."

    def add_arguments(self, parser: CommandParser) -> None:
        for name in ("lines", "batches", "rounds"):
            parser.add_argument(name, type=int)

    def handle(self, *args: Any, **options: Any) -> None:
        first_start.prepare()
        if Batch.objects.exists():
            raise CommandError("There are batches in this database: this is for an empty one. Use: benchmark pages")
        logging.getLogger("batches").setLevel(logging.WARNING)  # not each move of 2,000 batches
        found = page_times.measure(options["lines"], options["batches"], options["rounds"])
        self.stdout.write(json.dumps(found))
