"""The scenario `prefixes`."""

from benchmarks import bare_clients, request_files
from benchmarks.answers import tokens
from benchmarks.effort import Effort
from benchmarks.tables import Table, figure, verdict
from benchmarks.workbench import Workbench, real_model, workbench

# system prompts -> lines, five of each prompt, as far apart as possible: some eight minutes at 250 tokens a second
LINES_OF_PROMPTS = {1: 5, 4: 20, 16: 80}
PROMPT_WORDS = 950  # some 1,000 tokens
FORGET_TOKENS = 8  # long enough that the prompts overlap, so that each goes to a slot of its own
TARGET_PROMPTS, LEAST_RATIO = 16, 3.0


def prefixes(effort: Effort) -> list[Table]:
    """What it is worth that lines which begin alike are sent one after the other, on a real model.

    Each line is a chat with one of several long system prompts and a short question, answered in four tokens, and the
    prompts take turns from line to line, as a file that was written item by item has them. The bare client sends the
    lines in the order of the file, one after the other or as many at once as `bare at once` says, the batch in its own
    order. The model (SmolLM2-135M in llama.cpp, one slot, one thread, no cache beside the slot's own) reads again what
    the prompt has not in common with the one before. `read` is how many tokens of prompt it had to read, by the `usage`
    of the answers (all of them, if a server of yours does not tell); seconds are the bare client's, and of the batch
    from `in_progress_at` to `completed_at`. With --scale below 1 the system prompts get shorter too.
    """
    rows = []
    remark = ""
    with real_model(effort) as model_server, workbench(model_server, **effort.told) as bench:
        for prompts, usual in LINES_OF_PROMPTS.items():
            lines = effort.lines(usual, least=prompts)
            words = min(PROMPT_WORDS, effort.lines(PROMPT_WORDS))
            model = model_server.models[0]
            path = request_files.with_system_prompts(bench.input_file, lines, prompts, words, model)
            bare = []
            for in_flight in effort.in_flight or (1,):
                effort.tell(
                    f"prefixes: {prompts} system prompts, {lines} lines in the file's order, {in_flight} at once"
                )
                _forget_prompts(bench, max(effort.in_flight or (1,)))
                bare_s = bare_clients.threads(model_server.url, path, in_flight)
                bare.append((in_flight, tokens(bare_clients.answers_to(path)), bare_s))
            effort.tell(f"prefixes: {prompts} system prompts, {lines} lines as a batch")
            _forget_prompts(bench, max(effort.in_flight or (1,)))
            batch = bench.batch(path)
            batch_s = bench.seconds_between(batch["id"], "in_progress_at", "completed_at")
            ours = tokens(bench.output(batch))
            for in_flight, theirs, bare_s in bare:
                figures = [f"{theirs.prompt:,}", f"{theirs.read:,}", f"{ours.read:,}", figure(theirs.read / ours.read)]
                seconds = [figure(bare_s, 1), figure(batch_s, 1), figure(bare_s / batch_s)]
                rows.append([str(prompts), str(lines), str(in_flight), *figures, *seconds])
            if prompts == TARGET_PROMPTS:
                target = f"at least {LEAST_RATIO:g} times as fast as the file's order with {prompts} system prompts"
                ratio = min(bare_s for _, _, bare_s in bare) / batch_s
                remark = verdict(target, ratio >= LEAST_RATIO, f"{ratio:.2f} times")
    columns = ["prompts", "lines", "bare at once", "prompt tokens", "bare read", "batch read", "bare/batch read"]
    return [Table([*columns, "bare s", "batch s", "bare/batch s"], rows, remark)]


def _forget_prompts(bench: Workbench, slots: int) -> None:
    """Send other prompts, because each slot still has its last one."""
    path = request_files.chats(bench.directory / "other.jsonl", slots, FORGET_TOKENS, bench.model_server.models)
    bare_clients.threads(bench.model_server.url, path, slots)
