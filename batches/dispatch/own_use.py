"""Which models a drive uses, noted for whoever has to tell the use of others from it (scheduling.others)."""

import time
from collections.abc import Iterable

from batches.models import Backend
from batches.scheduling import model_uses
from common.database import retrying

NOTE_EVERY_S = 1.0


class OwnUse:
    """Notes each model before a call for it is sent, and every second while such a call is in flight."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._noted_at: dict[str, float] = {}

    def note(self, models: Iterable[str]) -> None:
        """The drive uses these models now. Cheap to call often."""
        now = time.monotonic()
        for model in models:
            if now >= self._noted_at.get(model, float("-inf")) + NOTE_EVERY_S:
                self._noted_at[model] = now
                retrying(model_uses.note, self._backend, model)
