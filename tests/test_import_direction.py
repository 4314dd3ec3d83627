"""Imports point down only: a module may import its own layer and those below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APPS = ("batchserver", "batches", "files_api")

# From the top. A name stands for the module and everything below it; the longest one that fits counts.
LAYERS = [
    {"manage", "batchserver.urls", "batchserver.wsgi", "batchserver.settings", "batchserver.celery"},
    {
        "batchserver.views",
        "batchserver.middleware",
        "batchserver.management",
        "batchserver.admin",
        "batchserver.first_start",
        "batches.views",
        "batches.passthrough",
        "batches.serializers",
        "batches.tasks",
        "batches.admin",
        "batches.metrics",
        "batches.urls",
        "batches.management",
        "batches.apps",
        "batchserver.apps",
        "files_api.views",
        "files_api.serializers",
        "files_api.upload_handler",
        "files_api.admin",
        "files_api.urls",
        "files_api.apps",
    },
    {"batches.progress"},
    {"batches.intake", "batches.executor", "batches.output", "batches.presence", "batches.webhooks"},
    {"batches.readiness", "batches.share"},
    {"batches.pauses"},
    {"batches.claims", "batches.inputs", "batches.pace", "batches.window", "batches.fit"},
    {"batches.answers", "batches.doubt"},
    {"batches.repeats"},
    {
        "batches.lifecycle",
        "batches.leases",
        "batches.alone",
        "batches.ordering",
        "batches.holds",
        "batches.gate",
        "batches.switch",
    },
    {"batchserver.api", "batchserver.checks", "batchserver.idempotency", "batchserver.openapi"},
    {"batches.models", "files_api.uploads"},
    {"files_api.accept", "files_api.retention"},
    {"files_api.models", "batchserver.models"},
    {"batches.backends", "batches.jsonl", "batches.prefix", "files_api.storage"},
    {"batchserver.fields", "batchserver.supervisor", "batchserver.embedded_backend", "batchserver.database"},
    {
        *("batchserver.errors", "batchserver.ids", "batchserver.strict_json", "batchserver.failpoints"),
        "batchserver.version",
        "batches.quiet_hours",
    },
    {"batchserver", "batches", "files_api"},
]

# The Celery app is wiring, and tasks are declared on it. It imports them in turn only where it runs, as a worker.
EXCEPTIONS = {("batches.tasks", "batchserver.celery"), ("batchserver.celery", "batches.tasks")}


def modules():
    for app in APPS:
        for path in sorted((ROOT / app).rglob("*.py")):
            if "migrations" not in path.parts:
                parts = path.relative_to(ROOT).with_suffix("").parts
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def layer(module):
    fitting = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if module == name or (module.startswith(name + ".") and name not in APPS)
    ]
    return max(fitting)[1] if fitting else None


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from batches import leases` names a module, `from batches.leases import reap` a member of one.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def known(name):
    """The module of ours that an imported name is or belongs to; None for others' modules."""
    if name.split(".")[0] not in APPS:
        return None
    names = {module for module, _ in modules()}
    while name not in names:
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value))
def test_imports_point_down(module, path):
    assert layer(module) is not None, f"{module} has no layer: say above where it belongs"
    for name in imports(path):
        target = known(name)
        if target is None or target == module or (module, target) in EXCEPTIONS:
            continue
        assert layer(target) >= layer(module), f"{module} imports {target}, which is above it"
        assert not (module.startswith("files_api") and target.startswith("batches")), f"{module} imports {target}"


@pytest.mark.parametrize(
    "name",
    [
        *("intake", "executor", "claims", "inputs", "output", "lifecycle", "leases", "ordering", "presence"),
        *("webhooks", "gate", "switch", "quiet_hours", "holds", "repeats", "alone", "window", "readiness", "share"),
        *("progress", "fit"),
    ],
)
def test_the_domain_knows_neither_celery_nor_rest_framework(name):
    foreign = {each.split(".")[0] for each in imports(ROOT / "batches" / f"{name}.py")}
    assert not foreign & {"celery", "kombu", "rest_framework"}


def test_only_lifecycle_writes_a_status():
    """`status=` in an update or a save elsewhere would pass by the table of allowed moves."""
    for module, path in modules():
        if module == "batches.lifecycle":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "update":
                assert "status" not in {keyword.arg for keyword in node.keywords}, f"{module} line {node.lineno}"
            if isinstance(node, ast.Assign):
                targets = [target.attr for target in node.targets if isinstance(target, ast.Attribute)]
                assert "status" not in targets or module == "batchserver.errors", f"{module} line {node.lineno}"
