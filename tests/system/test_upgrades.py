"""A database that an earlier commit left gets today's schema, and the batch in the middle of its work is finished.

tests/schemas has one of each schema that a commit ever had, made by that commit's own server (tests/schemas/make.py).
"""

import hashlib
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, migrations, models
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.test.utils import CaptureQueriesContext

from batches import schema_drift, tasks
from batches.models import Batch, Line, LineState
from tests import environment
from tests.conftest import custom_ids, line
from tests.schemas.make import HERE, INPUT
from tests.stack import Stack
from tests.whole_server import client_of, finish, lines_of

COMMITS = sorted(path.stem for path in HERE.glob("*.sql"))
CUSTOM_IDS = ["a", "b", "c", "a again", "d", "e", "f", "d again", "g"]
APPS = ("files_api", "batches", "batchserver")


def left_by(commit, data_dir):
    """Make `data_dir` as the commit's killed server left it; the batch's id."""
    data_dir.mkdir(exist_ok=True)
    with closing(sqlite3.connect(data_dir / "db.sqlite3")) as database:
        database.executescript((HERE / f"{commit}.sql").read_text())
        ((path,),) = database.execute("SELECT content FROM files_api_file")
        ((batch_id,),) = database.execute("SELECT id FROM batches_batch")
    target = data_dir / "files" / path
    target.parent.mkdir(parents=True)
    target.write_bytes(INPUT.read_bytes())
    return batch_id


def described():
    """Tables, columns, indexes and constraints of the apps, without the names that Django makes up."""
    schema = {}
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            if table.startswith(APPS):
                columns = connection.introspection.get_table_description(cursor, table)
                constraints = connection.introspection.get_constraints(cursor, table).values()
                rules = [{name: value for name, value in each.items() if name != "definition"} for each in constraints]
                schema[table] = (
                    sorted((each.name, each.type_code, each.null_ok, each.default) for each in columns),
                    sorted(map(repr, rules)),
                )
    return schema


@pytest.fixture
def other_database(transactional_db):
    """Use the SQLite database at a path in this thread, in place of that of the tests."""
    own = connections["default"]

    def use(path):
        connections["default"] = DatabaseWrapper(own.settings_dict | {"NAME": str(path)})

    yield use
    if connections["default"] is not own:
        connections["default"].close()
        connections["default"] = own


@pytest.mark.slow
@pytest.mark.skipif(environment.DATABASE != "sqlite", reason="the kept databases are SQLite's")
@pytest.mark.parametrize("commit", COMMITS)
def test_the_running_batch_is_finished(commit, tmp_path, backend, work, other_database):
    newest = described()
    batch_id = left_by(commit, tmp_path)
    other_database(tmp_path / "db.sqlite3")

    call_command("migrate", verbosity=0)
    assert described() == newest

    tasks.tick()  # takes back the lines of the killed worker
    batch = work.run(batch_id)
    assert (batch["status"], batch["error_file_id"]) == ("completed", None)
    assert custom_ids(work.content(batch["output_file_id"])) == CUSTOM_IDS
    stored = Batch.objects.get()
    assert (stored.completed, stored.repeated, stored.repeated_finished) in [(9, 0, 0), (9, 2, 2)]


# The first schema, and the one of the databases that answered "busy" to everything.
@pytest.mark.parametrize("commit", ["4a54c07", "53ccd50"])
@pytest.mark.usefixtures("processes")
def test_a_whole_server_upgrades_and_goes_on(commit, tmp_path, fake):
    batch_id = left_by(commit, tmp_path / "data")
    server = Stack(tmp_path / "data", {"OLLAMA_BASE_URL": fake.url})
    try:
        server.start()
        client = client_of(server)
        batch = finish(client, batch_id)
        assert (batch.status, batch.error_file_id) == ("completed", None)
        assert custom_ids(lines_of(client, batch.output_file_id)) == CUSTOM_IDS
        assert not {"a", "b"} & set(fake.arrived())  # answered before, and not asked again
    finally:
        server.stop()


WINDOW_CHANGED_AT = {
    "sqlite": "ALTER TABLE batches_backend ADD COLUMN window_changed_at datetime NULL",
    "postgresql": "ALTER TABLE batches_backend ADD COLUMN window_changed_at timestamp with time zone NULL",
}
MODEL_NAMES = {
    "sqlite": "ALTER TABLE batches_backend ADD COLUMN model_names text NOT NULL DEFAULT '[]' "
    "CHECK (JSON_VALID(model_names) OR model_names IS NULL)",
    "postgresql": "ALTER TABLE batches_backend ADD COLUMN model_names jsonb NOT NULL DEFAULT '[]'",
}
NO_REPEATED = [
    "ALTER TABLE batches_batch DROP COLUMN repeated",
    "ALTER TABLE batches_batch DROP COLUMN repeated_finished",
]
BATCH_INDEX = "CREATE INDEX batches_line_batch_id_old ON batches_line (batch_id)"
NO_NEEDS_ALONE = "ALTER TABLE batches_line DROP COLUMN needs_alone"
NO_TRIALS = [
    f"ALTER TABLE batches_backend DROP COLUMN {name}"
    for name in ("trial_endpoint", "trial_model", "failed_trials", "resume_at")
]
NO_REVOKED_AT = "ALTER TABLE batchserver_apikey DROP COLUMN revoked_at"
NO_REMEMBERED = "DROP TABLE batchserver_rememberedanswer"
NO_LISTED = ["ALTER TABLE batches_backend DROP COLUMN listed", MODEL_NAMES]

