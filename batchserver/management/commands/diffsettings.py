"""`manage.py diffsettings`: Django's own, without the secrets."""

from typing import Any

from django.conf import settings
from django.core.management.commands import diffsettings

from batchserver.masking import SecretsMasked


class Command(diffsettings.Command):
    help = "Display the settings that differ from Django's own; secrets are masked."

    def output_hash(self, user_settings: Any, default_settings: Any, **options: Any) -> Any:
        return super().output_hash(_masked(user_settings), default_settings, **options)

    def output_unified(self, user_settings: Any, default_settings: Any, **options: Any) -> Any:
        return super().output_unified(_masked(user_settings), default_settings, **options)


def _masked(shown: dict[str, str]) -> dict[str, str]:
    """What is shown of each setting, as Django's command has it."""
    mask = SecretsMasked()
    found = {}
    for name, text in shown.items():
        value = getattr(settings, name, None)
        cleansed = mask.cleanse_setting(name, value)
        found[name] = text if cleansed == value else repr(cleansed)
    return found
