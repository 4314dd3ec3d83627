"""The registry of `/metrics`, and what the web process counts itself: requests and its own memory.

Those of prometheus_client's own collectors that nobody reads (Python's garbage collector, the platform) are not in it.
"""

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, disable_created_metrics

PREFIX = "ollama_batch_server"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a line for each counter that says when this process began
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

_requests = Counter(f"{PREFIX}_http_requests", "Requests answered, by status.", ["status"], registry=REGISTRY)
_seconds = Counter(
    f"{PREFIX}_http_request_seconds", "Time until the answer began, by status.", ["status"], registry=REGISTRY
)


def note_request(status: int, seconds: float) -> None:
    """Count a request; by the class of its status (2xx) alone."""
    name = f"{status // 100}xx"
    _requests.labels(name).inc()
    _seconds.labels(name).inc(seconds)
