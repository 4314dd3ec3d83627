"""The scenario `person`."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

from django.core.management.base import CommandError

from benchmarks import request_files
from benchmarks.effort import Effort
from benchmarks.request_files import ENDPOINT
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import ModelServer, Workbench, real_model, workbench

ASKED = 12  # times, in each state
LINES, LINE_TOKENS = 400, 160  # more than are answered while the person asks
HOLD_S = 0.5  # INTERACTIVE_HOLD_S; the person asks for the first time in a while each time
MOST_MORE_S = 0.5


def person(effort: Effort) -> list[Table]:
    """How long a person waits for the first byte of an answer while a batch runs, against the idle server.

    The person streams a chat with a short answer through the batch server, at random moments. The lines of the batch
    are chats with answers of up to 160 tokens. `line s` is how long the longest of three such lines takes at the model
    server, or of three times as many as --in-flight says, so many at once: a person who comes while lines are being
    answered in all slots waits for the rest of one of them. `bare s` is the same person at the model server itself,
    without a batch server or a batch.
    """
    asked = effort.lines(ASKED, least=3)
    rows, longest, line_s, alone = [], 0.0, 0.0, 0.0
    environment = effort.told | {"INTERACTIVE_HOLD_S": str(HOLD_S)}
    with real_model(effort) as model_server, workbench(model_server, **environment) as bench:
        model = model_server.models[0]
        tokens = effort.lines(LINE_TOKENS, least=16)
        path = request_files.chats(bench.input_file, LINES, tokens, [model])
        at_once = max(effort.in_flight or (1,))
        line_s = _line_s(model_server, path.read_text().splitlines()[: 3 * at_once], at_once)
        ours = ModelServer(bench.client.base, [model])
        bare = [_first_byte_s(model_server, number) for number in range(asked)]
        effort.tell(f"person: {asked} chats through the idle server")
        idle = [_first_byte_s(ours, number) for number in range(asked)]
        effort.tell(f"person: {asked} chats while lines of {line_s:.1f} s run")
        busy = _during_a_batch(bench, ours, asked, line_s)
        alone, longest = _median(idle), max(busy)
        figures = [line_s, _median(bare), alone, max(idle), _median(busy), longest]
        ratios = [_median(busy) / alone, (longest - alone) / line_s]
        rows.append([str(effort.parallel or "unset"), *map(figure, figures), *map(figure, ratios)])
    columns = ["BACKEND_PARALLEL", "line s", "bare s", "idle p50 s", "idle max s", "busy p50 s", "busy max s"]
    columns += ["busy/idle p50", "(busy max - idle p50)/line"]
    target = f"the first byte within one line and {MOST_MORE_S:g} s more than alone"
    found = f"{longest - alone:.2f} s more than alone, a line takes {line_s:.2f} s"
    return [Table(columns, rows, verdict(target, longest - alone <= line_s + MOST_MORE_S, found))]


def _during_a_batch(bench: Workbench, ours: ModelServer, asked: int, line_s: float) -> list[float]:
    batch = bench.client.create(bench.input_file, ENDPOINT, "24h")
    chance = random.Random(0)
    times = []
    for number in range(asked):
        _let_lines_run(bench, batch["id"])
        time.sleep(chance.uniform(0.0, 2 * line_s))
        times.append(_first_byte_s(ours, 1000 + number))
    if bench.client.batch(batch["id"])["status"] != "in_progress":
        raise CommandError("The batch was over before the last chat: take a larger --scale.")
    ours.session.post(f"{ours.url}/v1/batches/{batch['id']}/cancel", timeout=60).raise_for_status()
    return times


def _let_lines_run(bench: Workbench, batch_id: str) -> None:
    """Wait until two more lines are answered."""
    counts = bench.client.batch(batch_id)["request_counts"]
    enough = counts["completed"] + 2
    ends_at = time.monotonic() + 300
    while bench.client.batch(batch_id)["request_counts"]["completed"] < enough:
        if time.monotonic() > ends_at:
            raise CommandError("No line was answered in 300 s.")
        time.sleep(0.1)


def _line_s(model_server: ModelServer, lines: list[str], at_once: int) -> float:
    """How long the longest of these lines takes with so many at once, after one that loads the model."""

    def answer_s(line: str) -> float:
        started = time.monotonic()
        response = model_server.session.post(model_server.url + ENDPOINT, json=json.loads(line)["body"], timeout=600)
        response.raise_for_status()
        return time.monotonic() - started

    answer_s(lines[0])
    with ThreadPoolExecutor(at_once) as threads:
        return max(threads.map(answer_s, lines))


def _first_byte_s(server: ModelServer, number: int) -> float:
    messages = [{"role": "user", "content": f"Person {number}: {request_files.some_words(number, 6)}"}]
    body = {"model": server.models[0], "messages": messages, "max_tokens": 8, "stream": True}
    # A connection of its own: a model server may end it after a stream, just when the next request is on its way.
    headers = {"Connection": "close"}
    started = time.monotonic()
    with server.session.post(server.url + ENDPOINT, json=body, headers=headers, stream=True, timeout=600) as response:
        response.raise_for_status()
        pieces = response.iter_content(None)
        next(pieces)
        took = time.monotonic() - started
        for _ in pieces:
            pass
    return took


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]
