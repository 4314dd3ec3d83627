"""What vLLM's /metrics say of how busy it is (vllm/v1/metrics/loggers.py, vllm/config/cache.py)."""

from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

from batches.backends.states import Occupancy

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
# An older and the present name.
USED = ("vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc")
CACHE = "vllm:cache_config_info"
HOLDS = "kv_cache_max_concurrency"  # its label with the calls of --max-model-len tokens that the cache has room for


def occupancy(text: str) -> Occupancy | None:
    """How busy the server is that answered with `text`; None if the text does not tell.

    Each model and engine of a server has samples of its own: calls add up, and so does the room of the engines' caches.
    The fullest of the caches counts.
    """
    try:
        return _read(text)
    except (ValueError, OverflowError):
        return None


def _read(text: str) -> Occupancy | None:
    # A page has hundreds of samples more, and to parse them takes as long as the calls of several lines.
    ours = [line for line in text.split("\n") if any(name in line for name in (RUNNING, WAITING, *USED, CACHE))]
    values: defaultdict[str, list[float]] = defaultdict(list)
    for family in text_string_to_metric_families("\n".join([*ours, ""])):
        for sample in family.samples:
            is_room = sample.name == CACHE
            values[sample.name].append(_number(sample.labels.get(HOLDS)) if is_room else sample.value)
    if not values[RUNNING] or not values[WAITING]:
        return None
    used = max((each for name in USED for each in values[name]), default=0.0)
    return Occupancy(int(sum(values[RUNNING])), int(sum(values[WAITING])), used, sum(values[CACHE]))


def _number(label: str | None) -> float:
    """The number that a label holds; 0 for none. Older versions lack the label; a model without a cache has "None"."""
    return float(label) if label and label != "None" else 0.0
