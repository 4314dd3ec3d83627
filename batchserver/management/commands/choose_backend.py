"""`manage.py choose_backend`: with which model server `script/batch run` starts a server of its own. Prints JSON."""

import json
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from batches import backends
from batchserver import first_start


class Command(BaseCommand):
    help = (
        "Say with which settings a server for one run is started: the configured model server, or the embedded model."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Print `environment`, to be set for `serve`; `told`, sentences for a person; and `log`, the file to write to.

        Raises CommandError if the model server is away and is no Ollama: for another kind nothing stands in.
        """
        environment, told = self._choice()
        first_start.make_directories()
        log = settings.DATA_DIR / "logs" / "run.log"
        log.parent.mkdir(mode=0o700, exist_ok=True)
        self.stdout.write(json.dumps({"environment": environment, "told": told, "log": str(log)}))

    def _choice(self) -> tuple[dict[str, str], list[str]]:
        if settings.EMBEDDED_BACKEND:
            return {}, []
        try:
            backends.probe()
        except backends.Unreachable as error:
            if not settings.BACKEND_IS_OLLAMA:
                raise CommandError(str(error)) from None
            return self._stand_in(), [
                f"{error} Then, once: ollama pull {settings.MODEL_NAME}",
                "Going on with the embedded backend: EVERY model name is answered by "
                f"{settings.EMBEDDED_BACKEND_MODEL}, a tiny model for trying things out.",
            ]
        return {}, []

    def _stand_in(self) -> dict[str, str]:
        """The embedded model gets a DATA_DIR of its own: it must never answer a batch that waits for the real one."""
        return {
            "BACKEND_URL": "embedded",
            "MODEL_NAME": "",
            "DATA_DIR": str(settings.DATA_DIR / "embedded"),
            "DATABASE_URL": "",
            "CELERY_BROKER_URL": "",
        }
