"""The scenario `prefixes`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import bare_clients, request_files
from benchmarks.answers import tokens
from benchmarks.effort import Effort
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import Workbench, real_model, workbench

PROMPTS, LINES = 8, 40  # five lines of each system prompt
PROMPT_WORDS = 400  # some 420 tokens
RAM_CACHES_MIB = (0, 8192)  # none, and llama.cpp's own default
LEAST_OVER_FILE_ORDER, LEAST_OVER_BEST = 3.0, 0.95


def prefixes(effort: Effort) -> list[Table]:
    """What it is worth that lines which begin alike are sent one after the other, on a real model.

    Each line is a chat with one of 8 long system prompts and a short question, answered in four tokens. In the file
    the prompts take turns from line to line, as a file that was written item by item has them. A bare client sends the
    lines in the order of the file, and once more sorted, so that all lines of one prompt follow each other; it has
    as many calls in flight as the server has slots. The batch gets the file and is told nothing of the server. Each
    run has prompts of its own, so that none finds in a cache what another left there.

    The model is SmolLM2-135M in llama.cpp, on one thread. Each of its slots keeps the prompt that it read last, and
    reads again what the next one has not in common with it. Beside the slots it keeps earlier prompts in up to
    `RAM cache` MiB of main memory (its --cache-ram; 8192 is its own default, and Ollama's). `read` is how many tokens
    of prompt it had to read, by the `usage` of the answers (all of them, if a server of yours does not tell); seconds
    are the bare client's, and of the batch from `in_progress_at` to `completed_at`; `best` is the faster of the two
    orders. With --scale below 1 there are fewer lines, and the system prompts get shorter too. With --backend-url the
    server is yours, and --in-flight says how many calls the bare client has in flight.
    """
    rows, remarks = [], []
    for slots, cache_mib in _servers(effort):
        with real_model(effort, slots, cache_mib) as model_server, workbench(model_server, **effort.told) as bench:
            for number, in_flight in enumerate(effort.in_flight or (slots,)):
                of_server = "" if effort.backend_url else f"{_slots(slots)}, {cache_mib} MiB of RAM cache, "
                effort.tell(f"prefixes: {of_server}{in_flight} at once")
                found = _measure(bench, effort, in_flight, number)
                server = ["-", "-"] if effort.backend_url else [str(slots), str(cache_mib)]
                rows.append([*server, str(in_flight), *found.cells])
                if not cache_mib and not effort.backend_url:
                    target = f"at least {LEAST_OVER_FILE_ORDER:g} times as fast as the file's order, {_slots(slots)}"
                    is_met = found.over_file_order >= LEAST_OVER_FILE_ORDER
                    remarks.append(verdict(target, is_met, f"{found.over_file_order:.2f} times"))
    worst = min(float(row[-1].replace(",", "")) for row in rows)
    target = f"best/batch at least {LEAST_OVER_BEST:g} everywhere"
    remarks.append(verdict(target, worst >= LEAST_OVER_BEST, f"{worst:.2f} at worst"))
    orders = ["file order read", "sorted read", "batch read", "file order s", "sorted s", "batch s", "best/batch"]
    return [Table(["slots", "RAM cache", "bare at once", "lines", *orders], rows, "\n".join(remarks))]


def _servers(effort: Effort) -> Iterator[tuple[int, int]]:
    """Slots and MiB of RAM cache; a server of the user's is measured once, as it is."""
    if effort.backend_url:
        yield 1, 0
        return
    for slots in effort.slots:
        for cache_mib in RAM_CACHES_MIB:
            yield slots, cache_mib


def _slots(number: int) -> str:
    return f"{number} slot" if number == 1 else f"{number} slots"


@dataclass(frozen=True)
class _Found:
    """Tokens read and seconds: in the file's order, sorted, and as a batch."""

    lines: int
    read: list[int]
    seconds: list[float]

    @property
    def over_file_order(self) -> float:
        return self.seconds[0] / self.seconds[2]

    @property
    def cells(self) -> list[str]:
        read, seconds = [f"{each:,}" for each in self.read], [figure(each, 1) for each in self.seconds]
        return [str(self.lines), *read, *seconds, figure(min(self.seconds[:2]) / self.seconds[2])]


def _measure(bench: Workbench, effort: Effort, in_flight: int, round_: int) -> _Found:
    lines = effort.lines(LINES, least=PROMPTS)
    words = min(PROMPT_WORDS, effort.lines(PROMPT_WORDS))
    model, url = bench.model_server.models[0], bench.model_server.url

    def file(run: int, *, is_sorted: bool = False) -> Path:
        numbers = range(1000 * (3 * round_ + run), 1000 * (3 * round_ + run) + PROMPTS)
        return request_files.with_system_prompts(bench.input_file, lines, numbers, words, model, is_sorted=is_sorted)

    read, seconds = [], []
    for run, is_sorted in enumerate((False, True)):
        path = file(run, is_sorted=is_sorted)
        seconds.append(bare_clients.threads(url, path, in_flight))
        read.append(tokens(bare_clients.answers_to(path)).read)
    batch = bench.batch(file(2))
    seconds.append(bench.seconds_between(batch["id"], "in_progress_at", "completed_at"))
    read.append(tokens(bench.output(batch)).read)
    return _Found(lines, read, seconds)
