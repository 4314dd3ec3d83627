"""The figures of batches in `/metrics`, read from the database at each scrape: no counter is lost or added up."""

from collections.abc import Iterator

from django.db import DatabaseError
from django.db.models import Count, F, Sum
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from batches.models import Backend, Batch, Status, WebhookDelivery

PREFIX = "ollama_batch_server"


class BatchCollector(Collector):
    def describe(self) -> list[Metric]:
        return []  # registering must not query a database that may not be migrated yet

    def collect(self) -> Iterator[Metric]:
        try:
            yield from self._collect()
        except DatabaseError:
            return  # /health reports it

    def _collect(self) -> Iterator[Metric]:
        yield from _batches()
        yield from _lines()
        yield GaugeMetricFamily(
            f"{PREFIX}_webhooks_waiting",
            "Webhook events neither delivered nor given up.",
            value=WebhookDelivery.objects.all().waiting().count(),
        )
        yield from _backends()


def _batches() -> Iterator[Metric]:
    counts = dict(Batch.objects.order_by().values_list("status").annotate(Count("pk")))
    batches = GaugeMetricFamily(f"{PREFIX}_batches", "Batches by status.", labels=["status"])
    for status in Status:
        batches.add_metric([status], counts.get(status, 0))
    yield batches
    yield GaugeMetricFamily(
        f"{PREFIX}_batches_stalled",
        "Batches whose next step cannot be done now.",
        value=Batch.objects.filter(stalled_at__isnull=False).count(),
    )


def _lines() -> Iterator[Metric]:
    names = ("completed", "failed", "repeated_finished", "input_tokens", "cached_tokens", "output_tokens")
    sums = Batch.objects.aggregate(**{name: Sum(name, default=0) for name in names})
    lines = CounterMetricFamily(f"{PREFIX}_lines", "Lines finished, by result.", labels=["result"])
    for result in ("completed", "failed"):
        lines.add_metric([result], sums[result])
    yield lines
    yield CounterMetricFamily(
        f"{PREFIX}_lines_repeated",
        "Finished lines that were not sent, but got the answer of an equal line of their batch.",
        value=sums["repeated_finished"],
    )
    tokens = CounterMetricFamily(f"{PREFIX}_tokens", "Tokens of finished lines, by kind.", labels=["kind"])
    for kind in ("input", "cached", "output"):
        tokens.add_metric([kind], sums[f"{kind}_tokens"])
    yield tokens
    in_progress = Batch.objects.filter(status=Status.IN_PROGRESS)
    left = in_progress.aggregate(left=Sum(F("total") - F("completed") - F("failed"), default=0))["left"]
    yield GaugeMetricFamily(f"{PREFIX}_lines_open", "Lines of batches in progress that have no result yet.", value=left)


def _backends() -> Iterator[Metric]:
    up = GaugeMetricFamily(f"{PREFIX}_backend_up", "1 if the backend takes lines, 0 if it is paused.", labels=["url"])
    limit = GaugeMetricFamily(
        f"{PREFIX}_backend_concurrency_limit", "Calls that may be in flight at the backend.", labels=["url"]
    )
    for backend in Backend.objects.all():
        up.add_metric([backend.url], 0 if backend.is_paused else 1)
        limit.add_metric([backend.url], backend.concurrency_limit)
    yield up
    yield limit


def register() -> None:
    """Called once, when Django has loaded the app."""
    REGISTRY.register(BatchCollector())
