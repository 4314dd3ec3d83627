"""The Celery app.

    control worker    python -m batchserver.work -Q control -c 1      validate, finalize, tidy, tick
    inference worker  python -m batchserver.work -Q inference -c MAX_CONCURRENT_BATCHES      drive

An inference worker has a queue of its own too, for what it finds to do by itself (batchserver/worker.py).

Loaded by every process of the server (batchserver/apps.py), so that tasks can be sent from all of them.
"""

import os
import warnings
from typing import Any

from celery import Celery, signals
from celery.exceptions import SecurityWarning
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "batchserver.settings")
# `setup` and `serve` run Django's checks. A worker that ran them too would import every page that it does not serve.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")

OURS = "CELERY_"

# Messages are JSON with ids alone, so a worker may run as root (in a container, for instance) without a warning.
warnings.filterwarnings("ignore", category=SecurityWarning)

# A worker imports `include` once Django is set up; other processes never import it.
app = Celery("batchserver", include=["batchserver.worker"])
# Its own settings alone: what it has it shows, by `celery inspect conf` and `celery report`, and of ours it would mask
# by the name what has "key" or "secret" in it.
app.config_from_object(
    {name.removeprefix(OURS).lower(): getattr(settings, name) for name in dir(settings) if name.startswith(OURS)}
)
app.autodiscover_tasks()
# A shared task uses the current app of its thread. Without this only the thread that made the app has one.
app.set_default()


def ask_broker() -> None:
    """Raises an error if the broker does not answer. Opens a connection of its own: the pool's may be in use."""
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)


@signals.setup_logging.connect
def _use_django_logging(**kwargs: Any) -> None:
    """Settings.LOGGING is in place already; having a receiver keeps Celery from adding its own."""
