"""The scenario `money`."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import fmean

from benchmarks import bare_clients, request_files
from benchmarks.answers import Tokens, tokens
from benchmarks.effort import Effort
from benchmarks.tables import Table, figure
from benchmarks.workbench import real_model, workbench

LINES, MAX_TOKENS = 60, 48
NVIDIA_SMI = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
LOOK_EVERY_S, LOOK_TIMEOUT_S = 1.0, 10.0


def money(effort: Effort) -> list[Table]:
    """What a real batch gets done in tokens, and what they would cost elsewhere.

    Short chats with answers of up to 48 tokens, by `requests`, one after the other or as many at once as `at once`
    says, and as a batch, on the embedded model, or on the model server and the model that --backend-url and --model
    name. Seconds are the bare client's, and of the batch from `in_progress_at` to `completed_at`; `batch/bare` is the
    batch's output tokens a second by the bare client's. Prices are whatever --price-in and --price-out say, for
    1,000,000 tokens; there is no default. Energy is what nvidia-smi tells of all cards together, once a second.
    """
    with real_model(effort) as model_server, workbench(model_server, **effort.told) as bench:
        lines = effort.lines(LINES, least=2)
        path = request_files.chats(bench.input_file, lines, MAX_TOKENS, model_server.models)
        bare = []
        for in_flight in effort.in_flight or (1,):
            effort.tell(f"money: {lines} lines by requests, {in_flight} at once")
            bare_s = bare_clients.threads(model_server.url, path, in_flight)
            bare.append((in_flight, tokens(bare_clients.answers_to(path)), bare_s))
        effort.tell(f"money: {lines} lines as a batch")
        with _watts() as watts:
            batch = bench.batch(path)
        batch_s = bench.seconds_between(batch["id"], "in_progress_at", "completed_at")
        ours = tokens(bench.output(batch))
    batch_speed = ours.written / batch_s
    rows = [
        ["bare", str(in_flight), *_figures(lines, done, seconds), figure(batch_speed / (done.written / seconds))]
        for in_flight, done, seconds in bare
    ]
    rows.append(["batch", "-", *_figures(lines, ours, batch_s), "-"])
    columns = ["by", "at once", "lines", "input tokens", "output tokens", "seconds", "output tokens/s", "batch/bare"]
    speed = Table(columns, rows)
    worth, remark = _worth(effort, ours, batch_s, watts)
    return [speed, Table(["of the batch", "figure"], worth, remark)]


def _figures(lines: int, done: Tokens, seconds: float) -> list[str]:
    counts = [str(lines), f"{done.prompt:,}", f"{done.written:,}"]
    return [*counts, figure(seconds, 1), figure(done.written / seconds, 1)]


def _worth(effort: Effort, done: Tokens, seconds: float, watts: list[float]) -> tuple[list[list[str]], str]:
    """Rows, and remarks that say which figures are unknown and so left out."""
    hours = seconds / 3600
    rows = [
        ["input tokens in an hour", f"{done.prompt / hours:,.0f}"],
        ["output tokens in an hour", f"{done.written / hours:,.0f}"],
    ]
    remarks = []
    price = None
    if effort.price_in is None or effort.price_out is None:
        remarks.append("No price: give --price-in and --price-out.")
    else:
        price = (done.prompt * effort.price_in + done.written * effort.price_out) / 1e6
        rows.append(["price elsewhere of an hour's tokens", f"{price / hours:,.4f}"])
    if not effort.backend_url:
        remarks.append("No energy: the embedded model computes on the CPU.")
    elif not watts:
        remarks.append("No energy: nvidia-smi does not answer.")
    else:
        kwh = fmean(watts) / 1000 * hours
        rows += [
            ["watts", figure(fmean(watts), 0)],
            ["kWh for 1,000,000 output tokens", figure(kwh / done.written * 1e6)],
        ]
        if price is not None:
            rows.append(["price elsewhere of the tokens of a kWh", figure(price / kwh)])
    return rows, " ".join(remarks)


@contextmanager
def _watts() -> Iterator[list[float]]:
    """Fills a list with the power draw, once a second; the list stays empty if there is no nvidia-smi."""
    found: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            # A card that does not measure its power answers "[N/A]".
            with suppress(OSError, subprocess.SubprocessError, ValueError):
                told = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=LOOK_TIMEOUT_S, check=True)
                found.append(sum(map(float, told.stdout.split())))
            over.wait(LOOK_EVERY_S)

    thread = threading.Thread(target=look)
    if shutil.which(NVIDIA_SMI[0]):
        thread.start()
    try:
        yield found
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()
