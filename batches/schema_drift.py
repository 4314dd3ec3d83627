"""Mend databases that applied a migration before it was edited: their tables are brought to its last form.

Before 0.1.0, migrations were edited after databases had applied them. Such a database lacks what an edit added, and has
what an edit removed. A new migration cannot bring it right: 0003 fails on the earliest databases (it drops columns that
they lack), and on SQLite 0005 fails on others (it copies a table with columns that they lack). So `mend` looks at the
tables before any migration runs, at every `migrate`. A database of the last form is not changed.
tests/schemas has a database of each form; tests/system/test_upgrades.py keeps migrations from being edited.
"""

from functools import partial
from typing import Any

from django.core.management import CommandError
from django.db import connections
from django.db.migrations.operations import AddField, AlterField, CreateModel, RemoveField, RunPython
from django.db.migrations.state import ProjectState
from django.db.models import Count, DateTimeField, Field, JSONField, Model, OuterRef, Subquery
from django.db.models.functions import Coalesce

from common import schema

APPS = ("files_api", "batches", "batchserver")

# What the edits added, by model: columns, or the table itself if no column is named. One is added if the applied
# migrations have it.
ADDED: dict[tuple[str, str], tuple[str, ...]] = {
    ("batchserver", "rememberedanswer"): (),
    ("batchserver", "apikey"): ("revoked_at",),
    ("batches", "backend"): ("listed", "trial_endpoint", "trial_model", "failed_trials", "resume_at"),
    ("batches", "line"): ("needs_alone",),
    ("batches", "batch"): ("repeated", "repeated_finished"),
}
# What the edits removed, by model.
REMOVED: dict[tuple[str, str], dict[str, "Field[Any, Any]"]] = {
    ("batches", "backend"): {"model_names": JSONField(default=list), "window_changed_at": DateTimeField(null=True)},
}

SUCCEEDED, FAILED, REPEATED = 2, 3, 6  # Line.state


def mend(*, apps: Any, using: str, **kwargs: Any) -> None:
    """Bring the tables to what the applied migrations make of an empty database; a receiver of `pre_migrate`.

    `apps` has the models as these migrations leave them. Safe to run again, and on an empty database. Raises
    CommandError, with what to do, for a database that a newer version has changed or that lacks anything else.
    """
    if reason := schema.newer(using):
        raise CommandError(reason)
    drift = _Drift(apps, using)
    for model in apps.get_models():
        if model._meta.app_label in APPS:
            drift.look_at(model)
    drift.mend()


class _Drift:
    """The state that the tables are in, and the operations from there to the state of the applied migrations."""

    def __init__(self, apps: Any, using: str) -> None:
        self.connection = connections[using]
        self.target = ProjectState.from_apps(apps)
        self.found = self.target.clone()
        self.operations: dict[str, list[Any]] = {app: [] for app in APPS}
        with self.connection.cursor() as cursor:
            self.tables = set(self.connection.introspection.table_names(cursor))

    def look_at(self, model: type[Model]) -> None:
        """Note what the table of `model` lacks, and which of its columns an edit removed."""
        app, name, table = model._meta.app_label, model._meta.model_name or "", model._meta.db_table
        added = ADDED.get((app, name))
        if table not in self.tables:
            if added != ():
                raise _cannot_mend(table)
            self._create(app, name)
            return
        with self.connection.cursor() as cursor:
            description = self.connection.introspection.get_table_description(cursor, table)
        columns = {column.name for column in description}
        fields = {field.column: field.name for field in model._meta.local_concrete_fields}
        for column, field in fields.items():
            if column not in columns:
                if column not in (added or ()):
                    raise _cannot_mend(f"{table}.{column}")
                self._add(app, name, field, column)
        for column, removed in REMOVED.get((app, name), {}).items():
            if column in columns - fields.keys():
                self._remove(app, name, column, removed)
        if (app, name) == ("batches", "line"):
            self._drop_batch_index(table)

    def mend(self) -> None:
        """Apply the operations, in one transaction. Most databases need none."""
        if not any(self.operations.values()):
            return
        with self.connection.schema_editor() as editor:
            state = self.found
            for app, operations in self.operations.items():
                for operation in operations:
                    before = state.clone()
                    operation.state_forwards(app, state)
                    operation.database_forwards(app, editor, before, state)

    def _create(self, app: str, name: str) -> None:
        model = self.target.models[app, name]
        self.found.remove_model(app, name)
        self.operations[app].append(CreateModel(model.name, list(model.fields.items()), model.options))

    def _add(self, app: str, name: str, field: str, column: str) -> None:
        self.found.remove_field(app, name, field)
        self.operations[app].append(AddField(name, field, self.target.models[app, name].fields[field]))
        if column == "repeated_finished":  # the second of the two
            self.operations[app].append(RunPython(partial(_count_repeats, finished_in=field)))

    def _remove(self, app: str, name: str, column: str, field: "Field[Any, Any]") -> None:
        self.found.add_field(app, name, column, field.clone(), preserve_default=True)
        self.operations[app].append(RemoveField(name, column))

    def _drop_batch_index(self, table: str) -> None:
        """Drop the index of lines by their batch alone, which an earlier form of migration 0004 left."""
        field = self.target.models["batches", "line"].fields["batch"]
        with self.connection.cursor() as cursor:
            constraints = self.connection.introspection.get_constraints(cursor, table).values()
        if field.db_index or not any(each["index"] and each["columns"] == ["batch_id"] for each in constraints):
            return
        indexed = field.clone()
        indexed.db_index = True
        self.found.alter_field("batches", "line", "batch", indexed, preserve_default=True)
        self.operations["batches"].append(AlterField("line", "batch", field))


def _cannot_mend(what: str) -> CommandError:
    return CommandError(
        f"The database lacks {what}, which no version left out. Restore a backup, or start with an empty database by "
        "another DATA_DIR or DATABASE_URL."
    )


def _count_repeats(apps: Any, editor: Any, *, finished_in: str) -> None:
    """Set Batch.repeated, and the field of the finished ones, which were not counted while the columns were missing."""
    alias = editor.connection.alias
    batches, lines = (apps.get_model("batches", name).objects.using(alias) for name in ("Batch", "Line"))
    repeats = lines.filter(batch=OuterRef("pk"), state=REPEATED)
    finished = repeats.filter(original__state__in=[SUCCEEDED, FAILED])

    def count(lines: Any) -> Any:
        counted = lines.order_by().values("batch").annotate(count=Count("pk")).values("count")
        return Coalesce(Subquery(counted), 0)

    batches.exclude(status="failed").update(**{"repeated": count(repeats), finished_in: count(finished)})
