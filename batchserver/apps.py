from django.apps import AppConfig


class BatchServerConfig(AppConfig):
    name = "batchserver"
    verbose_name = "Server"

    def ready(self) -> None:
        from batchserver import checks  # noqa: F401  (registers itself)