# The earlier forms of the migrations, as what they made differently from the last one.
FORMS = {
    "0004 of 53ccd50": ("0004", [*NO_REPEATED, BATCH_INDEX, NO_NEEDS_ALONE, WINDOW_CHANGED_AT]),
    "0004 of 3970214": ("0004", [*NO_REPEATED, BATCH_INDEX, WINDOW_CHANGED_AT]),
    "0004 of aca1074": ("0004", [*NO_REPEATED, WINDOW_CHANGED_AT]),
    "0004 of 16aeae4": ("0004", [WINDOW_CHANGED_AT]),
    "0004 of 53ccd50, and all up to 0007": ("0007", [*NO_REPEATED, BATCH_INDEX, NO_NEEDS_ALONE, WINDOW_CHANGED_AT]),
    "0001 of 4a54c07": ("0001", [*NO_TRIALS, NO_REVOKED_AT, NO_REMEMBERED, *NO_LISTED]),
    "0001 of ccd59a9": ("0001", [*NO_TRIALS, NO_REVOKED_AT, NO_REMEMBERED]),
    "0001 of 3313378": ("0001", [*NO_TRIALS, NO_REVOKED_AT]),
    "0001 of 4a54c07, and 0002": ("0002", [*NO_TRIALS, NO_REVOKED_AT, NO_REMEMBERED, *NO_LISTED]),
}


def execute(*statements):
    with connection.cursor() as cursor:
        for each in statements:
            cursor.execute(each if isinstance(each, str) else each[connection.vendor])


@pytest.fixture
def migrated(transactional_db):
    """Bring the tests' database to a migration of `batches`; it is the newest again afterwards."""

    def go_to(prefix):
        if prefix:
            executor = MigrationExecutor(connection)
            executor.migrate([("batches", executor.loader.get_migration_by_prefix("batches", prefix).name)])

    yield go_to
    call_command("migrate", verbosity=0)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_each_earlier_form_of_a_migration_becomes_its_last_one(form, migrated):
    newest = described()
    migration, statements = FORMS[form]
    migrated(migration)
    execute(*statements)

    call_command("migrate", verbosity=0)

    assert described() == newest


def test_the_repeats_that_were_not_counted_are(migrated, create, work):
    same = {"temperature": 0}
    lines = [line(each, body=same | {"messages": [{"role": "user", "content": each[0]}]}) for each in ("a", "a2", "b")]
    lines += [line("b2", body=same | {"messages": [{"role": "user", "content": "b"}]})]
    batch_id = create(lines)["id"]
    work.validate(batch_id)
    Line.objects.filter(custom_id="a").update(state=LineState.SUCCEEDED)
    execute(*FORMS["0004 of 3970214"][1])

    call_command("migrate", verbosity=0)

    batch = Batch.objects.get()
    assert (batch.repeated, batch.repeated_finished) == (2, 1)


def test_a_database_of_the_last_form_is_left_as_it_is(transactional_db):
    apps = MigrationExecutor(connection)._create_project_state(with_applied_migrations=True).apps
    with CaptureQueriesContext(connection) as queries:
        schema_drift.mend(apps=apps, using="default")
    assert not [query["sql"] for query in queries if not re.match(r"\s*(SELECT|PRAGMA|BEGIN|COMMIT)", query["sql"])]


def test_what_no_version_left_out_is_told_and_nothing_is_changed(migrated):
    execute("ALTER TABLE batches_line RENAME COLUMN custom_id TO other")
    try:
        with pytest.raises(CommandError, match=r"The database lacks batches_line.custom_id, .* Restore a backup"):
            call_command("setup")
    finally:
        execute("ALTER TABLE batches_line RENAME COLUMN other TO custom_id")


