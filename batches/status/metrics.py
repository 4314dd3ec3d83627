"""The figures of `/metrics`, read from the database at each scrape. docs/monitoring.md has a table of them.

Counters are sums over rows, and over what drives and deleted batches have left behind (Figures), so they never fall. No
query reads lines: a scrape costs the same with a million of them.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

from django.conf import settings
from django.db import DatabaseError
from django.db.models import Count, Min, Sum
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from batches.model_labels import known_models, named
from batches.models import Backend, Batch, Figures, Hold, Lease, PausedModel, Pulse, Status, WebhookDelivery
from batches.models.counts import lines_open
from batches.models.figures import BOUNDS, NO_LABELS, labels
from batches.scheduling import gate, switch
from batches.status import health, progress, totals
from common import database
from common.bounded import Bounded
from common.metrics import PREFIX, REGISTRY
from files_api import storage

WITHIN_S = 8.0  # a monitor gives up after 10
MOST_READS = 5  # of what batches add, while batches are being deleted
FORECASTS_HOLD_S = 120.0  # the tick makes them anew every 15 s
# Counters, with their labels and what they tell.
COUNTERS = {
    "lines": (["model", "result"], "Lines finished, by result: completed, failed, cancelled, expired."),
    "lines_repeated": (["model"], "Finished lines that were not sent, but got the answer of an equal line."),
    "tokens": (
        ["model", "kind"],
        "Tokens of finished lines: input, cached (of input, read before), output, reasoning.",
    ),
    "batches_finished": (["status"], "Batches that are over, by their status."),
    "webhook_attempts": ([], "Attempts to deliver a webhook's event."),
    "webhooks_delivered": ([], "Webhook events that were delivered."),
    "retries": (["reason"], "Lines sent again, by what became of the call before."),
    "failures": (["code"], "Lines that failed, by the code of their error."),
    "model_loads": (["model"], "Loads of a model that a drive asked for."),
    "model_load_seconds": (["model"], "Seconds that these loads took."),
    "model_swaps": ([], "Models taken off the card to make room for another."),
}
HISTOGRAMS = {
    "line_seconds": "Seconds that the model server took for a line.",
    "line_output_tokens": "Tokens of the answer to a line.",
}


class BatchCollector(Collector):
    def __init__(self) -> None:
        # A database that hangs hangs no scrape: prometheus asks again every few seconds, each time in another thread.
        self._read = Bounded(lambda: list(_all()), within_s=WITHIN_S)

    def describe(self) -> list[Metric]:
        return []  # registering must not query a database that may not be migrated yet

    def collect(self) -> Iterator[Metric]:
        found: list[Metric] = []
        with suppress(DatabaseError, TimeoutError):  # /readyz says more
            found = self._read.ask()
        yield _gauge("database_up", "1 if the database answers; if not, most others are missing.", 1 if found else 0)
        yield from found


def _all() -> Iterator[Metric]:
    yield from _counters()
    yield from _batches()
    yield from _waiting()
    yield from _backends()
    yield from _server()


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", told, value=value)


def _counters() -> Iterator[Metric]:
    added = _added()
    if added is None:
        return
    sums: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for counts in added:
        for name, by_labels in counts.items():
            if name != "models":
                for key, value in by_labels.items():
                    sums[name][key] += value
    for name, (names, told) in COUNTERS.items():
        counter = CounterMetricFamily(f"{PREFIX}_{name}", told, labels=names)
        for key, value in sorted(sums[name].items()) or ([] if names else [(NO_LABELS, 0.0)]):
            counter.add_metric(key.split("\t") if names else [], value)
        yield counter
    for name, told in HISTOGRAMS.items():
        yield _histogram(name, told, sums[name], sums[f"{name}_sum"])


def _added() -> list[totals.Totals] | None:
    """What batches, deleted batches and drives have added. Each batch counts once, if it is deleted meanwhile too.

    None if batches are deleted during each of MOST_READS readings: then one could count twice or not at all, and a
    scrape without counters does no harm, while one that falls does.
    """
    figures = Figures.objects.exclude(pk=Figures.FORECASTS).values_list("pk", "values")
    before = dict(figures.all())
    for _ in range(MOST_READS):
        of_batches, after = totals.of(Batch.objects.all()), dict(figures.all())
        if before.get(Figures.DELETED) == after.get(Figures.DELETED):
            return [of_batches, *after.values()]
        before = after
    return None


def _histogram(name: str, told: str, counts: dict[str, float], of_models: dict[str, float]) -> Metric:
    histogram = HistogramMetricFamily(f"{PREFIX}_{name}", told, labels=["model"])
    for model in sorted(of_models):
        below, buckets = 0.0, []
        for bound in (*map(str, BOUNDS[name]), "+Inf"):
            below += counts.get(labels(model, bound), 0)
            buckets.append((bound, below))
        histogram.add_metric([model], buckets, sum_value=of_models[model])
    return histogram


def _batches() -> Iterator[Metric]:
    counts = dict(Batch.objects.order_by().values_list("status").annotate(Count("pk")))
    batches = GaugeMetricFamily(f"{PREFIX}_batches", "Batches by status.", labels=["status"])
    for status in Status:
        batches.add_metric([status], counts.get(status, 0))
    yield batches
    stalled = Batch.objects.filter(stalled_at__isnull=False)
    yield _gauge("batches_stalled", "Batches whose next step cannot be done now.", stalled.count())
    waiting = Batch.objects.filter(status__in=switch.PAUSABLE)
    yield _gauge("batches_paused", "Batches that a person has paused.", waiting.exclude(paused_at=None).count())
    too_short = sum(
        any(each["code"] == progress.WINDOW_TOO_SHORT for each in warnings)
        for warnings in waiting.exclude(warnings=[]).values_list("warnings", flat=True)
    )
    yield _gauge("batches_window_too_short", "Batches that end after their completion window, as forecast.", too_short)
    models = known_models()
    lines = GaugeMetricFamily(
        f"{PREFIX}_lines_open", "Lines of batches in progress without a result.", labels=["model"]
    )
    left: defaultdict[str, float] = defaultdict(float)
    open_ = Sum(lines_open())
    for model, count in Batch.objects.all().in_progress().order_by().values_list("model").annotate(left=open_):
        left[named(model, models)] += count
    for model, count in sorted(left.items()):
        lines.add_metric([model], count)
    yield lines
    paused = Batch.objects.all().in_progress().exclude(paused_at=None).aggregate(left=open_)["left"]
    yield _gauge("lines_paused", "Of the open lines, those of batches that a person has paused.", paused or 0)


def _waiting() -> Iterator[Metric]:
    """How long batches wait, and when they end: of batches that a person has paused, nothing is said."""
    waiting = Batch.objects.filter(status__in=switch.PAUSABLE, paused_at=None)
    untouched = waiting.filter(total=lines_open()).aggregate(oldest=Min("created_at"))["oldest"]
    yield _gauge(
        "queue_age_seconds", "Age of the oldest batch without a finished line; 0 if there is none.", _age(untouched)
    )
    ends_first = waiting.aggregate(first=Min("expires_at"))["first"]
    if ends_first is not None:
        left_s = (ends_first - database.now()).total_seconds()
        yield _gauge("window_left_seconds", "Time until the first completion window of an open batch ends.", left_s)
    kept = Figures.objects.filter(pk=Figures.FORECASTS).values_list("values", flat=True).first() or {}
    now = database.now().timestamp()
    if kept.get("ends") and kept.get("at", 0) > now - FORECASTS_HOLD_S:
        ends = kept["ends"]
        last_s = max(end for end, _ in ends) - now
        yield _gauge("forecast_seconds", "Time until the last batch in progress ends, as forecast.", max(0.0, last_s))
        margin_s = min(expires - end for end, expires in ends)
        told = "Least time between a batch's forecast end and its window's; below 0 the window is too short."
        yield _gauge("window_margin_seconds", told, margin_s)


def _backends() -> Iterator[Metric]:
    def of_backend(name: str, told: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{PREFIX}_{name}", told, labels=["backend"])

    up = of_backend("backend_up", "1 if the model server takes lines, 0 if it is paused.")
    answered = of_backend("backend_answer_age_seconds", "Time since the model server answered its worker's probe.")
    reported = of_backend("worker_report_age_seconds", "Time since the model server's inference worker reported.")
    limit = of_backend("backend_concurrency_limit", "Calls that may be in flight at the model server.")
    in_flight = of_backend("calls_in_flight", "Calls in flight at the model server, for lines and questions.")
    paused = of_backend("models_paused", "Models of the model server whose lines wait because the model fails.")
    drives = Lease.objects.alive().filter(backend__isnull=False).order_by()
    calls = dict(drives.values_list("backend").annotate(Sum("in_flight")))
    failing = dict(PausedModel.objects.order_by().values_list("backend").annotate(Count("pk")))
    for backend in Backend.objects.order_by("pk"):
        up.add_metric([backend.name], 0 if backend.is_paused else 1)
        limit.add_metric([backend.name], backend.concurrency_limit)
        in_flight.add_metric([backend.name], calls.get(backend.pk, 0))
        paused.add_metric([backend.name], failing.get(backend.pk, 0))
        for family, at in ((answered, backend.seen_at), (reported, backend.worker_seen_at)):
            if at is not None:
                family.add_metric([backend.name], _age(at))
    yield from (up, answered, reported, limit, in_flight, paused)


def _server() -> Iterator[Metric]:
    tick = Pulse.objects.filter(pk="ticked").first()
    if tick is not None:
        yield _gauge(
            "tick_age_seconds",
            "Time since the last tick, which comes every 2 s, without work every 20 s.",
            _age(tick.at),
        )
        yield _gauge("tick_failing", "1 if a duty of the last tick failed.", 1 if health.failed_duties() else 0)
    holds = GaugeMetricFamily(
        f"{PREFIX}_holds", "What keeps lines back, or lets them go beside persons.", labels=["reason"]
    )
    counts = dict(Hold.objects.active().order_by().values_list("reason").annotate(Count("pk")))
    for reason in Hold.Reason:
        holds.add_metric([reason], counts.get(reason, 0))
    holds.add_metric(["quiet_hours"], 1 if gate.quiet_until() else 0)  # by the clock: no row says so
    yield holds
    deliveries = WebhookDelivery.objects.all()
    yield _gauge("webhooks_waiting", "Webhook events neither delivered nor given up.", deliveries.waiting().count())
    given_up = deliveries.filter(next_at=None, delivered_at=None)
    yield _gauge("webhooks_given_up", "Webhook events that were given up.", given_up.count())
    if (free := storage.free_bytes()) is not None:
        yield _gauge("disk_free_bytes", "Free on the disk of DATA_DIR.", free)
        yield _gauge("disk_reserve_bytes", "Of these, what stays free (MIN_FREE_BYTES).", settings.MIN_FREE_BYTES)


def _age(at: datetime | None) -> float:
    """Seconds since then; 0 for never, and if the clock went back."""
    return 0.0 if at is None else max(0.0, (database.now() - at).total_seconds())


def register() -> None:
    """Called once, when Django has loaded the app."""
    REGISTRY.register(BatchCollector())
