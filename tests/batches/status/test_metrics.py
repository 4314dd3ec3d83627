"""/metrics: what is in it, that counters never fall, and that a scrape costs the same with many lines."""

import re
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from batches import cleanup, forecasts, webhooks
from batches.models import Backend, Batch, Figures, Hold, Lease, Pulse, Response, Status, WebhookDelivery
from batches.models.figures import labels
from batches.status import metrics, totals
from common.database import from_now
from tests.batches.conftest import folded
from tests.conftest import line
from tests.fake_backend import Action
from tests.quiet import quiet_now
from tests.stack import ROOT

PREFIX = "ollama_batch_server_"
MODEL = "gemma3:12b"


def scraped(api):
    """(name, *labels) -> value, of all samples."""
    answer = api.get("/metrics")
    assert answer.status_code == 200
    samples = {}
    for family in text_string_to_metric_families(answer.content.decode()):
        for sample in family.samples:
            key = (sample.name.removeprefix(PREFIX), *sorted(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return samples


def value(samples, name, **labelled):
    return samples[(name, *sorted(labelled.items()))]


def counters(samples):
    """What must never fall: of the server, without what the web process counts for itself."""
    ends, own = ("_total", "_bucket", "_sum", "_count"), ("django_", "process_")
    return {key: found for key, found in samples.items() if key[0].endswith(ends) and not key[0].startswith(own)}


def an_old_batch(model=MODEL, status=Status.COMPLETED, *, days=0, **counts):
    """A row as a batch leaves it."""
    now = timezone.now() - timedelta(days=days)
    return Batch.objects.create(
        endpoint="/v1/chat/completions", completion_window="24h", model=model, status=status, input_file_id="file-x",
        created_at=now, expires_at=now + timedelta(days=1), **folded(**counts),
    )  # fmt: skip


def test_what_a_batch_did_is_counted(work, create, backend, api):
    backend.on_load.append(Action(delay_s=0.3))  # a load takes some time
    backend.on("b", Action(status=400))
    backend.on("c", Action(status=503), Action())
    once = {"temperature": 0, "messages": [{"role": "user", "content": "d"}]}
    batch = create([line("a"), line("b"), line("c"), line("d", body=once), line("e", body=once)])
    work.run(batch["id"])

    samples = scraped(api)

    assert value(samples, "lines_total", model=MODEL, result="completed") == 4
    assert value(samples, "lines_total", model=MODEL, result="failed") == 1
    assert value(samples, "lines_repeated_total", model=MODEL) == 1
    assert value(samples, "tokens_total", model=MODEL, kind="input") == batch_tokens(batch["id"])
    assert value(samples, "line_seconds_count", model=MODEL) == 4  # those that were sent and are over
    assert value(samples, "line_seconds_bucket", model=MODEL, le="+Inf") == 4
    assert value(samples, "line_output_tokens_count", model=MODEL) == 3
    assert value(samples, "failures_total", code="http_400") == 1
    assert value(samples, "retries_total", reason="busy") == 1
    assert value(samples, "model_loads_total", model=MODEL) == 1
    assert value(samples, "model_load_seconds_total", model=MODEL) > 0.2
    assert value(samples, "batches_finished_total", status="completed") == 1
    assert value(samples, "calls_in_flight", backend=backend.url) == 0
    assert value(samples, "backend_up", backend=backend.url) == 1
    assert value(samples, "database_up") == 1


def batch_tokens(batch_id):
    return Batch.objects.get(pk=batch_id).input_tokens


def test_no_counter_falls_when_batches_are_deleted(work, create, backend, api, settings):
    settings.WEBHOOK_URL = "http://127.0.0.1:9/hook"
    backend.on("b", Action(status=400))
    done = create([line("a"), line("b")])
    work.run(done["id"])
    cancelled = an_old_batch(status=Status.CANCELLED, total=10, completed=3, failed=1, input_tokens=7)
    expired = an_old_batch(None, status=Status.EXPIRED, total=5, completed=4, cached_tokens=2)
    failed = an_old_batch(None, status=Status.FAILED)
    webhooks._deliver(None)  # one attempt, at a port where nobody listens
    before = counters(scraped(api))
    assert value(before, "lines_total", model=MODEL, result="cancelled") == 6
    assert value(before, "lines_total", model="several", result="expired") == 1
    assert value(before, "webhook_attempts_total") == 1
    WebhookDelivery.objects.all().delete()  # as old ones are
    assert counters(scraped(api)) == before

    for number, batch_id in enumerate([done["id"], cancelled.pk, expired.pk, failed.pk]):
        if number % 2:
            assert api.delete(f"/v1/batches/{batch_id}").status_code in (200, 204)
        else:
            cleanup.delete(batch_id)
        assert counters(scraped(api)) == before

    assert not Batch.objects.exists()


def test_a_batch_that_is_deleted_during_a_scrape_counts_once(transactional_db, api, monkeypatch):
    batches = [an_old_batch(total=1, completed=1) for _ in range(3)]
    read = totals.of

    def read_and_delete(*arguments):
        found = read(*arguments)
        if batches:
            cleanup.delete(batches.pop().pk)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(metrics.totals, "of", read_and_delete)
        patched.setattr(cleanup.totals, "keep", lambda batches: Figures.add(Figures.DELETED, read(batches, [MODEL])))
        assert value(scraped(api), "lines_total", model=MODEL, result="completed") == 3
    assert not batches


def test_a_deletion_that_does_not_happen_counts_nothing(db, monkeypatch):
    batch = an_old_batch(total=2, completed=2)

    def fails(*_, **__):
        raise OperationalError("away")

    monkeypatch.setattr(Batch, "delete", fails)
    with pytest.raises(OperationalError):
        cleanup.delete(batch.pk)
    assert not Figures.objects.exists()


def test_the_names_of_models_are_bounded_and_keep_their_sums(transactional_db, api, monkeypatch):
    monkeypatch.setattr(Figures, "MOST_LABELS", 3)
    batches = [an_old_batch(f"m{n}", total=1, completed=n + 1, days=9 - n) for n in range(6)]
    before = counters(scraped(api))
    models = {dict(key[1:]).get("model") for key in before if key[0] == "lines_total"}
    assert models == {"m0", "m1", "m2", "other"}
    assert value(before, "lines_total", model="other", result="completed") == 4 + 5 + 6

    for batch in [batches[1], batches[4], batches[0], batches[5], batches[2]]:
        cleanup.delete(batch.pk)
        assert counters(scraped(api)) == before
    an_old_batch("m9", total=1, completed=1)
    assert value(scraped(api), "lines_total", model="other", result="completed") == 16


def test_a_model_that_is_counted_later_takes_no_name_of_another(transactional_db, api, monkeypatch):
    monkeypatch.setattr(Figures, "MOST_LABELS", 2)
    slow = an_old_batch(None, status=Status.VALIDATING, total=5, days=5)
    now = timezone.now()
    for name, hours in (("first", 3), ("second", 2)):
        an_old_batch(name, total=1, completed=1, in_progress_at=now - timedelta(hours=hours))
    an_old_batch(None, status=Status.CANCELLED, total=4, completed=1, days=9)  # before it had a model
    before = counters(scraped(api))
    # Its file was validated for days, and its first line is sent now.
    Batch.objects.filter(pk=slow.pk).update(
        status=Status.IN_PROGRESS, model="slow", folded_completed=2, in_progress_at=now
    )
    after = scraped(api)
    assert {key: after[key] for key in before} == before
    assert value(after, "lines_total", model="other", result="completed") == 2
    assert value(after, "lines_total", model="several", result="cancelled") == 3


def test_counters_are_left_out_while_batches_are_deleted_all_the_time(transactional_db, api, monkeypatch):
    an_old_batch(total=1, completed=1)
    read = totals.of

    def read_and_delete(*arguments):
        Figures.add(Figures.DELETED, {"lines": {labels(MODEL, "completed"): 1}})
        return read(*arguments)

    monkeypatch.setattr(metrics.totals, "of", read_and_delete)
    samples = scraped(api)
    assert counters(samples) == {}
    assert value(samples, "database_up") == 1
    assert value(samples, "batches", status="completed") == 1


@pytest.mark.parametrize("same", [False, True])
def test_no_counter_falls_when_a_stored_answer_is_damaged(work, create, backend, api, same):
    body = {"temperature": 0, "messages": [{"role": "user", "content": "x"}]} if same else {}
    batch = create([line("a", body=body), line("b", body=body), line("c")])
    work.validate(batch["id"])
    work.drive()
    before = counters(scraped(api))
    assert value(before, "lines_total", model=MODEL, result="completed") == 3
    damaged = Response.objects.filter(line__custom_id="a")
    damaged.update(body="damaged")

    work.fail_lines(batch["id"])
    work.finalize(batch["id"])
    over = work.batch(batch["id"])

    lost = 2 if same else 1
    assert over["request_counts"]["completed"] == 3 - lost
    after = counters(scraped(api))
    assert {key for key in before if after[key] < before[key]} == set()
    assert value(after, "lines_total", model=MODEL, result="completed") == 3
    assert value(after, "lines_total", model=MODEL, result="failed") == lost
    cleanup.delete(batch["id"])
    assert counters(scraped(api)) == after


def test_the_labels_of_what_drives_count_are_bounded(db, monkeypatch):
    monkeypatch.setattr(Figures, "MOST_LABELS", 2)
    for number in range(5):
        Figures.add("backend 1", {"failures": {f"code{number}": 1}, "lines": {labels(f"m{number}", "x"): 2}})
    values = Figures.objects.get().values
    assert values["failures"] == {"code0": 1, "code1": 1, "other": 3}
    assert values["lines"] == {"m0\tx": 2, "m1\tx": 2, "other\tx": 6}


@pytest.mark.parametrize("model", ["a\tb", 'quo"te', "back\\slash", "new\nline", "ünïcode", " ", "x" * 255])
def test_any_name_of_a_model_is_a_label(transactional_db, api, model):
    batch = an_old_batch(model, status=Status.CANCELLED, total=3, completed=1)
    Figures.add("backend 1", {"line_seconds_sum": {labels(model): 2.0}, "line_seconds": {labels(model, "5.0"): 1}})
    before = counters(scraped(api))
    told = model.replace("\t", " ")
    assert value(before, "lines_total", model=told, result="cancelled") == 2
    assert value(before, "line_seconds_bucket", model=told, le="15.0") == 1
    assert value(before, "line_seconds_bucket", model=told, le="2.0") == 0
    cleanup.delete(batch.pk)
    assert counters(scraped(api)) == before


def test_prometheus_may_ask_for_openmetrics(work, create, backend, api):
    work.run(create([line("a")])["id"])
    answer = api.get("/metrics", HTTP_ACCEPT="application/openmetrics-text;version=1.0.0")
    assert answer["Content-Type"].startswith("application/openmetrics-text")
    assert list(openmetrics.text_string_to_metric_families(answer.content.decode()))


def test_what_waits_is_told(transactional_db, api, live_backend, settings):
    an_old_batch(status=Status.IN_PROGRESS, total=10, completed=0, days=0.5)
    paused = an_old_batch(None, status=Status.IN_PROGRESS, total=7, completed=1)
    Batch.objects.filter(pk=paused.pk).update(paused_at=timezone.now())
    Hold.objects.create(reason=Hold.Reason.PAUSED)
    Pulse.stamp("ticked", error="send webhooks")
    live_backend.pause("gone")
    Lease.objects.create(
        purpose="drive",
        host="h",
        pid=1,
        started="",
        expires_at=from_now(timedelta(9)),
        backend=live_backend,
        in_flight=4,
    )
    samples = scraped(api)
    assert value(samples, "lines_open", model=MODEL) == 10
    assert value(samples, "lines_open", model="several") == 6
    assert value(samples, "queue_age_seconds") == pytest.approx(43_200, abs=60)
    assert value(samples, "window_left_seconds") == pytest.approx(43_200, abs=60)
    assert value(samples, "batches_paused") == 1
    assert value(samples, "lines_paused") == 6
    assert value(samples, "holds", reason="paused") == 1
    assert value(samples, "holds", reason="quiet_hours") == 0
    quiet_now(settings)
    assert value(scraped(api), "holds", reason="quiet_hours") == 1
    assert value(samples, "tick_failing") == 1
    assert value(samples, "backend_up", backend="here") == 0
    assert value(samples, "calls_in_flight", backend="here") == 4
    assert value(samples, "worker_report_age_seconds", backend="here") < 60
    assert value(samples, "disk_free_bytes") > 0


def test_forecasts_are_told_while_they_are_fresh(transactional_db, api):
    now = timezone.now().timestamp()
    ends = [(now + 100, now + 50), (now + 300, now + 10_000)]
    Figures.add(Figures.FORECASTS, {}, present={"at": now, "ends": ends})
    samples = scraped(api)
    assert value(samples, "forecast_seconds") == pytest.approx(300, abs=30)
    assert value(samples, "window_margin_seconds") == -50
    Figures.add(Figures.FORECASTS, {}, present={"at": now - 121})
    assert ("forecast_seconds",) not in scraped(api)
    forecasts.review()  # no batch is in progress
    assert ("forecast_seconds",) not in scraped(api)


def test_a_scrape_reads_no_lines_and_asks_as_much_for_many_batches(work, create, backend):
    work.run(create([line("a"), line("b")])["id"])
    list(metrics._all())

    def queries():
        with CaptureQueriesContext(
            connection,
        ) as captured:
            list(metrics._all())
        assert not [each["sql"] for each in captured if "batches_line" in each["sql"]]
        return len(captured)

    few = queries()
    for number in range(30):
        an_old_batch(f"m{number}", status=Status.IN_PROGRESS, total=1)
        Backend.objects.create(name=f"b{number}", url="http://x")
    assert queries() == few


def test_pages_for_monitors_count_in_no_figure_of_requests(transactional_db, api):
    def of_requests():
        return {key: found for key, found in scraped(api).items() if key[0].startswith("django_")}

    before = of_requests()
    for page in ("/livez", "/readyz", "/metrics", "/livez"):
        api.get(page)
    assert of_requests() == before
    assert api.get("/v1/batches").status_code == 200
    after = of_requests()
    for name in ("requests_latency_including_middlewares_seconds_count", "responses_total_by_status_total"):
        counted = [
            sum(found for key, found in each.items() if key[0] == f"django_http_{name}") for each in (before, after)
        ]
        assert counted[1] == counted[0] + 1, name


def test_without_a_database_the_page_says_so(transactional_db, api, monkeypatch):
    def away(*_, **__):
        raise OperationalError("away")

    with monkeypatch.context() as patched:
        patched.setattr("django.db.backends.utils.CursorWrapper.execute", away)
        samples = scraped(api)
    assert value(samples, "database_up") == 0
    assert ("django_http_requests_latency_including_middlewares_seconds_count",) in samples
    assert ("lines_open",) not in samples


def test_the_page_is_short(work, create, backend, api):
    work.run(create([line("a")])["id"])
    samples = api.get("/metrics").content.decode().splitlines()
    assert len([each for each in samples if not each.startswith("#")]) < 110
    assert "_created" not in "\n".join(samples)


# What is documented and used


def families(api):
    """The names of all samples of a server where everything has happened."""
    batch = an_old_batch(status=Status.IN_PROGRESS, total=9, completed=1)
    Pulse.stamp("ticked")
    Backend.objects.create(name="b", url="http://x", worker_seen_at=timezone.now(), seen_at=timezone.now())
    now = timezone.now().timestamp()
    Figures.add(Figures.FORECASTS, {}, present={"at": now, "ends": [(now, now)]})
    drive = {"retries": {"busy": 1}, "failures": {"x": 1}, "model_loads": {MODEL: 1}, "model_load_seconds": {MODEL: 1}}
    drive |= {"line_seconds_sum": {MODEL: 1}, "line_output_tokens_sum": {MODEL: 1}}
    Figures.add("backend 1", drive)
    an_old_batch()
    assert totals.of(Batch.objects.filter(pk=batch.pk))
    api.get("/health")
    return {key[0] for key in scraped(api)}


def test_each_figure_is_documented(transactional_db, api):
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in families(api)}
    page = (ROOT / "docs" / "monitoring.md").read_text()
    table = page.partition("| name | labels | what it is |")[2].partition("\n\n")[0]
    documented = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.partition("| ")[2].partition(" |")[0])
    }
    assert documented == names


def test_each_figure_of_the_dashboard_and_the_alerts_is_there(transactional_db, api):
    there = families(api) | {"up"}
    for path in ("grafana/dashboards/ollama-batch-server.json", "alerts.yml", "alerts_test.yml"):
        text = (ROOT / "monitoring" / path).read_text()
        used = set(re.findall(rf"{PREFIX}(\w+)", text)) | set(re.findall(r"\b(?:process|django)_\w+", text))
        assert used, path
        assert used <= there, path
