"""`manage.py revoke_api_key`: a key is not taken any more, from the next request on."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from common.models import ApiKey


class Command(BaseCommand):
    help = "Revoke API keys for good. Batches that were made with them go on."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("key_id", nargs="+", type=int, help="as list_api_keys shows it")

    def handle(self, *, key_id: list[int], **options: Any) -> None:
        keys = ApiKey.objects.in_bulk(key_id)
        if unknown := [each for each in key_id if each not in keys]:
            raise CommandError(f"No API key with the id {', '.join(map(str, unknown))}. See list_api_keys.")
        for key in keys.values():
            key.revoke()
            self.stdout.write(f"Revoked {key}.")
