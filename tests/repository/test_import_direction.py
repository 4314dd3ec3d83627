"""Imports point down only, there is no circle, libraries have homes, a status has one writer, and few read the clock.

The rules are functions in tests/architecture.py. Each one here is tried on planted faults.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from tests import architecture
from tests.architecture import (
    Tree,
    arrows_up,
    circles,
    host_clocks,
    importers,
    neighbours,
    outside,
    reaching,
    status_writers,
    unscoped,
)
from tests.stack import ROOT

# From the top.
STOREYS = [["benchmarks"], ["manage", "batchserver"], ["batches"], ["files_api"], ["common"], ["client"]]
# From the top, in batches/ as DESIGN has it.
ROOMS = [
    [f"batches.{room}" for room in rooms]
    for rooms in (
        ["api", "admin", "management", "apps"],
        ["tasks"],
        ["cleanup", "forecasts", "following", "seeking"],
        ["dispatch", "validation", "results", "status"],
        ["retry"],
        ["failing", "creation"],
        ["steps"],
        ["scheduling", "reuse", "registry", "leases", "counting", "lifecycle", "model_labels", "hosts", "webhooks"],
        ["models", "migrations", "schema_drift"],
        ["backends", "lines"],
    )
]
ENTRANCES = ["batches.tasks", "batches.api", "batches.admin", "batches.management"]
# Where REST framework is at home below the entrances: views of files, and what both apps' views stand on.
REST_GROUND = [
    *("files_api.views", "files_api.serializers", "files_api.upload_handler", "files_api.urls", "files_api.form"),
    *("common.authentication", "common.exception_handler", "common.negotiation", "common.pagination"),
    *("common.fields", "common.idempotency", "common.openapi", "common.owners"),
    "common.throttling",
]
# What tells a person the time; nothing compares it.
FOR_A_PERSON = ["batchserver.backup"]
HTTP = ["requests", "urllib3", "pycurl", "http.client", "urllib.request", "httpx", "aiohttp"]
HTTP_HOMES = [
    *("batches.backends", "batches.webhooks", "common.sockets", "client", "benchmarks"),
    "files_api.s3",  # botocore lets errors of urllib3 through
]


@dataclass(frozen=True)
class Rule:
    """`planted` breaks it, once; `fine` does not."""

    name: str
    check: Callable[[Tree], list[str]]
    planted: dict[str, str]
    fine: dict[str, str]


RULES = [
    Rule(
        "no import points up from one storey to another",
        partial(arrows_up, storeys=STOREYS),
        {"files_api.models": "def late():\n    from batches.models import Batch", "batches.models": ""},
        {"batches.models": "from files_api.models import File", "files_api.models": "import django"},
    ),
    Rule(
        "every package is on a storey",
        partial(arrows_up, storeys=STOREYS),
        {"helpers.text": ""},
        {"common.text": ""},
    ),
    Rule(
        "no import points up inside batches",
        partial(arrows_up, storeys=ROOMS, inside="batches"),
        {"batches.leases": "from batches.results import write", "batches.results": ""},
        {"batches.results.files": "from batches import leases", "batches.leases": "", "batches": ""},
    ),
    Rule(
        "every module of batches is in a room",
        partial(arrows_up, storeys=ROOMS, inside="batches"),
        {"batches.extras": ""},
        {"batches.dispatch.claims": ""},
    ),
    Rule(
        "no circle",
        circles,
        {
            "common.a": "import common.b",
            "common.b": "def later():\n    from common import c",
            "common.c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from common.a import name",
        },
        {"common.a": "import common.b, common.c", "common.b": "from common import c", "common.c": ""},
    ),
    Rule(
        "what stands side by side in batches does not lean on each other",
        partial(neighbours, rooms=[f"batches.{name}" for name in ("dispatch", "validation", "results", "status")]),
        {"batches.results": "", "batches.dispatch.answers": "from batches.results import write"},
        {"batches.dispatch.answers": "from batches.dispatch import claims", "batches.dispatch.claims": ""},
    ),
    *(
        Rule(
            f"{room} knows no Django, by nobody's help either",
            partial(reaching, room=room, forbidden=["django", "rest_framework"]),
            {room: "import common.a", "common.a": "from django.conf import settings"},
            {room: "from common import strict_json", "common.strict_json": "import json", "common.a": "import django"},
        )
        for room in (
            *("batches.lines", "batches.scheduling.quiet_hours"),
            *("common.errors", "common.ids", "common.strict_json", "common.sockets"),
        )
    ),
    Rule(
        "batches.backends knows no models",
        partial(reaching, room="batches.backends", forbidden=["django.db", "batches.models", "common.models"]),
        {"batches.backends.base": "from common import database", "common.database": "from django.db import connection"},
        {"batches.backends.base": "from django.conf import settings", "batches.models": "from django.db import models"},
    ),
    Rule(
        "Celery is known to tasks and to the wiring alone",
        partial(outside, libraries=["celery", "kombu"], homes=["batches.tasks", "batchserver"]),
        {"batches.webhooks": "def send():\n    from celery import current_app"},
        {"batches.tasks": "from celery import shared_task", "batchserver.worker": "import kombu.exceptions"},
    ),
    Rule(
        "REST framework is known to entrances alone",
        partial(
            outside,
            libraries=["rest_framework", "drf_spectacular"],
            homes=["batchserver", *ENTRANCES, *REST_GROUND],
        ),
        {"batches.lifecycle": "from rest_framework.exceptions import APIException"},
        {"files_api.views": "from rest_framework import viewsets"},
    ),
    Rule(
        "HTTP clients stay in their homes",
        partial(outside, libraries=HTTP, homes=HTTP_HOMES),
        {"batches.registry": "from urllib3 import PoolManager"},
        {"batches.backends.relay": "from urllib3 import Timeout", "batches.registry": "import http, urllib.parse"},
    ),
    Rule(
        "S3's libraries stay in files_api.s3",
        partial(outside, libraries=["boto3", "botocore", "storages"], homes=["files_api.s3"]),
        {"files_api.storage": "def late():\n    from botocore.exceptions import ClientError"},
        {"files_api.s3.errors": "from botocore.exceptions import ClientError"},
    ),
    Rule(
        "nothing imports files_api.s3, which costs time and memory: Django does where a bucket is set",
        partial(importers, room="files_api.s3"),
        {"files_api.views": "from files_api.s3 import storage", "files_api.s3.storage": "", "files_api.s3": ""},
        {"files_api.s3.storage": "from files_api.s3 import bucket", "files_api.s3.bucket": "", "files_api.s3": ""},
    ),
    Rule(
        "the command line knows no Django and nothing of the server's",
        partial(reaching, room="client", forbidden=["django", "batchserver", "batches", "files_api", "common"]),
        {"client": "from common.jsonl import read_lines", "common.jsonl": ""},
        {"client.api": "import requests", "common.jsonl": "import django"},
    ),
    Rule(
        "the server knows nothing of the command line",
        partial(importers, room="client", but=["benchmarks"]),
        {"batchserver.settings": "from client.checkout import Checkout", "client.checkout": ""},
        {"benchmarks.effort": "from client import api", "client.api": "", "client": ""},
    ),
    Rule(
        "nothing imports benchmarks",
        partial(importers, room="benchmarks"),
        {
            "batchserver.settings": "import importlib\nimportlib.import_module('benchmarks.effort')",
            "benchmarks.effort": "",
        },
        {"benchmarks.intake": "from benchmarks import effort", "benchmarks.effort": ""},
    ),
    Rule(
        "a batch's status is written by lifecycle alone",
        partial(status_writers, writer="batches.lifecycle", models="batches.models"),
        {"batches.models.batch": "class Batch:\n    def end(self):\n        self.status = 'completed'"},
        {
            "batches.lifecycle": "batches.update(status=to)",
            "common.errors": "class ApiError:\n    def __init__(self, status):\n        self.status = status",
        },
    ),
    Rule(
        "hosts' clocks differ: read by common.database, who compares them with stamps of a storage, and nobody else",
        partial(
            host_clocks,
            rooms=["batchserver", "batches", "files_api", "common"],
            homes=[
                "common.database",
                "files_api.storage",
                "files_api.retention",
                "files_api.s3.storage",
                *FOR_A_PERSON,
            ],
        ),
        {"batches.leases": "from django.utils import timezone\nBatch.objects.filter(expires_at__lt=timezone.now())"},
        {
            "batches.leases": "import time\nfrom common import database\nsince, at = time.monotonic(), database.now()",
            "common.database": "from django.utils import timezone\ntimezone.now()",
            "benchmarks.report": "import time\ntime.time()",
        },
    ),
    Rule(
        "views take rows of the request's owner alone",
        partial(unscoped, views=["batches.api", "files_api.views", "files_api.serializers", "common.pagination"]),
        {"batches.api.batches": "def get_queryset(self):\n    return Batch.objects.filter(pk=self.kwargs['pk'])"},
        {
            "batches.api.batches": "rows(self.request, Batch.objects.all()).filter(pk=pk)\nUpload.objects.create(id=1)",
            "batches.switch": "Batch.objects.get(pk=pk)",
        },
    ),
]


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree.read(ROOT, but=("tests", "examples", "build", "dist"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_it_holds(tree: Tree, rule: Rule) -> None:
    assert rule.check(tree) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_planted_fault_is_found_and_what_is_fine_is_not(rule: Rule) -> None:
    assert len(rule.check(Tree.of(rule.planted))) == 1
    assert rule.check(Tree.of(rule.fine)) == []


def test_the_whole_project_is_read(tree: Tree) -> None:
    """Rules that look at nothing would hold for ever."""
    assert {"manage", "batches", "batches.models.batch", "common.errors", "batchserver.settings"} < set(tree.sources)
    assert "batches.models" in tree.arrows["batches.lifecycle"]
    for package in ("batchserver", "batches", "benchmarks", "client", "common", "files_api"):
        assert len(tree.within(package)) == len(list((ROOT / package).rglob("*.py")))


@pytest.mark.parametrize(
    "source",
    [
        "import datetime\nat = datetime.datetime.now(datetime.UTC)",
        "from time import time",
        "from django.utils.timezone import now",
        "at = models.DateTimeField(default=timezone.now)",
    ],
)
def test_clocks_of_the_host_are_found(source: str) -> None:
    assert host_clocks(Tree.of({"files_api.models": source}), ["files_api"], homes=[])


@pytest.mark.parametrize(
    "source",
    [
        "Batch._default_manager.get(pk=pk)",
        "get_object_or_404(Batch, pk=pk)",
        "seen = Batch.objects\nseen.all()",
        "rows(request, Batch.objects.all()) | Batch.objects.all()",
        "def late():\n    return [each for each in File.objects.all()]",
    ],
)
def test_rows_of_everybody_are_found(source: str) -> None:
    assert unscoped(Tree.of({"files_api.views": source}), ["files_api"])


@pytest.mark.parametrize(
    "source",
    [
        "batch.status = Status.COMPLETED",
        "batch.status, batch.error = Status.FAILED, reason",
        "batch.status += 'x'",
        "batch.status: str = 'failed'",
        "for batch.status in Status: pass",
        "Batch.objects.filter(pk=pk).update(status=to)",
        "Batch.objects.update(**{'status': to})",
        "Batch.objects.update(paused_at=None, **{'paused_at': None, 'status': to})",
        "Batch.objects.update(**dict(status=to))",
        "Batch.objects.update(**(stamps | {'status': to}))",
        "values = {'status': to}\nBatch.objects.update(**values)",
        "values = {}\nvalues['status'] = to\nBatch.objects.update(**values)",
        "values = {'paused_at': None}\nvalues |= {'status': to}\nBatch.objects.update(**values)",
        "Batch.objects.create(status=Status.FAILED)",
        "Batch(endpoint=endpoint, status=Status.FAILED).save()",
        "models.Batch(status=Status.FAILED)",
        "Batch.objects.bulk_create([Batch(status=Status.FAILED)])",
        "Batch.objects.bulk_create(rows, update_conflicts=True, update_fields=['status'])",
        "Batch.objects.bulk_update(rows, ['status'])",
        "Batch.objects.bulk_update(rows, fields=('endpoint', 'status'))",
        "FIELDS = ['status']\nBatch.objects.bulk_update(rows, FIELDS)",
        "batch.save(update_fields=['status'])",
        "Batch.objects.get_or_create(pk=pk, defaults={'status': to})",
        "Batch.objects.update_or_create(pk=pk, create_defaults={'status': to})",
        "Batch.objects.update_or_create(defaults=dict(status=to))",
        "setattr(batch, 'status', to)",
        "object.__setattr__(batch, 'status', to)",
        "batch.__dict__['status'] = to",
        "vars(batch)['status'] = to",
        "insert(Batch, ('id', 'status'), rows)",
        "cursor.execute('UPDATE batches_batch SET status = %s WHERE id = %s', [to, pk])",
        "async def end():\n    await Batch.objects.aupdate(status=to)",
    ],
)
def test_a_status_that_is_written_is_found(source: str) -> None:
    assert architecture.status_writes(architecture.ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "Batch.objects.filter(status=to).exclude(status='failed').update(paused_at=now)",
        "Batch.objects.get(status=to)",
        "Q(status__in=FINAL) | Q(status='failed')",
        "raise ApiError('no', status=404)",
        "JsonResponse(body, status=503)",
        "class Refusal(Exception):\n    def __init__(self, status):\n        self.status = status",
        "status = batch.status",
        "status = models.CharField(default=Status.VALIDATING)",
        "if batch.status == Status.FAILED: pass",
        "body = {'status': 'ok'}\nreturned = JsonResponse(body)",
        "row.save(update_fields=['body'])",
        "setattr(row, 'body', status)",
        "Batch.objects.values_list('status', flat=True)",
        "cursor.execute('UPDATE batches_batch SET total = 1 WHERE status = 2')",
    ],
)
def test_what_only_asks_or_answers_is_not(source: str) -> None:
    assert not architecture.status_writes(architecture.ast.parse(source))
