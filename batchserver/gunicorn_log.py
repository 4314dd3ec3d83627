"""gunicorn's own log, in the form of all others."""

import os
from typing import Any

from gunicorn import glogging

from batchserver import supervisor


class Log(glogging.Logger):  # type: ignore[misc]
    """Reads LOG_FORMAT from the environment, which has what `.env` says: gunicorn's main process has no settings."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(supervisor.formatter(os.environ.get("LOG_FORMAT", "").strip()))
