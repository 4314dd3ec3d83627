"""The registry of `/metrics`, and what the web process counts itself: requests (django-prometheus) and its own memory.

Of the figures of django-prometheus those that are read are in it, since all of them, by view and method, are a thousand
lines. What prometheus_client tells of Python's garbage collector and of the platform is not in it.
"""

from typing import Any

from django_prometheus.middleware import Metrics, PrometheusAfterMiddleware, PrometheusBeforeMiddleware
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

PREFIX = "ollama_batch_server"
OF_REQUESTS = {
    "django_http_requests_latency_including_middlewares_seconds",
    "django_http_responses_total_by_status",
}

disable_created_metrics()  # type: ignore[no-untyped-call]  # a line for each counter that says when this process began
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
_unread = CollectorRegistry()


class _RequestMetrics(Metrics):  # type: ignore[misc]  # django-prometheus has no types
    def register_metric(self, metric_cls: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        registry = REGISTRY if name in OF_REQUESTS else _unread
        return super().register_metric(metric_cls, name, *args, registry=registry, **kwargs)


class BeforeMiddleware(PrometheusBeforeMiddleware):  # type: ignore[misc]
    """Takes the time of each request."""

    metrics_cls = _RequestMetrics


class AfterMiddleware(PrometheusAfterMiddleware):  # type: ignore[misc]
    """Counts answers by their status."""

    metrics_cls = _RequestMetrics
