"""`manage.py resume`: end the pause of some batches, or of all."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from batches import tasks
from batches.management.commands import _switch
from batches.scheduling import switch


class Command(BaseCommand):
    help = "Send lines again: of these batches, or of all batches except those that were paused by id."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("batch_id", nargs="*", help="without one, all batches")

    def handle(self, *, batch_id: list[str], **options: Any) -> None:
        if batch_id:
            done = f"Resumed {_switch.each(batch_id, switch.resume)}."
        else:
            switch.resume_all()
            done = "Resumed all batches."
        tasks.wake(tasks.drive)
        self.stdout.write(done)
