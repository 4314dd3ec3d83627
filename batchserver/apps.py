from django.apps import AppConfig


class BatchServerConfig(AppConfig):
    name = "batchserver"
    verbose_name = "Server"

    def ready(self) -> None:
        # Both register themselves: the system checks, and the Celery app that every process publishes with.
        from batchserver import celery, checks  # noqa: F401
