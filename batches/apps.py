from django.apps import AppConfig
from django.db.models.signals import pre_migrate


class BatchesConfig(AppConfig):
    name = "batches"
    verbose_name = "Batches"

    def ready(self) -> None:
        from batches import schema_drift
        from batches.status import metrics

        metrics.register()
        pre_migrate.connect(schema_drift.mend, sender=self)
