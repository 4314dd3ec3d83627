"""`manage.py check_backend`: does the model server answer, what is it, and does it have the default model?"""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from batches import backends


class Command(BaseCommand):
    help = (
        "Ask the configured model server what it is and what it has. Exits with 1 and a hint if something is missing."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            state = backends.probe()
        except backends.Unreachable as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{settings.BACKEND_URL}: {state.kind} {state.version}".rstrip())
        self.stdout.write(f"Models: {', '.join(state.names) or 'none'}")
        model = backends.default_model(state.names)
        if not backends.listed_name(state.kind, state.names, model):
            hint = backends.missing_model_hint(state.kind, model, state.names)
            raise CommandError(f"The default model {model} (MODEL_NAME) is missing. {hint}")
        self.stdout.write(f"Default model: {model}")
