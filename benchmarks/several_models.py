"""The scenario `models`."""

from benchmarks import bare_clients, request_files
from benchmarks.effort import Effort
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import ModelServer, fixed_latency, swapping_llama, workbench

MODELS = ("alpha:latest", "beta:latest", "gamma:latest")
FIXED_LINES, LLAMA_LINES = 20, 8  # of each model
LATENCY_MS, SWAP_S = 20.0, 2.0


def models(effort: Effort) -> list[Table]:
    """What it is worth that the lines of one model are sent before the next model is loaded.

    Three models take turns from line to line, on a model server that holds one of them at a time. The bare loop sends
    the lines in the order of the file, the batch in its own. `fixed` takes 20 ms for an answer and 2 s to load a model;
    `llama.cpp` is a real process for each model (SmolLM2-135M under three names), ended and started at each change.
    Swaps are the loads that the model server counted, the first one too; seconds are the loop's, and of the batch from
    `in_progress_at` to `completed_at`. With --scale below 1 `fixed` loads faster too.
    """
    swap_s = SWAP_S * min(1.0, effort.scale)
    with fixed_latency(*MODELS) as model_server:
        fixed = _measure(effort, "fixed", model_server, FIXED_LINES, latency_ms=LATENCY_MS, swap_s=swap_s, slots=1)
    with swapping_llama(*MODELS) as model_server:
        llama = _measure(effort, "llama.cpp", model_server, LLAMA_LINES, slots=1)
    rows = [[name, *row] for name, (row, _) in (("fixed", fixed), ("llama.cpp", llama))]
    most = max(swaps for _, swaps in (fixed, llama))
    remark = verdict(f"a swap for each of the {len(MODELS)} models", most <= len(MODELS), f"{most} at most")
    swaps = ["bare swaps", "batch swaps"]
    return [Table(["model server", "lines", *swaps, "bare s", "batch s", "bare/batch s"], rows, remark)]


def _measure(
    effort: Effort, name: str, model_server: ModelServer, usual_lines: int, **wanted: float
) -> tuple[list[str], int]:
    """A row of the table, and the swaps of the batch."""
    lines = effort.lines(usual_lines, least=2) * len(MODELS)
    with workbench(model_server, BACKEND_PARALLEL="1") as bench:
        path = request_files.chats(bench.input_file, lines, 4, model_server.models)
        effort.tell(f"models: {name}, {lines} lines in the file's order")
        model_server.want(**wanted)
        bare_s = bare_clients.loop(model_server.url, path)
        bare = model_server.seen(lines).swaps
        effort.tell(f"models: {name}, {lines} lines as a batch")
        model_server.want(**wanted)
        batch = bench.batch(path)
        batch_s = bench.seconds_between(batch["id"], "in_progress_at", "completed_at")
        ours = model_server.seen(lines).swaps
    seconds = [figure(bare_s, 1), figure(batch_s, 1), figure(bare_s / batch_s)]
    return [str(lines), str(bare), str(ours), *seconds], ours
