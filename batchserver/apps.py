from django.apps import AppConfig


class WiringConfig(AppConfig):
    name = "batchserver"
    label = "wiring"  # common has the label "batchserver"

    def ready(self) -> None:
        from batchserver import checks  # noqa: F401  (registers itself)
