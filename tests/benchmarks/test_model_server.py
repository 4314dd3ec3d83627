"""What benchmarks measure with: the model server of fixed latency queues, counts and swaps as it says."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from benchmarks import bare_clients, request_files
from benchmarks.workbench import ModelServer, Seen, fixed_latency


@pytest.fixture
def server(processes: None) -> Iterator[ModelServer]:
    with fixed_latency("alpha:latest", "beta:latest") as server:
        yield server


def ask(server: ModelServer, models: list[str]) -> None:
    """A call for each, at once."""

    def post(model: str) -> str:
        body = {"model": model, "messages": []}
        answer = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=30).json()
        return str(answer["model"])

    with ThreadPoolExecutor(len(models)) as pool:
        assert list(pool.map(post, models)) == models


def test_calls_beyond_its_slots_wait_in_a_queue(server: ModelServer) -> None:
    server.want(models=["alpha:latest"], latency_ms=50, slots=2)
    ask(server, ["alpha:latest"] * 6)
    seen = server.seen(6)
    most = max(sum(start <= at < end for start, end in zip(seen.starts, seen.ends, strict=True)) for at in seen.starts)
    assert most == 2
    assert seen.ends[-1] - seen.starts[0] >= 3 * 0.050
    assert all(end - start >= 0.050 for start, end in zip(seen.starts, seen.ends, strict=True))


def test_it_loads_a_model_when_the_calls_before_are_over(server: ModelServer) -> None:
    server.want(latency_ms=20, swap_s=0.1)
    for models in (["alpha:latest"] * 2, ["beta:latest"] * 2, ["alpha:latest"]):
        ask(server, models)
    seen = server.seen(5)
    assert seen.swaps == 3
    assert seen.starts[2] - seen.ends[1] >= 0.1
    assert seen.starts[4] - seen.ends[3] >= 0.1
    assert requests.get(f"{server.url}/api/ps", timeout=5).json()["models"][0]["name"] == "alpha:latest"


def test_an_order_to_load_is_a_swap_and_no_call(server: ModelServer) -> None:
    server.want(swap_s=0.05)
    assert requests.post(f"{server.url}/api/generate", json={"model": "beta:latest"}, timeout=5).ok
    ask(server, ["beta:latest"])
    assert server.seen(1).swaps == 1


def test_a_client_that_goes_away_frees_its_slot(server: ModelServer) -> None:
    server.want(models=["alpha:latest"], latency_ms=60_000, slots=1)
    with pytest.raises(requests.Timeout):
        requests.post(f"{server.url}/v1/chat/completions", json={}, timeout=0.2)
    server.want(models=["alpha:latest"], slots=1)
    ask(server, ["alpha:latest"])


@pytest.mark.parametrize(
    "client",
    [bare_clients.threads, bare_clients.with_aiohttp, bare_clients.with_httpx, bare_clients.sockets],
    ids=lambda client: client.__name__,
)
def test_the_bare_clients_send_each_line_once_so_many_at_a_time(
    server: ModelServer, tmp_path: Path, client: Callable[[str, Path, int], float]
) -> None:
    server.want(models=["alpha:latest"], latency_ms=30)
    path = request_files.plain(tmp_path / "requests.jsonl", 12, 500, ["alpha:latest"])
    assert client(server.url, path, 4) >= 3 * 0.030
    seen = server.seen(12)
    assert (
        max(sum(start <= at < end for start, end in zip(seen.starts, seen.ends, strict=True)) for at in seen.starts)
        == 4
    )
    if client is not bare_clients.sockets:
        answers = bare_clients.answers_to(path).read_text().splitlines()
        assert sorted(json.loads(line)["custom_id"] for line in answers) == sorted(f"line-{n}" for n in range(12))


def test_figures_of_what_it_saw() -> None:
    seen = Seen(starts=[0.0, 1.5, 3.0], ends=[1.0, 2.5, 4.0], swaps=0)
    assert seen.ms_per_line == 1500
    assert seen.gap_ms == 500
    assert seen.lines_per_s == 0.75
