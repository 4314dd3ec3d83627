"""The scenario `prefixes`."""

from benchmarks import bare_clients, request_files
from benchmarks.answers import tokens
from benchmarks.effort import Effort
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import Workbench, real_model, workbench

# system prompts -> lines, five of each prompt, as far apart as possible: some eight minutes at 250 tokens a second
LINES_OF_PROMPTS = {1: 5, 4: 20, 16: 80}
PROMPT_WORDS = 950  # some 1,000 tokens
TARGET_PROMPTS, LEAST_RATIO = 16, 3.0


def prefixes(effort: Effort) -> list[Table]:
    """What it is worth that lines which begin alike are sent one after the other, on a real model.

    Each line is a chat with one of several long system prompts and a short question, answered in four tokens, and the
    prompts take turns from line to line, as a file that was written item by item has them. The bare loop sends the
    lines in the order of the file, the batch in its own. The model (SmolLM2-135M in llama.cpp, one slot, one thread, no
    cache beside the slot's own) reads again what the prompt has not in common with the one before. `read` is how many
    tokens of prompt it had to read, by the `usage` of the answers (all of them, if a server of yours does not tell);
    seconds are the loop's, and of the batch from `in_progress_at` to `completed_at`. With --scale below 1 the system
    prompts get shorter too.
    """
    rows = []
    remark = ""
    with real_model(effort) as model_server, workbench(model_server, BACKEND_PARALLEL="1") as bench:
        for prompts, usual in LINES_OF_PROMPTS.items():
            lines = effort.lines(usual, least=prompts)
            words = min(PROMPT_WORDS, effort.lines(PROMPT_WORDS))
            model = model_server.models[0]
            path = request_files.with_system_prompts(bench.input_file, lines, prompts, words, model)
            effort.tell(f"prefixes: {prompts} system prompts, {lines} lines in the file's order")
            _forget_prompts(bench)
            bare_s = bare_clients.loop(model_server.url, path)
            bare = tokens(bare_clients.answers_to(path))
            effort.tell(f"prefixes: {prompts} system prompts, {lines} lines as a batch")
            _forget_prompts(bench)
            batch = bench.batch(path)
            batch_s = bench.seconds_between(batch["id"], "in_progress_at", "completed_at")
            ours = tokens(bench.output(batch))
            figures = [f"{bare.prompt:,}", f"{bare.read:,}", f"{ours.read:,}", figure(bare.read / ours.read)]
            ratio = bare_s / batch_s
            rows.append([str(prompts), str(lines), *figures, figure(bare_s, 1), figure(batch_s, 1), figure(ratio)])
            if prompts == TARGET_PROMPTS:
                target = f"at least {LEAST_RATIO:g} times as fast as the file's order with {prompts} system prompts"
                remark = verdict(target, ratio >= LEAST_RATIO, f"{ratio:.2f} times")
    columns = ["prompts", "lines", "prompt tokens", "bare read", "batch read", "bare/batch read"]
    return [Table([*columns, "bare s", "batch s", "bare/batch s"], rows, remark)]


def _forget_prompts(bench: Workbench) -> None:
    """Send another prompt, because the slot still has the last one."""
    path = request_files.chats(bench.directory / "other.jsonl", 1, 1, bench.model_server.models)
    bare_clients.loop(bench.model_server.url, path)