# Each migration as it was when main got it. Databases have applied it since and do not get what is edited later, so it
# is never edited again. Only the path of a function that moved may change: imports and paths are left out.
RELEASED = {
    "batches/0001_initial": "f903f4ba4cba041c",
    "batches/0002_webhookdelivery": "6175fe1eb0f694ac",
    "batches/0003_paused_models": "965062e5a84b6864",
    "batches/0004_parts_and_holds": "a134b909b3687d46",
    "batches/0005_stalls_and_failed_parts": "2cee1a48e2b806fa",
    "batches/0006_names_and_faults_of_the_tick": "ea4a9786607bea42",
    "batches/0007_counted_slots": "a5183d47fc2da2d0",
    "batches/0008_persons_and_others": "fd48f1457cb7575c",
    "batches/0009_split_lines": "6a7d0d8c409f788c",
    "batches/0010_fitted_contexts": "83fe472378131e51",
    "batches/0011_retries_and_reasons": "dfcbc2be2c2f1448",
    "batches/0012_order_of_finishing": "4ecdf53e0e712ef3",
    "batches/0013_responses_in_rows_of_their_own": "33d8e25017e4d182",
    "batches/0014_figures": "2f387184458fa397",
    "batches/0015_owners": "0e14f31831d47913",
    "batches/0016_clock_of_the_database": "746d48b553a05bfa",
    "batches/0017_counts_of_drives": "899d5a30f8c65870",
    "batches/0018_silent_drives": "d487ab10966b9ace",
    "batches/0019_turns_of_steps": "6fa50a92757e3481",
    "batches/0020_not_tidied": "0eada03b543cf313",
    "batchserver/0001_initial": "2c1f87f8bb519095",
    "batchserver/0002_keys_of_administrators": "a729d87cfd28e161",
    "batchserver/0003_owners": "193ebd6d7b13561e",
    "batchserver/0004_clock_of_the_database": "fd752b8a8b99cdd2",
    "batchserver/0005_turns_of_steps": "8f15024ccd537cbd",
    "files_api/0001_initial": "16ce9eefd037e6b9",
    "files_api/0002_uploads": "df10a2741615e8ef",
    "files_api/0003_owners": "392f61fc47a54605",
    "files_api/0004_storage_id": "4e5c23c6f06355c0",
    "files_api/0005_clock_of_the_database": "f63a4df4d17dc72d",
}
# An attribute of one of our modules, with the path to it.
OUR_PATH = re.compile(r"(?<!['\w.])(?:batches|batchserver|common|files_api)(?:\.\w+)*\.(\w+)")


def digest(text):
    lines = [each for each in text.splitlines() if not each.startswith(("import ", "from ", "#"))]
    return hashlib.sha256(OUR_PATH.sub(r"\1", "\n".join(lines)).encode()).hexdigest()[:16]


def test_a_released_migration_is_never_edited_again():
    found = {}
    for (app, name), migration in MigrationLoader(None).disk_migrations.items():
        if app in APPS:
            found[f"{app}/{name}"] = digest(Path(sys.modules[type(migration).__module__].__file__).read_text())
    edited = [name for name, was in RELEASED.items() if found.get(name) != was]
    assert not edited, "Databases have applied these already. Put them back, and make a new migration with the change."
    new = {name: found[name] for name in sorted(found.keys() - RELEASED.keys())}
    assert not new, f"New migrations: add these lines to RELEASED, and a database (tests/schemas/make.py): {new}"


# The last migrations from before workers of two versions were to run beside each other.
BEFORE = {"batches": "0015", "batchserver": "0003", "files_api": "0003"}
# What takes something away, and the release in which the code had stopped using it. None yet.
TAKEN_AWAY: dict[str, str] = {}
ADDS = (migrations.CreateModel, migrations.AddIndex, migrations.RemoveIndex, migrations.RunPython, migrations.RunSQL)


def against(operation):
    """What a worker of the version before would fail by, beside this one; nothing: the operation only adds."""
    if isinstance(operation, migrations.SeparateDatabaseAndState):
        return [each for inner in operation.database_operations for each in against(inner)]
    if isinstance(operation, migrations.AddField):
        is_left_out = operation.field.null or operation.field.has_db_default()
        return (
            [] if is_left_out else [f"{operation.describe()}: it has no db_default, and older code does not write it"]
        )
    return [] if isinstance(operation, ADDS) else [f"{operation.describe()}: older code may need it as it was"]


def test_a_migration_leaves_the_tables_as_the_version_before_needs_them():
    for (app, name), migration in MigrationLoader(None).disk_migrations.items():
        if app in APPS and name[:4] > BEFORE[app] and f"{app}/{name}" not in TAKEN_AWAY:
            assert not [each for operation in migration.operations for each in against(operation)], f"{app}/{name}"


def test_what_an_older_worker_would_fail_by_is_found():
    text = models.CharField(max_length=9, default="")
    bad = [
        migrations.AddField("batch", "a", text),
        migrations.RemoveField("batch", "a"),
        migrations.RenameField("batch", "a", "b"),
        migrations.DeleteModel("batch"),
        migrations.AlterField("batch", "a", text),
        migrations.SeparateDatabaseAndState(database_operations=[migrations.RemoveField("batch", "a")]),
    ]
    assert [len(against(each)) for each in bad] == [1] * len(bad)
    good = [
        migrations.AddField("batch", "a", models.CharField(max_length=9, default="", db_default="")),
        migrations.AddField("batch", "a", models.DateTimeField(null=True)),
        migrations.SeparateDatabaseAndState(state_operations=[migrations.RemoveField("batch", "a")]),
    ]
    assert [against(each) for each in good] == [[]] * len(good)


def test_a_path_that_moved_is_no_edit_and_anything_else_is():
    text = "import batchserver.ids\n\nfield(default=batchserver.ids.new_batch_id, to='batches.lease', null=True)\n"
    moved = text.replace("batchserver.ids", "common.ids")
    assert digest(moved) == digest(text)
    for part, other in [("new_batch_id", "new_file_id"), ("batches.lease", "common.lease"), ("True", "False")]:
        assert digest(text.replace(part, other)) != digest(text)
