from django.apps import AppConfig

from batchserver import celery  # noqa: F401  (the app that sends tasks)


class WiringConfig(AppConfig):
    name = "batchserver"
    label = "wiring"  # common has the label "batchserver"

    def ready(self) -> None:
        from batchserver import checks  # noqa: F401  (registers itself)
