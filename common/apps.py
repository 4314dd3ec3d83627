from django.apps import AppConfig


class CommonConfig(AppConfig):
    name = "common"
    # The label that the tables, the migrations and the permissions have had since 0.1.0. A new label would orphan them.
    label = "batchserver"
    verbose_name = "Server"
