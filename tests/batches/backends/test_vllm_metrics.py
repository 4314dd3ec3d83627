"""What vLLM's /metrics say of how busy it is, whatever else stands there."""

import pytest

from batches.backends import vllm_metrics
from batches.backends.states import Occupancy
from tests.fake_backend import METRICS, MODEL


def page(running=3, waiting=2):
    return METRICS.format(labels=f'engine="0",model_name="{MODEL}"', running=running, waiting=waiting)


def test_calls_that_run_and_wait_and_what_the_cache_has_room_for():
    assert vllm_metrics.occupancy(page()) == Occupancy(3, 2, 0.01, 22.75)


def test_the_engines_of_one_server_add_up_and_its_fullest_cache_counts():
    odd = 'a\\"{}\\n, b=\\"1'  # a name with each character that is escaped
    other = page(running=1, waiting=0).replace('engine="0"', 'engine="1"').replace(MODEL, odd)
    other = other.replace("} 0.01", "} 0.5")
    samples = [each for each in other.splitlines() if not each.startswith("#")]
    told = vllm_metrics.occupancy("\n".join([*page().splitlines(), *samples, ""]))
    assert told is not None
    assert (told.running, told.waiting, told.used, told.holds) == (4, 2, 0.5, 45.5)


def test_older_versions_say_less_or_name_it_otherwise():
    older = page().replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    assert vllm_metrics.occupancy(older.replace('kv_cache_max_concurrency="22.75",', "")) == Occupancy(3, 2, 0.01)
    without_cache = page().replace('="22.75"', '="None"')
    assert vllm_metrics.occupancy(without_cache) == Occupancy(3, 2, 0.01)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "<html>404 vllm:num_requests_running</html>",
        '{"detail": "vllm:num_requests_running"}',
        "vllm:num_requests_running 1\n",
        page().replace("} 3.0", "} NaN"),
        page().replace("} 2.0", "} +Inf"),
        page().replace("} 3.0", "} three"),
        page().replace("} 3.0", "}"),
        page().replace('engine="0"', 'engine="0'),
        page().replace("num_requests_running{", "num_requests_running_total{"),
        page().replace('="22.75"', '="many"'),
    ],
)
def test_a_page_that_does_not_tell(text):
    assert vllm_metrics.occupancy(text) is None


def test_what_others_write_there_does_not_matter():
    others = 'sglang:x{a="b"} 1\n# HELP broken\nhttp_requests_total{handler="/v1/models"} 7\ngarbage {{{\n'
    assert vllm_metrics.occupancy(others + page()) == vllm_metrics.occupancy(page())
