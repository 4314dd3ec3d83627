"""`manage.py pause`: send no more lines of some batches, or of all."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from batches.management.commands import _switch
from batches.scheduling import gate, switch


class Command(BaseCommand):
    help = "Send no more lines until `resume`: of these batches, or of any. Calls in flight are still answered."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("batch_id", nargs="*", help="without one, all batches, later ones too")

    def handle(self, *, batch_id: list[str], **options: Any) -> None:
        if batch_id:
            self.stdout.write(f"Paused {_switch.each(batch_id, switch.pause)}.")
        else:
            self.stdout.write(f"Paused all batches, since {gate.clock(switch.pause_all())}.")
