"""`manage.py list_api_keys`: which keys there are, whose they are, and when each was last used."""

from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from common.models import ApiKey


class Command(BaseCommand):
    help = (
        "List the API keys, a line each: id, beginning, name, owner, scopes, made, last used, and whether it is live."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        for key in ApiKey.objects.select_related("owner").order_by("pk"):
            fields = [
                *(str(key.pk), f"{key.hint}…", key.name, key.owner.name, ",".join(key.scopes)),
                *(f"made {_day(key.created_at)}", f"used {_day(key.last_used_at)}", _state(key)),
            ]
            self.stdout.write("  ".join(fields))


def _state(key: ApiKey) -> str:
    if key.revoked_at:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is None:
        return "live"
    return f"{'expired' if key.is_expired else 'live until'} {_day(key.expires_at)}"


def _day(at: datetime | None) -> str:
    return f"{timezone.localtime(at):%Y-%m-%d %H:%M}" if at else "never"
